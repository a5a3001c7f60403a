"""Runs the jobs in one process of all, as a thread of each worker.

Whoever holds the lease works; the others look again every period. A lease ends LEASE after it was last renewed, so the
place of a process that died is taken within LEASE and one period.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

import structlog

from hsmkms.clock import Clock
from hsmkms.domain.jobs import Done, JobRun
from hsmkms.errors import HsmkmsError
from hsmkms.service.jobs import JobService
from hsmkms.telemetry import metrics

LEASE: Final = timedelta(seconds=20)
RENEWED_EVERY_S: Final = 4.0
NOTED_FOR_S: Final = 60.0

Job = Callable[[Callable[[], bool]], Done]
"""What a job does; it asks before each thing that it changes whether it may go on."""

_log = structlog.get_logger(__name__)


class JobRunner:
    """The thread. `name` is that of the lease, `holder` names this process among all."""

    def __init__(
        self, name: str, jobs: Mapping[str, Job], period_s: float, service: JobService, holder: str, clock: Clock
    ) -> None:
        self._name = name
        self._jobs = jobs
        self._period_s = period_s
        self._service = service
        self._holder = holder
        self._clock = clock
        self._renew_at = 0.0
        self._noted_until: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to look for work."""
        self._thread.start()

    def stop(self) -> None:
        """End after the key that is being worked on, and leave the lease to others."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        silent = False
        while not self._stop.wait(self._period_s):
            try:
                self._once()
            except HsmkmsError as error:
                if not silent:
                    _log.warning("jobs wait", reason=error.message)
                silent = True
            else:
                silent = False
        try:
            self._service.give_lease(self._name, self._holder)
        except HsmkmsError:
            _log.warning("the lease of the jobs was not given back and ends by itself")

    def _once(self) -> None:
        for name, job in self._jobs.items():
            if not self._may_go_on():
                return
            try:
                done = job(self._may_go_on)
            except HsmkmsError:
                metrics.job_broke_off(name)
                raise
            metrics.job_ran(name, done.changed, done.failed)
            # A run that found nothing to do is worth a row now and then, not a write every few seconds.
            if done.changed or done.failed or time.monotonic() >= self._noted_until.get(name, 0.0):
                self._noted_until[name] = time.monotonic() + NOTED_FOR_S
                self._service.note(JobRun(name, self._holder, self._clock(), done.changed, done.failed))

    def _may_go_on(self) -> bool:
        """Asked before each key: whether this process still has the lease and is not stopping."""
        if self._stop.is_set():
            return False
        if time.monotonic() >= self._renew_at:
            if not self._service.take_lease(self._name, self._holder, LEASE):
                self._renew_at = 0.0
                return False
            self._renew_at = time.monotonic() + RENEWED_EVERY_S
        return True
