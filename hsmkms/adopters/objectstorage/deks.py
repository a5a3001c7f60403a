"""DEKs in memory, each for a bounded time, looked up once however many ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hsmkms.adopters.client import AdopterError, CiphertextRefused, ConnectionInvalid, KeyRefused, KeyServiceAway
from hsmkms.domain.secrets import SecretBytes

_REFUSED_S: Final = 1.0
"""So long a refusal is believed without asking again: a bucket that many read must not be many calls."""
_AWAY_AGAIN_S: Final = 5.0
"""So often a key service that is away is asked while DEKs serve on."""


@dataclass
class _Entry:
    """`until` is when to ask again; `heard_at` when the key service last said that the DEK may be used."""

    looking: threading.Lock = field(default_factory=threading.Lock)
    secret: SecretBytes | None = None
    refusal: AdopterError | None = None
    until: float = 0.0
    heard_at: float = 0.0


class DekCache:
    """May be used by many threads, green ones too."""

    def __init__(
        self,
        cache_s: float,
        away_limit_s: float,
        warn: Callable[[str], object],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache_s, self._away_limit_s, self._warn, self._monotonic = cache_s, away_limit_s, warn, monotonic
        self._entries: dict[str, _Entry] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return sum(entry.secret is not None for entry in list(self._entries.values()))

    def get(self, dek_id: str, unwrap: Callable[[], SecretBytes]) -> SecretBytes:
        """The DEK, by `unwrap` if what is in memory is too old.

        Raises what `unwrap` raises: KeyRefused, CiphertextRefused; KeyServiceAway and ConnectionInvalid only when
        there is no DEK, or no word of the key service for longer than the limit.
        """
        self._sweep()
        entry = self._entries.setdefault(dek_id, _Entry())
        if self._monotonic() >= entry.until:
            with entry.looking:
                if self._monotonic() >= entry.until:
                    self._look(dek_id, entry, unwrap)
        secret, refusal = entry.secret, entry.refusal
        if secret is not None:
            return secret
        # Another sentence of the same kind: an exception that is raised twice would gather tracebacks.
        raise _again(refusal)

    def put(self, dek_id: str, secret: SecretBytes) -> None:
        """A DEK that the key service gave just now."""
        now = self._monotonic()
        self._entries[dek_id] = _Entry(secret=secret, until=now + self._cache_s, heard_at=now)

    def _look(self, dek_id: str, entry: _Entry, unwrap: Callable[[], SecretBytes]) -> None:
        asked_at = self._monotonic()
        try:
            secret = unwrap()
        except (KeyServiceAway, ConnectionInvalid) as away:
            silent_s = self._monotonic() - entry.heard_at
            if entry.secret is not None and silent_s < self._away_limit_s:
                pause_s = min(self._cache_s, _AWAY_AGAIN_S, self._away_limit_s - silent_s)
                self._warn(f"DEK {dek_id} serves on without the key service, for {silent_s:.0f} s now: {away.message}")
                entry.until = self._monotonic() + pause_s
                return
            entry.secret, entry.refusal, entry.until = None, away, self._monotonic() + _REFUSED_S
        except (KeyRefused, CiphertextRefused) as refused:
            self._warn(f"DEK {dek_id}: {refused.message}")
            entry.secret, entry.refusal, entry.until = None, refused, self._monotonic() + _REFUSED_S
        else:
            # From when it was asked, not from when it was answered: the key may have been disabled in between.
            entry.secret, entry.refusal, entry.until, entry.heard_at = secret, None, asked_at + self._cache_s, asked_at

    def _sweep(self) -> None:
        """Forget what nobody asked for any more."""
        now = self._monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + self._cache_s
        kept_s = max(self._cache_s, self._away_limit_s)
        for dek_id, entry in list(self._entries.items()):
            if now >= entry.until and now >= entry.heard_at + kept_s and not entry.looking.locked():
                self._entries.pop(dek_id, None)


def _again(refusal: AdopterError | None) -> AdopterError:
    match refusal:
        case KeyRefused():
            return KeyRefused(refusal.reason_code, refusal.words)
        case CiphertextRefused():
            return CiphertextRefused(refusal.message)
        case KeyServiceAway():
            return KeyServiceAway(refusal.message, refusal.retry_after_s)
        case _:
            return KeyServiceAway("The key service did not answer." if refusal is None else refusal.message)
