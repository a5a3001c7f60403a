"""Leases, so that one process of all does a job, and what the jobs did."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from hsmkms.domain.jobs import JobRun
from hsmkms.store import tables as t
from hsmkms.store.engine import Database

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""How far apart the clocks of two nodes may be."""


class JobStore:
    """Rows of leases and job runs. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_lease(self, name: str, holder: str, now: datetime, length: timedelta) -> bool:
        """Take or renew a lease until `now + length`; False while another holder's has not ended.

        A lease that ends later than any could was taken before a clock was set back: it does not count.
        """
        until = now + length
        impossible = until + _CLOCKS_DIFFER
        with self._database.write() as connection:
            mine_or_free = or_(t.lease.c.holder == holder, t.lease.c.until <= now, t.lease.c.until > impossible)
            changed = connection.execute(
                update(t.lease).where(t.lease.c.name == name, mine_or_free).values(holder=holder, until=until)
            )
            if changed.rowcount == 1:
                return True
            try:
                with connection.begin_nested():
                    connection.execute(insert(t.lease).values(name=name, holder=holder, until=until))
            except IntegrityError:
                return False
            return True

    def give_lease(self, name: str, holder: str) -> None:
        """End a lease early, so that another process need not wait for its end."""
        with self._database.write() as connection:
            connection.execute(delete(t.lease).where(t.lease.c.name == name, t.lease.c.holder == holder))

    def note(self, run: JobRun) -> None:
        """Remember the last run of a job."""
        values = {"holder": run.holder, "ended_at": run.ended_at, "done": run.done, "failed": run.failed}
        with self._database.write() as connection:
            changed = connection.execute(update(t.job_run).where(t.job_run.c.name == run.name).values(values))
            if changed.rowcount == 0:
                connection.execute(insert(t.job_run).values(name=run.name, **values))

    def runs(self) -> list[JobRun]:
        """The last run of each job."""
        with self._database.read() as connection:
            rows = connection.execute(select(t.job_run).order_by(t.job_run.c.name)).all()
        return [JobRun(row.name, row.holder, row.ended_at, row.done, row.failed) for row in rows]
