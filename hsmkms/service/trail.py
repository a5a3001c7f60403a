"""The audit trail of what callers, jobs and the operator do: an intent before a change, an event for every outcome.

Wrap, unwrap, rewrap and whatever only reads change nothing, so one event before the answer is enough. All else writes
its intent first: if that cannot be made durable nothing happens, and if the process dies afterwards the intent tells
what may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from hsmkms.audit import event as e
from hsmkms.audit.journal import Journal
from hsmkms.clock import Clock
from hsmkms.correlation import correlated
from hsmkms.domain.access import Action
from hsmkms.domain.events import KeyEvent
from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import Key
from hsmkms.domain.tenants import Instance
from hsmkms.domain.waits import Waits
from hsmkms.errors import AuditUnavailable, HsmkmsError
from hsmkms.service.acts import Act, acting
from hsmkms.service.cadf import ACKNOWLEDGED, JOB, OPERATOR, event_of
from hsmkms.service.similar import Similar

_CHANGES_NOTHING: Final = (
    ".list",
    ".read",
    ".head",
    ".retrieve",
    ".wrap",
    ".unwrap",
    ".rewrap",
    ".default",
    ".request",
    ".login",
)


class Trail:
    """Writes events. Every method raises AuditUnavailable when they are not durable."""

    def __init__(
        self,
        journal: Journal,
        instance_of: Callable[[str], Instance | None],
        key_of: Callable[[str, str], Key | None],
        waits: Waits,
        clock: Clock,
        status_of: Callable[[Exception], HTTPStatus],
    ) -> None:
        """`instance_of` and `key_of` (by instance, and id or alias) give what is known without asking; `status_of` what
        a caller over HTTP would be told of an error."""
        self._journal = journal
        self._instance_of = instance_of
        self._key_of = key_of
        self._waits = waits
        self._clock = clock
        self._status_of = status_of

    @property
    def writes(self) -> bool:
        """False while events cannot be written, or the write of some does not end."""
        return self._journal.writes

    async def begin(self, act: Act) -> None:
        """Record the intent of what changes something."""
        if changes(act.action):
            await self._journal.record(self._intent(act))

    async def end(self, act: Act, status: int) -> None:
        """Record the outcome; `status` is that of the answer."""
        await self._journal.record(self._outcome(act, status))

    def outcome(self, act: Act, status: int, similar: Similar | None = None) -> bytes:
        """The event of an outcome, for `end_all`; `similar` knows the one before of the same request."""
        if similar is None or act.instance_id is None:
            return e.encode(self._outcome(act, status))
        instance, key, event_id = self._instance_of(act.instance_id), act.key, new_id()
        known = similar.render(act, status, event_id, instance, key, self._clock())
        if known is not None:
            return known
        event = self._outcome(act, status)
        text = e.encode(event)
        similar.learn(act, status, event, text, instance, key)
        return text

    def end_all(self, outcomes: Sequence[bytes], settle: Callable[[AuditUnavailable | None], None]) -> None:
        """Record outcomes with one wait for the disk; `settle` is called in the running loop, when they are durable or
        with why they are not."""
        self._journal.record_all(outcomes, settle)

    @contextmanager
    def step(self, action: str, key: Key) -> Iterator[Act]:
        """One change of a key that a job makes without a caller, with both records around it."""
        with correlated(new_id()) as current:
            act = Act(action, current, instance_id=key.instance_id, before=key, key=key)
            with acting(act), self._around(act):
                yield act

    @contextmanager
    def job(self, name: str, reference: str | None = None, instance_id: str | None = None) -> Iterator[Act]:
        """One change that a job makes to anything else, of a name of ours."""
        with correlated(new_id()) as current:
            act = Act(f"{JOB}{name}", current, instance_id=instance_id, reference=reference)
            with acting(act), self._around(act):
                yield act

    @contextmanager
    def operator(self, command: str, user: str) -> Iterator[Act]:
        """A command of the operator on the host, with both records around it."""
        with correlated(new_id()) as current:
            act = Act(f"{OPERATOR}{command}", current, actor=user)
            with acting(act), self._around(act):
                yield act

    @contextmanager
    def operation(self, outer: Act, action: Action, instance_id: str, reference: str | None) -> Iterator[Act]:
        """What a command of the operator does to an instance or a key, under the name that it has over HTTP."""
        key = None if reference is None else self._key_of(instance_id, reference)
        act = Act(action.value, outer.correlation_id, actor=outer.actor, instance_id=instance_id, reference=reference)
        act.key = key
        with acting(act), self._around(act):
            yield act

    def overdue(self, notice: KeyEvent, key: Key | None) -> None:
        """A service did not acknowledge a notice in time (additions section 9: 408)."""
        act = Act(f"{ACKNOWLEDGED}{notice.type.value}", notice.correlation_id, instance_id=notice.instance_id, key=key)
        act.notice, act.refusal = notice, "The service did not acknowledge it in time."
        self._journal.record_blocking(self._outcome(act, HTTPStatus.REQUEST_TIMEOUT))

    @contextmanager
    def _around(self, act: Act) -> Iterator[None]:
        if changes(act.action):
            self._journal.record_blocking(self._intent(act))
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        try:
            yield
            status = HTTPStatus.OK
        except HsmkmsError as error:
            status = self._status_of(error)
            raise
        finally:
            self._journal.record_blocking(self._outcome(act, status))

    def _intent(self, act: Act) -> e.Event:
        act.intent = new_id()
        return self._event(act, act.intent, e.PENDING, None)

    def _outcome(self, act: Act, status: int) -> e.Event:
        return self._event(act, new_id(), e.SUCCESS if status < HTTPStatus.BAD_REQUEST else e.FAILURE, status)

    def _event(self, act: Act, event_id: str, outcome: str, status: int | None) -> e.Event:
        instance = key = None
        if act.instance_id is not None:
            instance, key = self._instance_of(act.instance_id), act.key
            if key is None and act.reference is not None:
                key = self._key_of(act.instance_id, act.reference)
        return event_of(act, event_id, outcome, status, instance, key, self._waits, self._clock())


def changes(action: str) -> bool:
    """Whether an action leaves something behind, so that it takes an intent. Reading an import token uses it up."""
    return not action.endswith(_CHANGES_NOTHING) or action == Action.IMPORT_TOKEN_READ.value
