"""Wrap, unwrap, rewrap: the main job. No SQL, no token search and no new thread when warm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import msgspec

from hsmkms.clock import Clock
from hsmkms.domain import ciphertext
from hsmkms.domain.access import Action, Caller, Target, allows
from hsmkms.domain.keys import Key, KeyAction, KeyVersion, require_usable
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import InvalidField, KeyNotFound, Unauthorized, UnprocessableCiphertext
from hsmkms.service.authorize import authorize, authorize_within
from hsmkms.service.snapshot import Snapshot
from hsmkms.token.room import Token

T = TypeVar("T")

GENERATED_DEK_BYTES: Final = 32
MAX_PLAINTEXT_BYTES: Final = 4_096
MAX_AAD_STRINGS: Final = 255
MAX_AAD_CHARS: Final = 255


class Wrapped(msgspec.Struct, frozen=True):
    """`plaintext` only if the service generated it."""

    key: Key
    ciphertext: str
    version: KeyVersion
    plaintext: SecretBytes | None


class Unwrapped(msgspec.Struct, frozen=True):
    """`version` made the submitted ciphertext. `ciphertext` is new, and only there if that was not the current one."""

    key: Key
    plaintext: SecretBytes
    version: KeyVersion
    ciphertext: str | None
    rewrapped: KeyVersion | None


class Rewrapped(msgspec.Struct, frozen=True):
    """`version` made the submitted ciphertext, `rewrapped` the new one; they may be the same."""

    key: Key
    ciphertext: str
    version: KeyVersion
    rewrapped: KeyVersion


class CryptoService:
    """Each method raises Unauthorized, KeyNotFound, KeyDeleted, KeyRootRequired, KeyStateConflict, InvalidField."""

    def __init__(
        self,
        token: Token,
        snapshot: Snapshot,
        clock: Clock,
        threads: ThreadPoolExecutor,
        lookups: ThreadPoolExecutor,
    ) -> None:
        """`threads` call a token that is slow, `lookups` the database."""
        self._token = token
        self._snapshot = snapshot
        self._clock = clock
        self._threads = threads
        self._lookups = lookups
        self._inline = token.is_fast

    async def wrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        plaintext: bytes | None,
        aad: Sequence[str],
    ) -> Wrapped:
        """Seal `plaintext` (1 to 4,096 bytes), or 32 random bytes of the token if it is None."""
        key = await self.find(caller, Action.KEY_WRAP, instance_id, reference, key_ring_id)
        self._require_wrapping(key, plaintext, aad)
        return await self.on_token(lambda: self.wrap_here(key, plaintext, aad))

    async def unwrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        text: str,
        aad: Sequence[str],
    ) -> Unwrapped:
        """Open a ciphertext; if an older version made it, also seal it anew. Raises UnprocessableCiphertext."""
        key = await self.find(caller, Action.KEY_UNWRAP, instance_id, reference, key_ring_id)
        require_usable(key, KeyAction.UNWRAP, self._clock())
        handle_id, sealed = parse(text, aad)
        known = await self._knowing(key, handle_id, KeyAction.UNWRAP)
        return await self.on_token(lambda: self.unwrap_here(known, handle_id, sealed, aad))

    async def rewrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        text: str,
        aad: Sequence[str],
    ) -> Rewrapped:
        """Seal the content of a ciphertext under the newest version. Raises UnprocessableCiphertext."""
        key = await self.find(caller, Action.KEY_REWRAP, instance_id, reference, key_ring_id)
        require_usable(key, KeyAction.REWRAP, self._clock())
        handle_id, sealed = parse(text, aad)
        key = await self._knowing(key, handle_id, KeyAction.REWRAP)

        def rewrap() -> Rewrapped:
            plaintext, version = self._open(key, handle_id, sealed, aad)
            return Rewrapped(key, self._seal(key.current, plaintext.reveal(), aad), version, key.current)

        return await self.on_token(rewrap)

    def warm_wrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        plaintext: bytes | None,
        aad: Sequence[str],
    ) -> Callable[[], Wrapped] | None:
        """What is left to do of `wrap`: one call of the token, on this thread. None if it would have to wait for
        anything else. Raises what `wrap` raises."""
        key = self._warm(caller, Action.KEY_WRAP, instance_id, reference, key_ring_id)
        if key is None:
            return None
        self._require_wrapping(key, plaintext, aad)
        return partial(self.wrap_here, key, plaintext, aad)

    def warm_unwrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        text: str,
        aad: Sequence[str],
    ) -> Callable[[], Unwrapped] | None:
        """The same for `unwrap`."""
        key = self._warm(caller, Action.KEY_UNWRAP, instance_id, reference, key_ring_id)
        if key is None:
            return None
        require_usable(key, KeyAction.UNWRAP, self._clock())
        handle_id, sealed = parse(text, aad)
        return None if key.version(handle_id) is None else partial(self.unwrap_here, key, handle_id, sealed, aad)

    def wrap_here(self, key: Key, plaintext: bytes | None, aad: Sequence[str]) -> Wrapped:
        """The call of the token that `wrap` makes, once its input was checked; on this thread."""
        version = key.current
        if plaintext is not None:
            return Wrapped(key, self._seal(version, plaintext, aad), version, None)
        generated = self._token.random(GENERATED_DEK_BYTES)
        return Wrapped(key, self._seal(version, generated.reveal(), aad), version, generated)

    def unwrap_here(self, key: Key, handle_id: str, sealed: bytes, aad: Sequence[str]) -> Unwrapped:
        """The same for `unwrap`, of what `parse` made of a ciphertext."""
        plaintext, version = self._open(key, handle_id, sealed, aad)
        if version is key.current and handle_id == version.id:
            return Unwrapped(key, plaintext, version, None, None)
        return Unwrapped(key, plaintext, version, self._seal(key.current, plaintext.reveal(), aad), key.current)

    def require_usable(self, key: Key, action: KeyAction) -> None:
        """Raise unless the key's state permits it now (see `domain.keys`)."""
        require_usable(key, action, self._clock())

    def _require_wrapping(self, key: Key, plaintext: bytes | None, aad: Sequence[str]) -> None:
        require_usable(key, KeyAction.WRAP, self._clock())
        require_sealable(plaintext, aad)

    def _warm(
        self, caller: Caller, action: Action, instance_id: str, reference: str, key_ring_id: str | None
    ) -> Key | None:
        """The key, if its use takes no other thread: it is in memory, the caller may use it, the token is fast."""
        if not self._inline:
            return None
        found = self._snapshot.both(instance_id, reference)
        if found is None:
            return None
        instance, key = found
        if key_ring_id is not None and key_ring_id != key.key_ring_id:
            return None
        target = Target(instance.account, instance_id, key.key_ring_id, key.id)
        return key if allows(caller, action, target) else None

    async def find(
        self, caller: Caller, action: Action, instance_id: str, reference: str, key_ring_id: str | None
    ) -> Key:
        """The key, from memory when the caller may use it; only who has the right on the instance or ring hears that
        a key is not there."""
        instance = self._snapshot.instance(instance_id)
        if instance is None:
            raise Unauthorized
        key = self._snapshot.remembered(instance_id, reference)
        if key is not None and key_ring_id in (None, key.key_ring_id):
            target = Target(instance.account, instance_id, key.key_ring_id, key.id)
            if allows(caller, action, target):
                return key
        # Also what will be refused takes this way: else the time would tell whether a key of this alias exists.
        may_hear = authorize_within(caller, action, Target(instance.account, instance_id, key_ring_id))
        key = await self.load(instance_id, reference)
        if key is None or key_ring_id not in (None, key.key_ring_id):
            raise KeyNotFound if may_hear else Unauthorized
        authorize(caller, action, Target(instance.account, instance_id, key.key_ring_id, key.id))
        return key

    async def load(self, instance_id: str, reference: str) -> Key | None:
        """The key from the database."""
        return await asyncio.get_running_loop().run_in_executor(
            self._lookups, self._snapshot.load, instance_id, reference
        )

    async def _knowing(self, key: Key, handle_id: str, action: KeyAction) -> Key:
        """The key, from the database if it does not know the version that a ciphertext names: another node may have
        made that version just now, before the change feed told."""
        if key.version(handle_id) is not None:
            return key
        found = await self.load(key.instance_id, key.id)
        if found is None:
            raise KeyNotFound
        require_usable(found, action, self._clock())
        return found

    async def on_token(self, call: Callable[[], T]) -> T:
        """Run what calls the token, on the thread that suits it."""
        if self._inline:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _seal(self, version: KeyVersion, dek: bytes, aad: Sequence[str]) -> str:
        return ciphertext.encode(version.id, self._token.seal(version, dek, aad))

    def _open(self, key: Key, handle_id: str, sealed: bytes, aad: Sequence[str]) -> tuple[SecretBytes, KeyVersion]:
        """Open with the version that the ciphertext names. A name that is not this key's may be of material that was
        imported again, so its own versions are tried, newest first; the frame stays bound to the name."""
        named = key.version(handle_id)
        for version in key.versions if named is None else (named,):
            try:
                return self._token.open(version, handle_id, sealed, aad), version
            except UnprocessableCiphertext:
                continue
        raise UnprocessableCiphertext


