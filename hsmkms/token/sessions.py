"""The loaded module, one login per process, and a bounded pool of sessions that threads cannot misuse.

A session is lent to one caller at a time. When anything is wrong with session, login or device, `reopen` waits until
every session is home, then does C_Finalize, C_Initialize, C_Login and opens the pool anew under the next `generation`;
handles of an older generation mean nothing. The same is done after `recycle_after` destroyed objects, because SoftHSM
2.6.1 keeps about 240 bytes of each until C_Finalize.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import PinRefused, TokenBusy, TokenRefused, TokenUnavailable, Unavailable
from hsmkms.telemetry import metrics
from hsmkms.token import cryptoki as ck
from hsmkms.token.returned import (
    CKR_OK,
    CKR_PIN_EXPIRED,
    CKR_PIN_INCORRECT,
    CKR_PIN_LOCKED,
    CKR_USER_ALREADY_LOGGED_IN,
    CryptokiError,
)


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """Which token: a PKCS#11 library and a label, a serial number, or both. Slot numbers move and are not used."""

    module: str
    label: str | None
    serial: str | None

    def __str__(self) -> str:
        named = [f"label {self.label!r}"] * (self.label is not None) + [f"serial {self.serial!r}"] * bool(self.serial)
        return " and ".join(named)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What C_GetTokenInfo says."""

    slot: int
    label: str
    serial: str
    manufacturer: str
    model: str
    firmware: str
    flags: int
    max_sessions: int


def list_tokens(functions: ck.CData) -> list[TokenInfo]:
    """All present tokens of an initialised module."""
    count = ck.ffi.new("CK_ULONG *")
    ck.check("C_GetSlotList", functions.C_GetSlotList(1, ck.ffi.NULL, count))
    slots = ck.ffi.new("CK_ULONG[]", count[0] + 1)
    ck.check("C_GetSlotList", functions.C_GetSlotList(1, slots, count))
    tokens = []
    for slot in slots[0 : count[0]]:
        info = ck.ffi.new("CK_TOKEN_INFO *")
        ck.check("C_GetTokenInfo", functions.C_GetTokenInfo(slot, info))
        tokens.append(
            TokenInfo(
                slot=int(slot),
                label=_text(info.label),
                serial=_text(info.serial),
                manufacturer=_text(info.manufacturer),
                model=_text(info.model),
                firmware=f"{info.firmware[0]}.{info.firmware[1]}",
                flags=int(info.flags),
                max_sessions=int(info.max_sessions),
            )
        )
    return tokens


def _text(padded: ck.CData) -> str:
    return bytes(padded).rstrip(b" \0").decode("utf-8", "replace")


class SessionPool:
    """Sessions with one token, logged in as the normal user. Safe for threads and after a fork."""

    def __init__(self, address: TokenAddress, pin: SecretText, *, size: int, wait_s: float, recycle_after: int) -> None:
        """Load the library and open `size` sessions; a caller waits at most `wait_s` seconds for one.

        Raises TokenRefused, PinRefused or TokenUnavailable.
        """
        self._address = address
        self._pin = pin
        self._size = size
        self._wait_s = wait_s
        self._recycle_after = recycle_after
        self._functions = ck.load_functions(address.module)
        self._condition = threading.Condition()
        self._free: deque[ck.Session] = deque()
        self._open_count = 0
        self._sessions: list[ck.Session] = []
        self._opening_at = math.inf
        self._patient_until = 0.0
        self._draining = False
        self._destroyed_objects = 0
        self._refused: PinRefused | None = None
        self._retry_at = 0.0
        self.generation = 0
        self.info: TokenInfo
        renew_after_fork(self)
        self._open()

    @contextlib.contextmanager
    def session(self) -> Iterator[ck.Session]:
        """Lend a session. Raises TokenBusy after `wait_s` seconds, TokenUnavailable while there is no token."""
        session = self.take()
        try:
            yield session
        finally:
            self.give(session)

    def take(self) -> ck.Session:
        """Borrow a session; the borrower must `give` it back. Raises like `session`."""
        with self._condition:
            if self._free and not self._draining:
                session = self._free.pop()
                session.lent_at = time.monotonic()
                return session
        session = self._wait_for_session()
        session.lent_at = time.monotonic()
        return session

    def give(self, session: ck.Session) -> None:
        """Return a borrowed session; now and then this recycles the module (see the module's docstring)."""
        session.lent_at, session.patience_s = math.inf, 0.0
        with self._condition:
            self._destroyed_objects += session.destroyed_objects
            session.destroyed_objects = 0
            self._free.append(session)
            due = self._destroyed_objects >= self._recycle_after and not self._draining
            generation = self.generation
            self._condition.notify_all()
        if due:
            # The borrower's call is done and must not fail for this. When the other sessions do not come home in time
            # the memory is reclaimed at a later return; when the token is away the next borrower is told.
            with contextlib.suppress(Unavailable):
                self.reopen(generation)

    def reopen(self, seen_generation: int) -> None:
        """Start the module anew unless somebody did since `seen_generation`.

        The caller must have given its session back. Raises TokenBusy when sessions do not come home within `wait_s`,
        TokenUnavailable or PinRefused when the token cannot be opened.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: not self._draining, self._wait_s):
                raise TokenBusy("The HSM is being opened anew. Try again.")
            if self.generation != seen_generation:
                return
            self._draining = True
            try:
                if not self._condition.wait_for(lambda: len(self._free) == self._open_count, self._wait_s):
                    raise TokenBusy("The HSM is busy. Try again.")
                self._open()
            finally:
                self._draining = False
                self._condition.notify_all()

    def close(self) -> None:
        """Close all sessions and finalise the module. Sessions that are still out become invalid."""
        with self._condition:
            self._opening_at = time.monotonic()
            self._free.clear()
            self._sessions = []
            self._open_count = 0
            # C_Finalize closes them too; but a device in the network may not hear of that, and has few. One that is
            # away has none to close.
            self._functions.C_CloseAllSessions(self.info.slot)
            with contextlib.suppress(CryptokiError):
                ck.finalize(self._functions)
            self._opening_at = math.inf

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """For work that may take so long, and holds up other callers: nobody counts as late meanwhile. By one at a
        time."""
        self._patient_until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._patient_until = 0.0

    def longest_call_s(self) -> float:
        """For how many seconds the slowest caller has had its session, or the module is being opened, beyond its
        patience; negative when there is none. Takes no lock, because who hangs may hold it."""
        now = time.monotonic()
        if now < self._patient_until:
            return -math.inf
        waited = [now - session.lent_at - session.patience_s for session in tuple(self._sessions)]
        return max((now - self._opening_at - _OPENING_PATIENCE_S, *waited))

    @property
    def open_sessions(self) -> int:
        """How many sessions there are."""
        return self._open_count

    @property
    def lent_sessions(self) -> int:
        """How many of them somebody has."""
        return max(0, self._open_count - len(self._free))

    def mechanisms(self) -> frozenset[int]:
        """Mechanism numbers of the token (C_GetMechanismList)."""
        count = ck.ffi.new("CK_ULONG *")
        ck.check("C_GetMechanismList", self._functions.C_GetMechanismList(self.info.slot, ck.ffi.NULL, count))
        kinds = ck.ffi.new("CK_ULONG[]", count[0])
        ck.check("C_GetMechanismList", self._functions.C_GetMechanismList(self.info.slot, kinds, count))
        return frozenset(int(kind) for kind in kinds[0 : count[0]])

    def _wait_for_session(self) -> ck.Session:
        metrics.TOKEN_SESSION_WAITS.inc()
        with self._condition:
            if self._open_count == 0 and not self._draining:
                self._open_again()
            if not self._condition.wait_for(lambda: bool(self._free) and not self._draining, self._wait_s):
                raise TokenBusy("All sessions with the HSM are in use. Try again.")
            return self._free.pop()

    def _open_again(self) -> None:
        """One attempt a second while there is no token, whoever asks; never a second one with a refused PIN."""
        if self._refused is not None:
            raise TokenUnavailable("The HSM refused its PIN. An operator has to correct it.") from self._refused
        if time.monotonic() < self._retry_at:
            raise TokenUnavailable("The HSM does not answer. Try again.")
        self._open()

    def _open(self) -> None:
        """Finalise, initialise, log in, open sessions. Callers hold the condition, but for the constructor."""
        self._opening_at = time.monotonic()
        try:
            self._open_all()
        finally:
            self._opening_at = math.inf

    def _open_all(self) -> None:
        self._free.clear()
        self._open_count = 0
        self.generation += 1
        self._destroyed_objects = 0
        self._retry_at = time.monotonic() + 1.0
        try:
            ck.finalize(self._functions)
            ck.initialize(self._functions)
            self.info = self._choose()
            first = ck.Session(self._functions, self.info.slot)
            self._login(first)
            bound = self._size if self.info.max_sessions in (0, _UNAVAILABLE) else self.info.max_sessions
            sessions = [first]
            sessions += [ck.Session(self._functions, self.info.slot) for _ in range(min(self._size, bound) - 1)]
        except CryptokiError as error:
            metrics.token_error(error.function, error.name, error.meaning.name.lower())
            raise TokenUnavailable("The HSM does not answer. Try again.") from error
        metrics.TOKEN_OPENED.inc()
        self._sessions = sessions
        self._free.extend(sessions)
        self._open_count = len(sessions)

    def _choose(self) -> TokenInfo:
        tokens = [token for token in list_tokens(self._functions) if token.flags & ck.CKF_TOKEN_INITIALIZED]
        matching = [
            token
            for token in tokens
            if self._address.label in (None, token.label) and self._address.serial in (None, token.serial)
        ]
        if len(matching) > 1:
            raise TokenRefused(f"Several tokens have the {self._address}. Set token_serial to choose one.")
        if not matching and self.generation > 1:
            raise TokenUnavailable("The token is not present. Try again.")
        if not matching:
            raise TokenRefused(f"No token with the {self._address} is present. Check token_label and the device.")
        return matching[0]

    def _login(self, session: ck.Session) -> None:
        if self.info.flags & (ck.CKF_USER_PIN_LOCKED | ck.CKF_USER_PIN_FINAL_TRY):
            self._refused = PinRefused("The token's user PIN is locked or one try from it. Unlock it before you start.")
            raise self._refused
        returned = session.login(self._pin.reveal().encode())
        if returned in (CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_PIN_EXPIRED):
            self._refused = PinRefused("The token does not take this PIN. Correct it before the next try locks it.")
            raise self._refused
        if returned not in (CKR_OK, CKR_USER_ALREADY_LOGGED_IN):
            raise CryptokiError("C_Login", returned)

    def renew_after_fork(self) -> None:
        """In the child: no state of the parent's is usable. The next `take` opens everything anew."""
        self._condition = threading.Condition()
        self._free = deque()
        self._open_count = 0
        self._sessions = []
        self._opening_at = math.inf
        self._patient_until = 0.0
        self._draining = False
        self._retry_at = 0.0


_OPENING_PATIENCE_S: Final = 30.0
"""A large token takes seconds to be opened."""
_UNAVAILABLE = (1 << 64) - 1
"""CK_UNAVAILABLE_INFORMATION; 0 is CK_EFFECTIVELY_INFINITE."""


class _Renewed(Protocol):
    def renew_after_fork(self) -> None: ...


def renew_after_fork(owner: _Renewed) -> None:
    """Have `owner.renew_after_fork` called in every forked child, for as long as `owner` lives."""
    reference = weakref.ref(owner)

    def in_child() -> None:
        alive = reference()
        if alive is not None:
            alive.renew_after_fork()

    os.register_at_fork(after_in_child=in_child)
