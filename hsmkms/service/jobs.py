"""What is due by time alone. There is no caller: the policy that somebody set, or the contract, is the order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action
from hsmkms.domain.jobs import Done, JobRun
from hsmkms.domain.keys import Key
from hsmkms.domain.waits import Waits
from hsmkms.service.cadf import EXPIRE
from hsmkms.service.due import Due
from hsmkms.service.lifecycle import LifecycleService
from hsmkms.service.material import Material
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.trail import Trail
from hsmkms.store.events import EventStore
from hsmkms.store.jobs import JobStore
from hsmkms.store.keys import KeyStore
from hsmkms.store.seen import StaleKey

BATCH: Final = 100
EVENTS_KEPT: Final = timedelta(days=30)
"""After their acknowledgement. What nobody acknowledged stays as long as its registration."""
_EVENTS_AT_ONCE: Final = 1_000
OVERDUE_EVERY: Final = timedelta(minutes=1)
_TOLD_UNTIL: Final = "overdue until"
"""The row among those of jobs whose time says up to when overdue notices were recorded."""


class JobService:
    """Each job asks `go_on` before each key, and leaves the rest to the next run when that says no."""

    def __init__(
        self,
        jobs: JobStore,
        keys: KeyStore,
        events: EventStore,
        material: Material,
        lifecycle: LifecycleService,
        snapshot: Snapshot,
        trail: Trail,
        waits: Waits,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._keys = keys
        self._events = events
        self._material = material
        self._lifecycle = lifecycle
        self._snapshot = snapshot
        self._trail = trail
        self._waits = waits
        self._clock = clock
        self._looked_at: datetime | None = None
        self._due = {
            action: Due(clock, "a job could not change a key", "key")
            for action in (EXPIRE, Action.KEY_ROTATE.value, Action.KEY_PURGE.value)
        }

    def take_lease(self, name: str, holder: str, length: timedelta) -> bool:
        """Take or renew a lease; False while another process has it."""
        return self._jobs.take_lease(name, holder, self._clock(), length)

    def give_lease(self, name: str, holder: str) -> None:
        """Leave it to others."""
        self._jobs.give_lease(name, holder)

    def note(self, run: JobRun) -> None:
        """Remember what a job did."""
        self._jobs.note(run)

    def runs(self) -> Sequence[JobRun]:
        """The last run of each job."""
        return self._jobs.runs()

    def due(self) -> dict[str, int]:
        """How much each job would change now."""
        now = self._clock()
        return {
            "expiry": self._keys.count_expired(now),
            "rotation": self._keys.count_due_for_rotation(now),
            "purge": self._keys.count_due_for_purge(now - self._waits.purge_scheduled),
            "events": self._events.count_acknowledged(now - EVENTS_KEPT),
            "overdue": len(self._events.overdue(self._told_until(), now)),
        }

    def expire_due(self, go_on: Callable[[], bool]) -> Done:
        """Write Deactivated where an expiration date has passed; it counted as such from that moment on."""
        now = self._clock()
        return self._each(EXPIRE, self._keys.expired(now, BATCH), go_on, lambda key: self._keys.expire(key, now))

    def rotate_due(self, go_on: Callable[[], bool]) -> Done:
        """Rotate keys whose policy says so: its interval after their creation or last rotation."""
        due = self._keys.due_for_rotation(self._clock(), BATCH)
        return self._each(Action.KEY_ROTATE.value, due, self._material.while_possible(go_on), self._material.rotate)

    def purge_due(self, go_on: Callable[[], bool]) -> Done:
        """Destroy keys 90 days after their deletion, and end purges that a crash interrupted."""
        before = self._clock() - self._waits.purge_scheduled
        purge, due = Action.KEY_PURGE.value, self._keys.due_for_purge(before, BATCH)
        go_on = self._material.while_possible(go_on)
        interrupted = self._each(purge, self._keys.purging(), go_on, self._lifecycle.finish_purge)
        purged = self._each(purge, due, go_on, self._lifecycle.purge_without_caller)
        return Done(interrupted.changed + purged.changed, interrupted.failed + purged.failed)

    def forget_events(self, go_on: Callable[[], bool]) -> Done:
        """Drop events 30 days after they were acknowledged."""
        before = self._clock() - EVENTS_KEPT
        if not go_on() or not self._events.count_acknowledged(before):
            return Done(0, 0)
        with self._trail.job("events.forget") as act:
            act.total = self._events.forget_acknowledged(before, _EVENTS_AT_ONCE)
        return Done(act.total, 0)

    def tell_overdue(self, go_on: Callable[[], bool]) -> Done:
        """Record each notice that its service has not acknowledged in time. A crash may have one recorded twice, but
        none left out."""
        now = self._clock()
        if not go_on() or (self._looked_at is not None and now - self._looked_at < OVERDUE_EVERY):
            return Done(0, 0)
        overdue = self._events.overdue(self._told_until(), now)
        for notice in overdue:
            self._trail.overdue(notice, self._keys.get(notice.instance_id, notice.key_id))
        if overdue:
            self._jobs.note(JobRun(_TOLD_UNTIL, "", now, len(overdue), 0))
        self._looked_at = now
        return Done(len(overdue), 0)

    def _told_until(self) -> datetime | None:
        return next((run.ended_at for run in self._jobs.runs() if run.name == _TOLD_UNTIL), None)

    def _each(self, action: str, keys: Sequence[Key], go_on: Callable[[], bool], change: Callable[[Key], None]) -> Done:
        return self._due[action].each({key.id: partial(self._step, action, key, change) for key in keys}, go_on)

    def _step(self, action: str, key: Key, change: Callable[[Key], None]) -> bool:
        try:
            with self._trail.step(action, key) as act:
                change(key)
                act.key = self._keys.get(key.instance_id, key.id) or key
        except StaleKey:
            # Somebody changed the key meanwhile; if it is still due, the next run sees it.
            return False
        self._snapshot.forget(key.id)
        return True
