"""Fill a deployment's database with keys for the lists, which never touch the token; run in its environment.

Arguments: how many keys the first instance gets, and how many another one. Prints what the queries of `lists` name, as
JSON. What is made up is the same in every run, and leaves nothing for the background jobs to do.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Table, insert

from hsmkms.clock import system_clock
from hsmkms.domain.access import Role, Scope
from hsmkms.domain.identities import IdentityKind
from hsmkms.domain.ids import DEFAULT_KEY_RING, new_id
from hsmkms.domain.key_policies import KeyPolicyKind
from hsmkms.domain.keys import KeyState
from hsmkms.domain.policies import Policy, PolicyKind, Subject
from hsmkms.service.rights import Insert
from hsmkms.settings import load
from hsmkms.store import tables as t
from hsmkms.store.engine import Database
from hsmkms.wiring import Rooms, open_rooms, pin_of

RINGS: Final = tuple(f"ring-{number}" for number in range(49))
SMALL_RING, LARGE_RING = RINGS[40], RINGS[0]
MANY_VERSIONS: Final = 400
_BATCH: Final = 5_000
_DAY: Final = timedelta(days=1)
_WORDS: Final = ("payroll", "Ledger", "backup", "volume", "Straße", "tenant", "archive", "ÅNGSTRÖM", "stage", "prod")
_BY: Final = "iam-ServiceId-00000000-0000-4000-8000-000000000000"
_STATES: Final = (KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.DESTROYED)
_SHARES: Final = (86, 2, 4, 8)

Row = dict[str, Any]


def main() -> None:
    """Fill, and print an API key of each caller, and a key with many versions."""
    many, few = int(sys.argv[1]), int(sys.argv[2])
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    database = Database(settings.database)
    with rooms.close:
        first = rooms.services.snapshot.all_instances()[0]
        operator = rooms.deployment.operator(first.account)
        other = rooms.services.instances.create(operator, "other", "us-south")
        now = system_clock()
        for instance_id in (first.id, other.id):
            rings = ({"instance_id": instance_id, "id": ring, "created_at": now, "created_by": _BY} for ring in RINGS)
            _insert(database, t.key_ring, rings)
        keys = _keys(random.Random(1), now, [first.id] * many + [other.id] * few)
        rotated = next(keys)
        keys = itertools.chain([rotated], keys)
        for batch in iter(lambda: list(itertools.islice(keys, _BATCH)), []):
            for table in (t.key, t.key_version, t.key_alias, t.key_policy):
                _insert(database, table, (row for rows in batch for row in rows[table]))
        print(
            json.dumps(
                {
                    "rotated key": rotated[t.key][0]["id"],
                    "one small ring": _caller(rooms, first.account, first.id, [SMALL_RING]),
                    "one large ring": _caller(rooms, first.account, first.id, [LARGE_RING]),
                    "49 rings": _caller(rooms, first.account, first.id, RINGS),
                }
            )
        )
    database.close()


def _insert(database: Database, table: Table, rows: Iterable[Row]) -> None:
    with database.write() as connection:
        connection.execute(insert(table), list(rows))


def _keys(dice: random.Random, now: datetime, instances: Iterable[str]) -> Iterator[dict[Table, list[Row]]]:
    """Rows of one key after the other, by table."""
    for number, instance_id in enumerate(instances):
        key = _key(dice, now, number, instance_id)
        root = not key["extractable"]
        rotations = 0 if key["rotated_at"] is None else dice.randint(1, 5)
        versions = MANY_VERSIONS if number == 0 else rotations + 1
        yield {
            t.key: [key],
            t.key_version: [_version(dice, key, 1 + place) for place in range(versions if root else 0)],
            t.key_alias: [_alias(key, number, place) for place in range(dice.choice((0, 0, 1, 2)))],
            t.key_policy: [_policy(dice, key)] if root and dice.random() < 0.2 else [],
        }


def _key(dice: random.Random, now: datetime, number: int, instance_id: str) -> Row:
    state = KeyState.ACTIVE if number == 0 else dice.choices(_STATES, _SHARES)[0]
    extractable = number > 0 and dice.random() < 0.2
    created_at = now - dice.random() * 1_000 * _DAY - 90 * _DAY
    rotated_at = None if extractable or dice.random() < 0.6 else now - dice.random() * 20 * _DAY
    deleted_at = now - dice.random() * 80 * _DAY if state is KeyState.DESTROYED else None
    expires_at = now + dice.random() * 400 * _DAY + _DAY if dice.random() < 0.25 else None
    if state is KeyState.DEACTIVATED:
        expires_at = now - dice.random() * 80 * _DAY
    name = f"{dice.choice(_WORDS)} {dice.choice(_WORDS)} {number}"
    return {
        "id": _uuid(dice),
        "instance_id": instance_id,
        "key_ring_id": _ring(dice) if number else LARGE_RING,
        "name": name,
        "name_folded": name.casefold(),
        "description": f"The key of {name}, made for a benchmark of lists" if dice.random() < 0.5 else None,
        "tags": dice.sample(_WORDS, dice.randint(0, 3)),
        "extractable": extractable,
        "imported": dice.random() < 0.05,
        "state": int(state),
        "created_at": created_at,
        "created_by": _BY,
        "updated_at": deleted_at or rotated_at or (created_at + _DAY if dice.random() < 0.3 else None),
        "rotated_at": rotated_at,
        "expires_at": expires_at,
        "deleted_at": deleted_at,
        "deleted_by": _BY if deleted_at else None,
        "disabled_at": created_at + _DAY if state is KeyState.SUSPENDED else None,
        "sealed_payload": dice.randbytes(90) if extractable else None,
    }


def _ring(dice: random.Random) -> str:
    """Four tenths in `default`, a tenth in the large ring, the rest alike in all others."""
    return dice.choices((DEFAULT_KEY_RING, LARGE_RING, dice.choice(RINGS[1:])), (4, 1, 5))[0]


def _version(dice: random.Random, key: Row, number: int) -> Row:
    created_at = key["created_at"] if number == 1 else key["rotated_at"]
    place = {"key_id": key["id"], "number": number}
    return {"id": _uuid(dice), **place, "created_at": created_at or key["created_at"], "check_value": dice.randbytes(8)}


def _alias(key: Row, number: int, place: int) -> Row:
    alias = f"Alias-{number}-{place}"
    made = {"created_at": key["created_at"], "created_by": _BY}
    return {"instance_id": key["instance_id"], "alias": alias, "key_id": key["id"], **made}


def _policy(dice: random.Random, key: Row) -> Row:
    """Twelve months after its last rotation at the earliest; what was never rotated is off."""
    made = {"created_at": key["created_at"], "created_by": _BY, "updated_at": key["created_at"], "updated_by": _BY}
    enabled = key["rotated_at"] is not None
    kind = KeyPolicyKind.ROTATION.value
    return {"key_id": key["id"], "kind": kind, "id": _uuid(dice), "enabled": enabled, "interval_month": 12, **made}


def _uuid(dice: random.Random) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128), version=4))


def _caller(rooms: Rooms, account: str, instance_id: str, rings: Sequence[str]) -> str:
    """A new identity that may read these rings of the instance and nothing else; its API key."""
    operator = rooms.deployment.operator(account)
    _, identity = rooms.services.identities.create(operator, IdentityKind.SERVICE_ID, "bench")
    now = system_clock()
    granted = [
        Policy(
            id=new_id(),
            account=account,
            kind=PolicyKind.ACCESS,
            subject=Subject(iam_id=identity.iam_id),
            roles=(Role.READER,),
            scope=Scope(instance_id, ring, None),
            created_at=now,
            created_by=_BY,
            modified_at=now,
            modified_by=_BY,
        )
        for ring in rings
    ]
    rooms.services.policies._rights.commit(account, [Insert(policy) for policy in granted])
    return rooms.services.api_keys.create(operator, identity.iam_id, "bench").secret.reveal()


main()
