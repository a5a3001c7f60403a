"""What only the holder of the token's PIN can do beside a running service: further instances, tokens of any content.

Run as a process of its own (`python -m tests.api.backstage`), as an operator would: a PKCS#11 library serves one
configuration a process. Orders and answers are JSON on stdin and stdout.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy

from hsmkms.settings import Settings, load
from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database
from hsmkms.store.tables import job_run, key, lease, metadata
from hsmkms.wiring import open_rooms, pin_of
from tests.support.deployment import ROOT, Service


@dataclass(frozen=True)
class OtherInstance:
    """An instance and an administrator of its account."""

    instance_id: str
    api_key: str


def found_instance(service: Service, name: str, account: str) -> OtherInstance:
    """A further instance in the deployment of a running service."""
    answer = _order(service, {"found": {"name": name, "account": account}})
    return OtherInstance(answer["instance_id"], answer["api_key"])


def sign_tokens(service: Service, tokens: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """JWTs of these headers and claims with a genuine ES256 signature by the deployment's own signing key."""
    signed = _order(service, {"sign": tokens})["tokens"]
    return [str(token) for token in signed]


def age(database: Database, key_id: str, **by: timedelta) -> None:
    """Move moments of a key's row into the past."""
    with database.write() as connection:
        here = key.c.id == key_id
        row = connection.execute(sqlalchemy.select(key).where(here)).mappings().one()
        moved = {name: row[name] - ago for name, ago in by.items()}
        connection.execute(sqlalchemy.update(key).where(here).values(moved))
        record_change(connection, "key", key_id)


def row_counts(service: Service) -> dict[str, int]:
    """How many rows each table has, but for what the jobs note of themselves whenever they run."""
    database = Database(service.database_url)
    try:
        with database.read() as connection:
            count = sqlalchemy.func.count()
            return {
                table.name: connection.execute(sqlalchemy.select(count).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
                if table not in (job_run, lease)
            }
    finally:
        database.close()


def _order(service: Service, order: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.api.backstage"],
        input=json.dumps(order).encode(),
        capture_output=True,
        env=service.state.environment(**service.extra),
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _found(settings: Settings, name: str, account: str) -> dict[str, Any]:
    rooms = open_rooms(settings, pin_of(settings))
    with rooms.close:
        founded = rooms.deployment.found(name, "local", account)
    return {"instance_id": founded.instance.id, "api_key": founded.api_key.reveal()}


def _sign(settings: Settings, tokens: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    rooms = open_rooms(settings, pin_of(settings))
    made = []
    with rooms.close:
        key_id = rooms.services.tokens.public_keys()[0].id
        for parts in tokens:
            signed = ".".join(_segment(json.dumps(part).encode()) for part in parts)
            made.append(f"{signed}.{_segment(rooms.token.sign(key_id, signed.encode()))}")
    return {"tokens": made}


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def main() -> None:
    """Do the order on stdin."""
    order = json.load(sys.stdin)
    settings = load()
    answer = _found(settings, **order["found"]) if "found" in order else _sign(settings, order["sign"])
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
