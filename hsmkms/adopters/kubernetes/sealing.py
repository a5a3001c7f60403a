"""Encrypts and decrypts the API server's DEKs: one call of the key service for each.

A DEK is bound, beside the root key, to the cluster, to the root key's id and to a name of its own, which lies beside it
in etcd as an annotation. What was encrypted for another cluster, or under another key_id, does not open.
"""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass
from typing import Final

import structlog

from hsmkms.adopters.client import CiphertextRefused, KeyRefused, KeyServiceAway, KeyServiceClient
from hsmkms.adopters.core.dek_file import aad_of, new_dek_id
from hsmkms.adopters.kubernetes.cache import DekCache
from hsmkms.adopters.kubernetes.health import Condition, Health
from hsmkms.adopters.kubernetes.key_id import KeyId
from hsmkms.adopters.kubernetes.refusals import KeyUnusable, RequestInvalid
from hsmkms.domain.secrets import SecretBytes

KIND: Final = "kubernetes"
MAX_CIPHERTEXT_BYTES: Final = 1024
"""What the API server takes."""
MAX_PLAINTEXT_BYTES: Final = 320
"""What fits in there; the API server's DEKs have 32."""
_TRIES: Final = 3
_PAUSE_S: Final = 0.3

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted DEK, its own name, and what it was encrypted under."""

    ciphertext: bytes
    dek_id: str
    key_id: KeyId


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of the API server may take, in seconds, and its UID, which may be empty."""

    within_s: float
    uid: str = ""

    @property
    def correlation_id(self) -> str | None:
        """The UID as the key service takes it, so that its audit trail and the API server's log can be joined."""
        try:
            return str(uuid.UUID(self.uid))
        except ValueError:
            return None


class Sealing:
    """Both directions; threads may share it. Raises AdopterError, and RequestInvalid for what cannot be meant."""

    def __init__(
        self, client: KeyServiceClient, root_key: str, cluster_crn: str, health: Health, cache: DekCache
    ) -> None:
        self._client, self._root_key, self._crn = client, root_key, cluster_crn
        self._health, self._cache = health, cache

    def seal(self, plaintext: bytes, call: Call) -> Sealed:
        """Encrypt under what Status names; refused while that is not healthy."""
        if not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise RequestInvalid(f"A plaintext has 1 to {MAX_PLAINTEXT_BYTES} bytes, not {len(plaintext)}.")
        until, dek_id = time.monotonic() + call.within_s, new_dek_id()
        for _ in range(_TRIES):
            self._require_healthy()
            client = self._client.within(max(0.1, until - time.monotonic()), call.correlation_id)
            wrapped = client.wrap(self._root_key, SecretBytes(plaintext), self._aad(self._root_key, dek_id))
            if self._health.confirms(wrapped.key_version):
                return Sealed(wrapped.ciphertext.encode(), dek_id, KeyId(self._root_key, wrapped.key_version))
            # A node of the service that has not heard of the rotation yet; within a second it has.
            pause_s = _PAUSE_S * random.uniform(0.5, 1)  # noqa: S311
            if time.monotonic() + pause_s >= until:
                break
            time.sleep(pause_s)
        raise KeyServiceAway("The root key is being rotated. Ask again.")

    def open(self, sealed: Sealed, call: Call) -> SecretBytes:
        """Decrypt what any version of the root key encrypted."""
        if not 1 <= len(sealed.ciphertext) <= MAX_CIPHERTEXT_BYTES:
            raise RequestInvalid(f"A ciphertext of this plugin has 1 to {MAX_CIPHERTEXT_BYTES} bytes.")
        try:
            ciphertext = sealed.ciphertext.decode("ascii")
        except UnicodeDecodeError as error:
            raise RequestInvalid("The ciphertext is not one of this plugin, or is damaged.") from error
        aad = self._aad(sealed.key_id.root_key, sealed.dek_id)
        refused = self._health.verdict.condition is Condition.REFUSED
        kept = None if refused else self._cache.get(sealed.ciphertext, aad)
        if kept is not None:
            return kept
        try:
            opened = self._client.within(call.within_s, call.correlation_id).unwrap(self._root_key, ciphertext, aad)
        except KeyRefused:
            self._cache.clear()
            raise
        except CiphertextRefused as error:
            raise RequestInvalid(self._why(sealed, error)) from error
        self._cache.put(sealed.ciphertext, aad, opened.plaintext)
        return opened.plaintext

    def _require_healthy(self) -> None:
        verdict = self._health.verdict
        if verdict.condition is Condition.REFUSED:
            raise KeyUnusable(verdict.reason)
        if verdict.condition is not Condition.HEALTHY:
            raise KeyServiceAway(verdict.reason)

    def _aad(self, root_key: str, dek_id: str) -> tuple[str, ...]:
        return aad_of(KIND, self._crn, f"{root_key}/{dek_id}")

    def _why(self, sealed: Sealed, error: CiphertextRefused) -> str:
        if sealed.key_id.root_key != self._root_key:
            return (
                f"This was encrypted under root key {sealed.key_id.root_key}; this plugin uses {self._root_key}. Run a "
                "plugin for that one too, under the provider's name that it had."
            )
        return f"{error.message} It is damaged, or another cluster's ({self._crn} is this one)."
