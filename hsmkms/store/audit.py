"""Heads of audit logs, so that every node's checkpoints tell of every other node's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from hsmkms.store import tables as t
from hsmkms.store.engine import Database

_COLUMNS: Final = select(t.audit_head.c.log, t.audit_head.c.sequence, t.audit_head.c.digest, t.audit_head.c.closed)


class AuditHeadStore:
    """Rows of heads. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(
        self,
        log: str,
        sequence: int,
        digest: str,
        now: datetime,
        *,
        closed: bool,
        before: Mapping[int, str] = MappingProxyType({}),
    ) -> bool:
        """Remember the last record of a log. A head that is there already is replaced only if it is open and one of
        `before`, number → hash: records that the caller knows to stand before this one. False if it stays."""
        row = t.audit_head
        values = {"sequence": sequence, "digest": digest, "closed": closed}
        with self._database.write() as connection:
            there = connection.execute(_COLUMNS.where(row.c.log == log)).one_or_none()
            if there is None:
                connection.execute(insert(row).values(log=log, **values, noted_at=_behind_all(connection, now)))
                return True
            if (there.sequence, there.digest, there.closed) == (sequence, digest, closed):
                return True
            if there.closed or before.get(there.sequence) != there.digest:
                return False
            values["noted_at"] = _behind_all(connection, now)
            connection.execute(update(row).where(row.c.log == log).values(values))
            return True

    def known(self, log: str) -> tuple[str, int, str, bool] | None:
        """The same as `all` of one log; None if it has no head."""
        return next(iter(self._read(_COLUMNS.where(t.audit_head.c.log == log))), None)

    def all(self) -> list[tuple[str, int, str, bool]]:
        """Log, number, hash (hex) and whether it is closed, of every log that was not retired."""
        return self._read(_COLUMNS.order_by(t.audit_head.c.log))

    def newest(self, most: int) -> list[tuple[str, int, str, bool]]:
        """The same of those that were put last."""
        return self._read(_COLUMNS.order_by(t.audit_head.c.noted_at.desc()).limit(most))

    def forget(self, logs: Sequence[str]) -> None:
        """Drop the heads of logs that were retired."""
        with self._database.write() as connection:
            for log in logs:
                connection.execute(delete(t.audit_head).where(t.audit_head.c.log == log))

    def _read(self, query: Select[Any]) -> list[tuple[str, int, str, bool]]:
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [(row.log, row.sequence, row.digest, row.closed) for row in rows]


def _behind_all(connection: Connection, now: datetime) -> datetime:
    """`now`, or later than every head so far: behind those of a clock that was set back, new ones would be told to
    nobody for as long as that was."""
    latest = connection.execute(select(func.max(t.audit_head.c.noted_at))).scalar_one()
    return now if latest is None else max(now, latest + timedelta(microseconds=1))
