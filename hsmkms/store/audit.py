"""Heads of audit logs, so that every node's checkpoints tell of every other node's log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, delete, insert, select, update

from hsmkms.store import tables as t
from hsmkms.store.engine import Database

_COLUMNS: Final = select(t.audit_head.c.log, t.audit_head.c.sequence, t.audit_head.c.digest, t.audit_head.c.closed)


class AuditHeadStore:
    """Rows of heads. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, log: str, sequence: int, digest: str, now: datetime, *, closed: bool) -> None:
        """Remember the last record of a log; a head never moves back."""
        values = {"sequence": sequence, "digest": digest, "closed": closed, "noted_at": now}
        row = t.audit_head
        with self._database.write() as connection:
            known = connection.execute(select(row.c.sequence).where(row.c.log == log)).scalar_one_or_none()
            if known is None:
                connection.execute(insert(row).values(log=log, **values))
            elif known < sequence:
                connection.execute(update(row).where(row.c.log == log).values(values))

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
