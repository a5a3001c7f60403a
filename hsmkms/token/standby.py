"""Two tokens that hold the same keys: a primary that does everything, and a standby that opens what it cannot.

What needs a key and changes nothing (seal, open, sign, MAC, random bytes) goes to the primary, and to the standby when
the primary's breaker is open or it fails this very call. Nothing is remembered of that: the next call asks the breaker
of the primary again, so the way back is the primary's own canary.

What makes or destroys an object is done on the primary alone. How a key that cannot be extracted gets to the standby is
the HSM group's matter (replication, cloning, one security world); this service waits until it is there, and a new key
counts only when the standby opened what the primary sealed, and the primary what the standby sealed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.domain.importing import Carried, ImportToken, WrappedMaterial
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import TokenAway, TokenBusy, TokenRefused, TokenUnavailable, UnprocessableCiphertext
from hsmkms.token.recovery import SENTINEL_ID
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenInfo

T = TypeVar("T")

_POLL_S: Final = 0.05
_NOT_THERE: Final = "The standby token did not get the new key in time, so the key is not used. Try again."
_PROOF: Final = b"hsmkms: a new key is proved"


class PairedToken(Token):
    """A primary with its standby. Methods raise as those of Token."""

    def __init__(self, pool: SessionPool, standby: Token, proof_s: float) -> None:
        """`pool` is the primary's; a new key must be proved on `standby` within `proof_s` seconds."""
        self._standby = standby
        self._proof_s = proof_s
        super().__init__(pool)

    @property
    def parts(self) -> dict[str, Token]:
        return {**super().parts, "standby": self._standby}

    @property
    def info(self) -> TokenInfo:
        """Of the primary, or of the standby before the primary was proved."""
        return super().info if self.is_proved else self._standby.info

    @property
    def call_s(self) -> float:
        return max(super().call_s, self._standby.call_s)

    def check(self) -> None:
        """Ask both. Raises TokenUnavailable when neither answers."""
        try:
            self._standby.check()
        except (TokenUnavailable, TokenBusy):
            super().check()
        else:
            self._either(super().check, lambda: None)

    def require_same_keys(self) -> None:
        """Raise TokenRefused unless both hold the sentinel, the MAC key and their keys are the same.

        Raises TokenUnavailable when one of them does not answer.
        """
        if not self._standby.has_sentinel() or not self._standby.has_mac_key():
            raise TokenRefused("The standby token lacks the deployment's own keys. Replicate the primary first.")
        same_sentinel = super().check_value_of(SENTINEL_ID) == self._standby.check_value_of(SENTINEL_ID)
        if not same_sentinel or super().mac(_PROOF) != self._standby.mac(_PROOF):
            raise TokenRefused("The standby token holds other keys than the primary. It is not used.")

    def seal(self, version: KeyVersion, dek: bytes, aad: Sequence[str]) -> bytes:
        """As of Token, by either."""
        return self._either(lambda: Token.seal(self, version, dek, aad), lambda: self._standby.seal(version, dek, aad))

    def open(self, version: KeyVersion, handle_id: str, sealed: bytes, aad: Sequence[str]) -> SecretBytes:
        """As of Token, by either."""
        return self._either(
            lambda: Token.open(self, version, handle_id, sealed, aad),
            lambda: self._standby.open(version, handle_id, sealed, aad),
        )

    def random(self, length: int) -> SecretBytes:
        """As of Token, by either."""
        return self._either(lambda: Token.random(self, length), lambda: self._standby.random(length))

    def sign(self, key_id: str, message: bytes) -> bytes:
        """As of Token, by either."""
        return self._either(lambda: Token.sign(self, key_id, message), lambda: self._standby.sign(key_id, message))

    def signing_public_key(self, key_id: str) -> bytes:
        """As of Token, by either."""
        return self._either(
            lambda: Token.signing_public_key(self, key_id), lambda: self._standby.signing_public_key(key_id)
        )

    def mac(self, message: bytes) -> bytes:
        """As of Token, by either."""
        return self._either(lambda: Token.mac(self, message), lambda: self._standby.mac(message))

    def has_sentinel(self) -> bool:
        """As of Token, by either."""
        return self._either(lambda: Token.has_sentinel(self), self._standby.has_sentinel)

    def has_mac_key(self) -> bool:
        """As of Token, by either."""
        return self._either(lambda: Token.has_mac_key(self), self._standby.has_mac_key)

    def verify_key(self, version: KeyVersion) -> None:
        """As of Token, by either."""
        self._either(lambda: Token.verify_key(self, version), lambda: self._standby.verify_key(version))

    def generate_key(self, version_id: str, owner: str, created_at: datetime) -> KeyVersion:
        """As of Token; not while the standby is away."""
        self._require_standby()
        return super().generate_key(version_id, owner, created_at)

    def create_key(self, version_id: str, owner: str, created_at: datetime, value: SecretBytes) -> KeyVersion:
        """As of Token; not while the standby is away."""
        self._require_standby()
        return super().create_key(version_id, owner, created_at, value)

    def import_key(
        self, version_id: str, owner: str, created_at: datetime, material: WrappedMaterial, import_token: ImportToken
    ) -> KeyVersion:
        """As of Token; not while the standby is away."""
        self._require_standby()
        return super().import_key(version_id, owner, created_at, material, import_token)

    def create_carried_key(self, version_id: str, owner: str, created_at: datetime, carried: Carried) -> KeyVersion:
        """As of Token; not while the standby is away."""
        self._require_standby()
        return super().create_carried_key(version_id, owner, created_at, carried)

    def make_sentinel(self) -> None:
        """As of Token; proved on both."""
        # Its canary is the sentinel, so that it can only be asked whether it answers.
        self._standby.has_sentinel()
        self.prove_key(Token.generate_key(self, SENTINEL_ID, "sentinel", datetime.min.replace(tzinfo=UTC)))

    def prove_key(self, version: KeyVersion) -> None:
        """Each token opens what the other one sealed with the key. Raises TokenUnavailable unless they do in time."""
        there = self._wait_for(
            lambda: self._standby.has_key(version.id) and _given(lambda: self._standby.seal(version, _PROOF, ()))
        )
        Token.prove_key(self, version)
        here = Token.seal(self, version, _PROOF, ())
        try:
            opened = self._standby.open(version, version.id, here, ()), Token.open(self, version, version.id, there, ())
        except UnprocessableCiphertext as error:
            raise TokenUnavailable(_NOT_THERE) from error
        if any(one.reveal() != _PROOF for one in opened):
            raise TokenUnavailable(_NOT_THERE)

    def destroy_key(self, version_id: str) -> bool:
        """As of Token, on both: a group need not replicate that an object is gone."""
        self._require_standby()
        found = super().destroy_key(version_id)
        return self._standby.destroy_key(version_id) or found

    def generate_transport_key(self, key_id: str, owner: str, *, by_process: bool) -> bytes:
        """As of Token; not while the standby is away."""
        try:
            self._require_standby()
        except (TokenUnavailable, TokenBusy):
            self._never_made.add(key_id)
            raise
        return super().generate_transport_key(key_id, owner, by_process=by_process)

    def destroy_transport_key(self, key_id: str) -> bool:
        """As of Token, on both."""
        if key_id in self._never_made:
            return super().destroy_transport_key(key_id)
        self._require_standby()
        found = super().destroy_transport_key(key_id)
        return self._standby.destroy_transport_key(key_id) or found

    def generate_signing_key(self, key_id: str) -> bytes:
        """As of Token; the standby signs with it before anybody relies on it."""
        self._require_standby()
        pem = super().generate_signing_key(key_id)
        signature = self._wait_for(
            lambda: self._standby.has_signing_key(key_id) and _given(lambda: self._standby.sign(key_id, _PROOF))
        )
        der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        public = serialization.load_pem_public_key(pem)
        try:
            if isinstance(public, ec.EllipticCurvePublicKey):
                public.verify(der, _PROOF, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise TokenUnavailable(_NOT_THERE) from error
        return pem

    def destroy_signing_key(self, key_id: str) -> None:
        """As of Token, on both."""
        self._require_standby()
        super().destroy_signing_key(key_id)
        try:
            self._standby.destroy_signing_key(key_id)
        except TokenUnavailable:
            # The group may have taken it away between the look and the call.
            self._standby.destroy_signing_key(key_id)

    def make_mac_key(self) -> None:
        """As of Token; both give the same MAC before anything is sealed by it."""
        self._standby.has_mac_key()
        super().make_mac_key()
        here = Token.mac(self, _PROOF)
        self._wait_for(lambda: self._standby.has_mac_key() and _given(lambda: self._standby.mac(_PROOF)) == here)

    def _require_standby(self) -> None:
        """Before anything is made or destroyed: what only the primary has made counts for nothing and could not even be
        destroyed, and what only the primary has destroyed is still there. Raises TokenUnavailable or TokenBusy."""
        self._standby.check()

    def _either(self, primary: Callable[[], T], standby: Callable[[], T]) -> T:
        try:
            return primary()
        except (TokenUnavailable, TokenBusy):
            return standby()

    def _wait_for(self, there: Callable[[], T | Literal[False] | None]) -> T:
        """What it gives at last. A group tells nobody when it has replicated an object; it has to be looked for."""
        deadline = time.monotonic() + self._proof_s
        while not (found := there()):
            if time.monotonic() > deadline:
                raise TokenUnavailable(_NOT_THERE)
            time.sleep(_POLL_S)
        return found


def _given(use: Callable[[], bytes]) -> bytes | None:
    """What a new key gives on the standby; None while it cannot be used, for a group may show an object before all of
    it is there. Raises TokenAway when it is the standby that does not answer."""
    try:
        return use()
    except TokenAway:
        raise
    except TokenUnavailable:
        return None
