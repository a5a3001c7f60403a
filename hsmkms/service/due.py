"""Works off what is due, one thing after another, and puts off what fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from hsmkms.clock import Clock
from hsmkms.domain.jobs import Done, PutOff
from hsmkms.errors import HsmkmsError

_log = structlog.get_logger(__name__)


class Due:
    """Of one job. What failed is remembered by this process alone: another that takes the job over tries it at once."""

    def __init__(self, clock: Clock, message: str, field: str) -> None:
        """`message` is the log's line of what failed, with its id under the name `field`."""
        self._clock = clock
        self._message = message
        self._field = field
        self._put_off = PutOff()

    def each(self, things: Mapping[str, Callable[[], bool]], go_on: Callable[[], bool]) -> Done:
        """Change things, which are by id, while `go_on` says so; one that says False was not changed, and is tried
        again when it is due again."""
        changed = failed = 0
        for thing, change in things.items():
            if not go_on():
                break
            now = self._clock()
            if not self._put_off.is_due(thing, now):
                continue
            try:
                did = change()
            except HsmkmsError as error:
                _log.warning(self._message, **{self._field: thing}, reason=error.message)
                self._put_off.put_off(thing, now)
                failed += 1
                continue
            if did:
                self._put_off.changed(thing)
                changed += 1
        return Done(changed, failed)
