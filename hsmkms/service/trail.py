"""The audit trail of what callers, jobs and the operator do: an intent before a change, an event for every outcome.

Wrap, unwrap, rewrap and whatever only reads change nothing, so one event before the answer is enough. All else writes
its intent first: if that cannot be made durable nothing happens, and if the process dies afterwards the intent tells
what may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final

from hsmkms.audit import event as e
from hsmkms.audit.journal import Journal
from hsmkms.clock import Clock
from hsmkms.correlation import correlated
from hsmkms.domain.access import Caller
from hsmkms.domain.crn import instance_crn, key_crn
from hsmkms.domain.ids import new_id
from hsmkms.domain.importing import ImportToken
from hsmkms.domain.keys import Key, effective_state
from hsmkms.domain.waits import Waits
from hsmkms.errors import AuditUnavailable
from hsmkms.service.snapshot import Snapshot

LOGIN: Final = "iam-identity.user-apikey.login"
REVOKE: Final = "iam-identity.user-refreshtoken.delete"
EXPIRE: Final = "kms.secrets.expire"
UNKNOWN_ACTION: Final = "kms.secrets.default"
OPERATOR: Final = "hsmkms.operator."
_CHANGES_NOTHING: Final = (
    ".list",
    ".read",
    ".head",
    ".retrieve",
    ".wrap",
    ".unwrap",
    ".rewrap",
    ".default",
    ".login",
)
_SERVICE: Final = e.Initiator("hsmkms", "hsmkms", "service/security/keymanager")
_NOBODY: Final = "unknown"
_URI_CHARS: Final = 512
_WITH_KEY: Final = frozenset(
    {
        "kms.secrets.create",
        "kms.secrets-with-policy-overrides.create",
        "kms.secrets.read",
        "kms.secrets-metadata.read",
        "kms.secrets.wrap",
        "kms.secrets.unwrap",
        "kms.secrets.rewrap",
        EXPIRE,
    }
)


@dataclass(slots=True)
class Act:
    """What somebody does, as far as it is known; filled in while it is done.

    `reference` is the key's id or alias as it was asked for, `key` the key that was found or made, as it is afterwards;
    `failed` and `digest` are of a bulk's items.
    """

    action: str
    correlation_id: str
    uri: str | None = None
    address: str = ""
    caller: Caller | None = None
    actor: str | None = None
    instance_id: str | None = None
    key_ring_id: str | None = None
    reference: str | None = None
    key: Key | None = None
    version_id: str | None = None
    rewrapped_version_id: str | None = None
    total: int | None = None
    failed: int | None = None
    digest: str | None = None
    import_token: ImportToken | None = None
    intent: str | None = None


class Trail:
    """Writes events. Every method raises AuditUnavailable when they are not durable."""

    def __init__(self, journal: Journal, snapshot: Snapshot, waits: Waits, clock: Clock) -> None:
        self._journal = journal
        self._snapshot = snapshot
        self._waits = waits
        self._clock = clock

    @property
    def writes(self) -> bool:
        """False while events cannot be written."""
        return self._journal.failure is None

    async def begin(self, act: Act) -> None:
        """Record the intent of what changes something."""
        if changes(act.action):
            await self._journal.record(self._intent(act))

    async def end(self, act: Act, status: int) -> None:
        """Record the outcome; `status` is that of the answer."""
        await self._journal.record(self._outcome(act, status))

    def outcome(self, act: Act, status: int) -> bytes:
        """The event of an outcome, for `end_all`."""
        return e.encode(self._outcome(act, status))

    def end_all(self, outcomes: Sequence[bytes], settle: Callable[[AuditUnavailable | None], None]) -> None:
        """Record outcomes with one wait for the disk; `settle` is called in the running loop, when they are durable or
        with why they are not."""
        self._journal.record_all(outcomes, settle)

    @contextmanager
    def step(self, action: str, key: Key, correlation_id: str) -> Iterator[Act]:
        """One change that a job makes without a caller, with both records around it."""
        act = Act(action, correlation_id, instance_id=key.instance_id, key=key)
        with self._around(act):
            yield act

    @contextmanager
    def operator(self, command: str, user: str) -> Iterator[None]:
        """A command of the operator on the host, with both records around it."""
        with correlated(new_id()) as current, self._around(Act(f"{OPERATOR}{command}", current, actor=user)):
            yield

    @contextmanager
    def _around(self, act: Act) -> Iterator[None]:
        self._journal.record_blocking(self._intent(act))
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        try:
            yield
            status = HTTPStatus.OK
        finally:
            self._journal.record_blocking(self._outcome(act, status))

    def _intent(self, act: Act) -> e.Event:
        act.intent = new_id()
        return self._event(act, act.intent, e.PENDING, None, None)

    def _outcome(self, act: Act, status: int) -> e.Event:
        outcome = e.SUCCESS if status < HTTPStatus.BAD_REQUEST else e.FAILURE
        return self._event(act, new_id(), outcome, status, act.intent)

    def _event(self, act: Act, event_id: str, outcome: str, status: int | None, intent: str | None) -> e.Event:
        now = self._clock()
        key = act.key
        if key is None and act.reference is not None and act.instance_id is not None:
            key = self._snapshot.remembered(act.instance_id, act.reference)
        return e.Event(
            id=event_id,
            event_time=now,
            action=act.action,
            outcome=outcome,
            severity=e.severity_of(act.action, status or HTTPStatus.OK),
            initiator=_initiator(act),
            target=self._target(act, key),
            correlation_id=act.correlation_id,
            request_data=e.RequestData(
                request_uri=None if act.uri is None else act.uri[:_URI_CHARS],
                instance_id=act.instance_id,
                key_ring_id=act.key_ring_id,
                key_type=None if key is None else "root" if key.is_root else "standard",
            ),
            response_data=self._response(act, key, now) if outcome == e.SUCCESS else e.ResponseData(),
            reason=None if status is None else e.Reason(status, HTTPStatus(status).phrase),
            intent=intent,
        )

    def _target(self, act: Act, key: Key | None) -> e.Target:
        instance = None if act.instance_id is None else self._snapshot.last_known(act.instance_id)
        if instance is None:
            account = _NOBODY if act.caller is None else f"a/{act.caller.account}"
            return e.Target(account, account, "iam" if act.action.startswith("iam") else "kms")
        if key is None:
            crn = instance_crn(instance.region, instance.account, instance.id)
            return e.Target(crn, act.reference or instance.id, "kms/instance")
        crn = key_crn(instance.region, instance.account, instance.id, key.id)
        return e.Target(crn, key.id, "kms/secrets")

    def _response(self, act: Act, key: Key | None, now: datetime) -> e.ResponseData:
        """The contract's extra members of an action that succeeded."""
        if act.import_token is not None:
            return e.ResponseData(
                expiration_date=act.import_token.expires_at,
                max_allowed_retrievals=act.import_token.retrievals,
                remaining_retrievals=act.import_token.remaining,
            )
        if key is None:
            return e.ResponseData(total_resources=act.total)
        if act.action == "kms.secrets.purge" and key.deleted_at is not None:
            return e.ResponseData(
                key_id=key.id,
                deletion_date=key.deleted_at,
                purge_allowed_from=key.deleted_at + self._waits.purge_allowed,
                purge_eligible_on=key.deleted_at + self._waits.purge_scheduled,
            )
        state = int(effective_state(key, now))
        if act.action not in _WITH_KEY:
            return e.ResponseData(
                key_id=key.id, key_ring_id=key.key_ring_id, key_state=state, total_resources=act.total
            )
        version = key.versions[0] if key.versions else None
        left = None if key.expires_at is None else (key.expires_at - now).days
        return e.ResponseData(
            key_id=key.id,
            key_ring_id=key.key_ring_id,
            key_version_id=act.version_id or (None if version is None else version.id),
            key_version_creation_date=None if version is None or act.version_id is not None else version.created_at,
            rewrapped_key_version_id=act.rewrapped_version_id,
            key_state=state,
            total_resources=act.total,
            failed_resources=act.failed,
            resources_digest=act.digest,
            expiration_date=key.expires_at,
            days_to_key_expire=left,
        )


def changes(action: str) -> bool:
    """Whether an action leaves something behind, so that it takes an intent."""
    return not action.endswith(_CHANGES_NOTHING)


def _initiator(act: Act) -> e.Initiator:
    host = e.Host(act.address) if act.address else None
    if act.caller is not None:
        kind = "service/security/account/serviceid" if act.caller.sources else "service/security/account/user"
        # Not the name: it may be a person's.
        return e.Initiator(act.caller.iam_id, act.caller.iam_id, kind, host=host)
    if act.actor is not None:
        kind = "operator" if act.action.startswith(OPERATOR) else "user"
        return e.Initiator(act.actor, act.actor, f"service/security/account/{kind}", host=host)
    if act.uri is None:
        return _SERVICE
    return e.Initiator(_NOBODY, _NOBODY, "service/security/account/user", host=host)
