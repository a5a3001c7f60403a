"""Heads of audit logs, so that every node's checkpoints tell of every other node's log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import insert, select, update

from hsmkms.store import tables as t
from hsmkms.store.engine import Database


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

    def all(self, since: datetime | None = None) -> list[tuple[str, int, str, bool]]:
        """Log, number, hash (hex) and whether it is closed, of every log there ever was or that was noted `since`."""
        columns = (t.audit_head.c.log, t.audit_head.c.sequence, t.audit_head.c.digest, t.audit_head.c.closed)
        query = select(*columns).order_by(t.audit_head.c.log)
        if since is not None:
            query = query.where(t.audit_head.c.noted_at >= since)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [(row.log, row.sequence, row.digest, row.closed) for row in rows]
