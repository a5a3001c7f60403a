"""Decrypted DEKs in memory for a bounded time, so that a restart of the API server survives a short absence of the key
service. Off unless asked for: while it is on, a disabled key decrypts until that is noticed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from hsmkms.domain.secrets import SecretBytes

MAX_LIFE_S: Final = 3600.0
_MOST: Final = 10_000


class DekCache:
    """DEKs by everything that was asked for with them, each for `life_s` seconds from when the key service opened it.
    With 0 it keeps nothing. Threads may share it."""

    def __init__(self, life_s: float, *, most: int = _MOST, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._life_s, self._most, self._monotonic = life_s, most, monotonic
        self._kept: OrderedDict[bytes, tuple[float, SecretBytes]] = OrderedDict()
        self._changing = threading.Lock()

    def get(self, ciphertext: bytes, aad: Sequence[str]) -> SecretBytes | None:
        """The DEK, if its time is not over."""
        if not self._life_s:
            return None
        with self._changing:
            self._expire()
            found = self._kept.get(_name(ciphertext, aad))
        return None if found is None else found[1]

    def put(self, ciphertext: bytes, aad: Sequence[str], dek: SecretBytes) -> None:
        """Keep a DEK that the key service just opened."""
        if not self._life_s:
            return
        with self._changing:
            self._expire()
            name = _name(ciphertext, aad)
            self._kept.pop(name, None)
            self._kept[name] = (self._monotonic() + self._life_s, dek)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing that was opened until now."""
        with self._changing:
            self._kept.clear()

    def __len__(self) -> int:
        with self._changing:
            self._expire()
            return len(self._kept)

    def _expire(self) -> None:
        """Oldest first, which is the order in which they were put."""
        now = self._monotonic()
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._kept.popitem(last=False)


def _name(ciphertext: bytes, aad: Sequence[str]) -> bytes:
    digest = hashlib.sha256()
    for part in (ciphertext, *(text.encode() for text in aad)):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
