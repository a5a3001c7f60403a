"""Makes a resource be as its root key is: open while the key may be used, locked otherwise, its DEK under the newest
version of the key.

The key's metadata decides, when this starts and at least once a minute. Events only say "look now", and are
acknowledged once what was looked at is done; so none of them does harm by coming late, twice, out of order or never.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from hsmkms.adopters.client import (
    AdopterError,
    AdopterKeyState,
    ConnectionInvalid,
    Event,
    Key,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
    KeyState,
)
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.notices import Notices
from hsmkms.adopters.refusals import LockFailed
from hsmkms.domain.secrets import SecretBytes

AWAY_LIMIT_S: Final = 4 * 3600.0
"""How long data stays open without a word of the key service, as IBM's services do."""

_LOCKS: Final = {
    KeyState.SUSPENDED: AdopterKeyState.DEK_DISABLED,
    KeyState.DESTROYED: AdopterKeyState.DEK_DELETED,
}

_log = structlog.get_logger(__name__)


def _since_boot() -> float:
    """Seconds, also those that a machine slept through."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Resource(Protocol):
    """What a DEK opens."""

    @property
    def is_open(self) -> bool: ...

    def unlock(self, dek: SecretBytes) -> None:
        """Open it. Raises AdopterError."""

    def lock(self) -> None:
        """Close it and verify that it is closed, or raise LockFailed."""


class Condition(enum.Enum):
    """How a followed resource is."""

    OPEN = "open"
    LOCKED = "locked"
    AWAY = "open, key service away"
    LOCKED_AWAY = "locked, key service away"
    LOCK_FAILED = "LOCK FAILED"


@dataclass(frozen=True)
class Report:
    """What a look at the key came to; `reason` says why when the data is not simply open, or `behind`: the DEK is not
    under the newest version of its key yet."""

    condition: Condition
    reason: str
    key_state: KeyState | None
    key_version: str
    behind: bool = False


class Follower:
    """Follows the key of one resource. One thread uses it."""

    def __init__(
        self,
        client: KeyServiceClient,
        file: Path,
        resource: Resource,
        *,
        away_limit_s: float = AWAY_LIMIT_S,
        monotonic: Callable[[], float] = _since_boot,
    ) -> None:
        self._client, self._file, self._resource = client, file, resource
        self._away_limit_s, self._monotonic = away_limit_s, monotonic
        self._heard_at: float | None = None
        self._registered: str | None = None
        self._barred: str | None = None
        self.dek = WrappedDekFile.read(file)
        self._notices = Notices(client, self.dek.key_id, self.dek.resource_crn)

    @property
    def last_event(self) -> Event | None:
        """The newest event that was seen."""
        return self._notices.last

    def start(self) -> Report:
        """Open the resource, or refuse. Raises AdopterError with the reason in words; nothing is open then."""
        key = self._client.key(self.dek.key_id)
        self._heard_at = self._monotonic()
        if not key.opens:
            raise KeyRefused("KEY_ACTION_INVALID_STATE_ERR", self._why(key))
        self._unlock()
        try:
            return self._up_to_date(key)
        except (KeyServiceAway, ConnectionInvalid) as away:
            # The DEK opened; the next look puts it under the newest version.
            return Report(Condition.OPEN, away.message, key.state, self.dek.key_version, behind=True)
        except AdopterError:
            self._resource.lock()
            raise

    def take(self, events: Iterable[Event]) -> bool:
        """Note events; whether one asks for a look."""
        return self._notices.take(events)

    def reconcile(self) -> Report:
        """Look at the key, make the resource be as it says, acknowledge."""
        try:
            key = self._client.key(self.dek.key_id)
        except (KeyServiceAway, ConnectionInvalid) as away:
            return self._away(away)
        except KeyRefused as refused:
            self._heard_at, self._barred = self._monotonic(), refused.message
            return self._locked(refused.message, None)
        self._heard_at, self._barred = self._monotonic(), None if key.opens else self._why(key)
        report = self._opened(key) if self._barred is None else self._locked(self._barred, key.state)
        self._acknowledge(report)
        return report

    def _opened(self, key: Key) -> Report:
        try:
            if not self._resource.is_open:
                self._unlock()
            return self._up_to_date(key)
        except (KeyServiceAway, ConnectionInvalid) as away:
            return self._away(away)
        except AdopterError as refused:
            return self._locked(refused.message, key.state)

    def _unlock(self) -> None:
        opened = self._client.unwrap(self.dek.key_id, self.dek.ciphertext, self.dek.aad)
        self._resource.unlock(opened.plaintext)

    def _up_to_date(self, key: Key) -> Report:
        """Put the DEK under the newest version of its key. An older copy of the file still opens afterwards."""
        reason = ""
        if key.version is not None and key.version != self.dek.key_version:
            moved = self.dek.moved(self._client.rewrap(self.dek.key_id, self.dek.ciphertext, self.dek.aad))
            try:
                moved.write(self._file)
            except OSError as error:
                # The one before opens as well; the next look tries again.
                reason = f"The rewrapped DEK cannot be written to {self._file}: {error.strerror}."
                _log.error("the rewrapped DEK cannot be written", file=str(self._file), reason=error.strerror)
            else:
                self.dek = moved
                _log.info("DEK rewrapped", resource=self.dek.resource_crn, key_version=moved.key_version)
        self._tell_version()
        return Report(Condition.OPEN, reason, key.state, self.dek.key_version, behind=bool(reason))

    def _tell_version(self) -> None:
        """Let the registration show the version: once after each start, because whoever moved the DEK may have died
        before he could, and after each move."""
        version = self.dek.key_version
        if self._registered == version:
            return
        try:
            try:
                self._client.registered_version(self.dek.key_id, self.dek.resource_crn, version)
            except KeyRefused as refused:
                if refused.reason_code != "REGISTRATION_NOT_FOUND_ERR":
                    raise
                _log.warning("the registration was taken away; registering again", resource=self.dek.resource_crn)
                self._client.register(self.dek.key_id, self.dek.resource_crn)
        except KeyRefused as refused:
            # Such as a key past its expiration date, which takes no registrations any more.
            _log.warning("the registration does not show the key version", reason=refused.message)
        except AdopterError as away:
            _log.warning("the registration does not show the key version yet", reason=away.message)
            return
        self._registered = version

    def _locked(self, reason: str, state: KeyState | None, condition: Condition = Condition.LOCKED) -> Report:
        if self._resource.is_open:
            _log.warning("locking", resource=self.dek.resource_crn, reason=reason)
        try:
            self._resource.lock()
        except LockFailed as failed:
            _log.error("LOCK FAILED", resource=self.dek.resource_crn, reason=failed.message)
            return Report(Condition.LOCK_FAILED, failed.message, state, self.dek.key_version)
        return Report(condition, reason, state, self.dek.key_version)

    def _away(self, away: AdopterError) -> Report:
        """Go on with what is open, for a while, unless the last word was that it has to be locked."""
        if self._barred is not None or not self._resource.is_open:
            return self._locked(self._barred or away.message, None, Condition.LOCKED_AWAY)
        silent_s = self._monotonic() - (self._heard_at if self._heard_at is not None else self._monotonic())
        if silent_s >= self._away_limit_s:
            reason = f"No word of the key service for {silent_s:.0f} s. {away.message}"
            return self._locked(reason, None, Condition.LOCKED_AWAY)
        _log.warning("key service away", resource=self.dek.resource_crn, silent_s=round(silent_s), reason=away.message)
        return Report(Condition.AWAY, away.message, None, self.dek.key_version)

    def _acknowledge(self, report: Report) -> None:
        """Acknowledge what is done; what is not, or not because the key wants it so, stays pending."""
        if report.condition is Condition.OPEN and not report.behind:
            state, version = AdopterKeyState.DEK_ENABLED, self.dek.key_version
        elif report.condition is Condition.LOCKED and report.key_state in _LOCKS:
            state, version = _LOCKS[report.key_state], None
        else:
            return
        self._notices.acknowledge(state, version)

    def _why(self, key: Key) -> str:
        if key.state is KeyState.SUSPENDED:
            return f"The root key is disabled. Enable it to open the data again ({key.crn})."
        return (
            f"The root key is deleted. What remains is ciphertext and the wrapped DEK in {self._file}, which open if "
            f"the key is restored, never once it is purged ({key.crn})."
        )
