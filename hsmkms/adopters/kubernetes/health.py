"""Whether the root key may be used, found out in the background so that Status costs nothing and tells the truth.

A canary is wrapped and unwrapped: a plugin that only encrypts does not notice that it may not decrypt any more. Refused
and away are two things. The API server ends writes three minutes after Status began to fail as a call; it goes on for
ever when Status merely says in words that something is wrong. So a refusal is the former and an absence the latter.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from hsmkms.adopters.client import (
    AdopterError,
    CiphertextRefused,
    KeyRefused,
    KeyServiceClient,
    KeyState,
)
from hsmkms.adopters.core.dek_file import aad_of
from hsmkms.adopters.kubernetes.key_id import KeyId
from hsmkms.adopters.kubernetes.last_key_id import LastKeyId
from hsmkms.domain.secrets import SecretBytes

LOOK_MOST_S: Final = 2.5
"""What one look may take; with the pause between looks it keeps Status within 10 s of the truth."""
STALE_S: Final = 12.0
LAG_S: Final = 5.0
"""For so long after a rotation a node of the service may still name the version before; it is not believed."""

_log = structlog.get_logger(__name__)


class Condition(enum.Enum):
    """How the root key is to the plugin."""

    HEALTHY = "healthy"
    REFUSED = "refused"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the last look came to: `reason` in words unless healthy, `key_id` what Encrypt encrypts under, None until
    that is known; `key_state` when the key was seen after a refusal. `at` is monotonic seconds."""

    condition: Condition
    key_id: KeyId | None
    at: float
    reason: str = ""
    key_state: KeyState | None = None


class Health:
    """The newest verdict; any thread may read it or look anew, one at a time."""

    def __init__(
        self,
        client: KeyServiceClient,
        root_key: str,
        cluster_crn: str,
        last: LastKeyId,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._root_key, self._crn = client, root_key, cluster_crn
        self._last, self._monotonic = last, monotonic
        self._looking = threading.Lock()
        self._before: str | None = None
        self._moved_at = 0.0
        known = last.read()
        if known is not None and known.root_key != root_key:
            known = None
        self._verdict = Verdict(Condition.AWAY, known, monotonic(), "The root key was not looked at yet.")

    @property
    def verdict(self) -> Verdict:
        """The newest one, or that nobody looked for too long."""
        found = self._verdict
        age_s = self._monotonic() - found.at
        if found.condition is Condition.HEALTHY and age_s > STALE_S:
            return replace(
                found, condition=Condition.AWAY, reason=f"The root key was last looked at {age_s:.0f} s ago."
            )
        return found

    def look(self) -> Verdict:
        """Wrap and unwrap a canary."""
        with self._looking:
            return self._look()

    def confirms(self, version: str) -> bool:
        """Whether Status names the version that just encrypted; looks anew if that version is a new one."""
        if self._names(version):
            return True
        if version == self._before:
            return False
        with self._looking:
            return self._names(version) or (self._look().condition is Condition.HEALTHY and self._names(version))

    def _names(self, version: str) -> bool:
        known = self._verdict.key_id
        return known is not None and known.version == version

    def _look(self) -> Verdict:
        until = self._monotonic() + LOOK_MOST_S
        try:
            version = self._canary(until)
        except (KeyRefused, CiphertextRefused) as refused:
            return self._take(self._refused(refused, until))
        except AdopterError as away:
            return self._take(self._away(away))
        return self._take(Verdict(Condition.HEALTHY, self._moved(version), self._monotonic()))

    def _canary(self, until: float) -> str:
        canary, aad = secrets.token_bytes(32), aad_of("kubernetes-canary", self._crn, self._root_key)
        wrapped = self._within(until).wrap(self._root_key, SecretBytes(canary), aad)
        opened = self._within(until).unwrap(self._root_key, wrapped.ciphertext, aad)
        if not hmac.compare_digest(opened.plaintext.reveal(), canary):
            raise CiphertextRefused("A canary came back changed. Do not trust this key service; look at its token.")
        return wrapped.key_version

    def _within(self, until: float) -> KeyServiceClient:
        return self._client.within(max(0.1, until - self._monotonic()))

    def _moved(self, version: str) -> KeyId:
        """What Status names from now on."""
        known, now = self._verdict.key_id, self._monotonic()
        if known is not None and (
            known.version == version or (version == self._before and now - self._moved_at < LAG_S)
        ):
            return known
        self._before, self._moved_at = None if known is None else known.version, now
        return KeyId(self._root_key, version)

    def _refused(self, refused: AdopterError, until: float) -> Verdict:
        """With the key's state in words, where it may be seen."""
        reason, state = refused.message, None
        try:
            key = self._within(until).key(self._root_key)
        except AdopterError:
            pass
        else:
            state = key.state
            reason = _STATES.get(key.state, "{reason} ({crn})").format(reason=reason, crn=key.crn)
        return Verdict(Condition.REFUSED, self._verdict.key_id, self._monotonic(), reason, state)

    def _away(self, away: AdopterError) -> Verdict:
        """A service that is away takes back no refusal: that would let a disabled key's cluster go on."""
        before, now = self._verdict, self._monotonic()
        if before.condition is Condition.REFUSED:
            return replace(before, at=now)
        return Verdict(Condition.AWAY, before.key_id, now, away.message)

    def _take(self, found: Verdict) -> Verdict:
        before, self._verdict = self._verdict, found
        if found.condition is not before.condition:
            level = _log.info if found.condition is Condition.HEALTHY else _log.error
            level(f"root key {found.condition.value}", key_id=str(found.key_id), reason=found.reason)
        elif found.key_id != before.key_id:
            _log.info("root key rotated", key_id=str(found.key_id), before=str(before.key_id))
        if found.condition is Condition.REFUSED:
            self._last.forget()
        elif found.condition is Condition.HEALTHY and found.key_id is not None:
            self._last.write(found.key_id)
        return found


_STATES: Final = {
    KeyState.SUSPENDED: "The root key is disabled. Enable it to use the cluster's secrets again ({crn}).",
    KeyState.DEACTIVATED: "The root key has expired: it decrypts and encrypts no more. Move the cluster's secrets to "
    "another root key ({crn}).",
    KeyState.DESTROYED: "The root key is deleted. Restore it: a purge would lose the cluster's secrets ({crn}).",
}