def require_sealable(plaintext: bytes | None, aad: Sequence[str]) -> None:
    """Raise InvalidField for a plaintext or AAD that cannot be sealed."""
    _require_aad(aad)
    if plaintext is not None and not 1 <= len(plaintext) <= MAX_PLAINTEXT_BYTES:
        raise InvalidField("plaintext", f"The field `plaintext` must hold 1 to {MAX_PLAINTEXT_BYTES} bytes.")


def parse(text: str, aad: Sequence[str]) -> tuple[str, bytes]:
    """Version id and sealed bytes of a ciphertext. Raises InvalidField, UnprocessableCiphertext."""
    _require_aad(aad)
    return ciphertext.decode(text)


def _require_aad(aad: Sequence[str]) -> None:
    """At most 255 strings of at most 255 characters (additions section 4)."""
    if aad and (len(aad) > MAX_AAD_STRINGS or max(map(len, aad)) > MAX_AAD_CHARS):
        raise InvalidField(
            "aad", f"The field `aad` takes {MAX_AAD_STRINGS} strings of {MAX_AAD_CHARS} characters each."
        )
    if (
        aad
        and not all(map(str.isascii, aad))
        and any("\ud800" <= character <= "\udfff" for text in aad for character in text)
    ):
        raise InvalidField("aad", "The field `aad` must hold valid Unicode strings.")
