"""What authorization costs a warm request, with one policy and with ten thousand; run in a deployment's environment."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from hsmkms.clock import system_clock
from hsmkms.domain.access import Action, Caller, Role, Scope, Target, allows
from hsmkms.domain.identities import IdentityKind
from hsmkms.domain.ids import new_id
from hsmkms.domain.policies import Policy, PolicyKind, Subject
from hsmkms.service.authorize import require_any
from hsmkms.service.rights import Insert
from hsmkms.settings import load
from hsmkms.wiring import Rooms, open_rooms, pin_of

MANY = 10_000
BATCH = 1_000
CALLS, ROUNDS = 20_000, 9


def main() -> None:
    """Print microseconds of each step, medians of rounds, and seconds of the first decision after a change."""
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    with rooms.close:
        instance = rooms.services.snapshot.all_instances()[0]
        operator = rooms.deployment.operator(instance.account)
        _, identity = rooms.services.identities.create(operator, IdentityKind.SERVICE_ID, "bench")
        secret = rooms.services.api_keys.create(operator, identity.iam_id, "bench").secret
        token = rooms.services.tokens.exchange_api_key(secret, "bench").access_token.reveal()
        key, ring = new_id(), "ring-0"
        target = Target(instance.account, instance.id, ring, key)
        callers = rooms.services.gate.callers
        for policies in (1, MANY):
            _grant(rooms, identity.iam_id, instance.account, instance.id, policies)
            started = time.perf_counter()
            caller = callers.resolve(f"Bearer {token}", None)
            first_s = time.perf_counter() - started
            assert allows(caller, Action.KEY_WRAP, target)
            assert not allows(caller, Action.KEY_DELETE, target)
            known = _time_us(lambda: callers.known(f"Bearer {token}", None))
            early = _time_us(lambda caller=caller: require_any(caller, Action.KEY_WRAP, instance))  # type: ignore[misc]
            yes = _time_us(_decision(caller, Action.KEY_WRAP, target))
            no = _time_us(_decision(caller, Action.KEY_DELETE, target))
            print(f"{policies:>7,} {known:8.2f} {early:8.2f} {yes:8.2f} {no:8.2f} {first_s * 1e3:10.1f}")


def _decision(caller: Caller, action: Action, target: Target) -> Callable[[], object]:
    return lambda: allows(caller, action, target)


def _grant(rooms: Rooms, iam_id: str, account: str, instance_id: str, policies: int) -> None:
    """Policies for single rings and keys, so that none covers another; the first one covers the target."""
    held = len(
        rooms.services.policies.list(rooms.deployment.operator(account), lambda one: one.subject.iam_id == iam_id)
    )
    now = system_clock()
    fresh = [
        Policy(
            id=new_id(),
            account=account,
            kind=PolicyKind.ACCESS,
            subject=Subject(iam_id=iam_id),
            roles=(Role.READER,),
            scope=Scope(instance_id, f"ring-{number}", None if number == 0 else new_id()),
            created_at=now,
            created_by="bench",
            modified_at=now,
            modified_by="bench",
        )
        for number in range(held, policies)
    ]
    for start in range(0, len(fresh), BATCH):
        rooms.services.policies._rights.commit(account, [Insert(policy) for policy in fresh[start : start + BATCH]])


def _time_us(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - started) / CALLS * 1e6)
    return statistics.median(times)


main()
