"""The loaded module, one login per process, and a bounded pool of sessions that threads cannot misuse.

A session is lent to one caller at a time. When anything is wrong with session, login or device, `reopen` waits until
every session is home, then does C_Finalize, C_Initialize, C_Login and opens the pool anew under the next `generation`;
handles of an older generation mean nothing. The same is done after `recycle_after` destroyed objects at most, because
SoftHSM 2.6.1 keeps about 240 bytes of each until C_Finalize.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import (
    PinNotTried,
    PinRefused,
    TokenAbsent,
    TokenBusy,
    TokenRefused,
    TokenUnavailable,
    Unavailable,
)
from hsmkms.telemetry import metrics
from hsmkms.token import cryptoki as ck
from hsmkms.token.pin_guard import NO_ANSWER, UNREADABLE, PinGuard
from hsmkms.token.returned import (
    CKR_OK,
    CKR_PIN_EXPIRED,
    CKR_PIN_INCORRECT,
    CKR_PIN_INVALID,
    CKR_PIN_LEN_RANGE,
    CKR_PIN_LOCKED,
    CKR_USER_ALREADY_LOGGED_IN,
    TABLE,
    CryptokiError,
    Meaning,
)

_log = structlog.get_logger(__name__)


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

    def __init__(
        self,
        address: TokenAddress,
        pin: SecretText,
        *,
        size: int,
        wait_s: float,
        recycle_after: int,
        guard: PinGuard | None = None,
        opened: bool = True,
    ) -> None:
        """Load the library and, unless `opened` is false, open `size` sessions; a caller waits at most `wait_s` seconds
        for one. `guard` knows whether the PIN was refused before, by whichever process of this host.

        Raises TokenRefused, PinRefused or TokenUnavailable.
        """
        self.address = address
        self.pin = pin
        self._size = size
        self._wait_s = wait_s
        self._recycle_after = self._due_after = recycle_after
        self._functions = ck.load_functions(address.module)
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._waiters = 0
        self._free: deque[ck.Session] = deque()
        self._open_count = 0
        self._sessions: list[ck.Session] = []
        self._opening_at = math.inf
        self._draining = False
        self._turned_away = 0
        self._destroyed_objects = 0
        self.guard = guard or PinGuard(None, str(address))
        self._retry_at = 0.0
        self.generation = 0
        self.info: TokenInfo
        self._serial: str | None = None
        self._expected: frozenset[str] | None = None
        self._told = ""
        self.closed = threading.Event()
        """Set for good by `close`."""
        renew_after_fork(self)
        if opened:
            self.open()

    @property
    def is_open(self) -> bool:
        """Whether there are sessions."""
        return self._open_count > 0

    def open(self) -> None:
        """Open the sessions for the first time. Raises TokenRefused, PinRefused or TokenUnavailable."""
        self._open()

    def expect(self, serials: frozenset[str]) -> None:
        """Refuse tokens of other serials from now on. Raises TokenRefused."""
        self._expected = serials
        self.require_expected()

    def require_expected(self) -> None:
        """Raise TokenRefused when the token that is open is not one of those that are expected."""
        if self._serial is not None:
            self._require_known(self._serial)

    def take_pin(self, pin: SecretText) -> None:
        """Log in with this PIN from now on. Sessions that are logged in stay so."""
        self.pin = pin
        self._retry_at = 0.0

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
        # The lock itself, here and in `give`: those of a Condition are functions of Python, and this is the hot path.
        with self._lock:
            session = self._free.pop() if self._free and not self._draining else None
        if session is None:
            session = self._wait_for_session()
        session.call_began, session.thread = time.monotonic(), threading.get_ident()
        return session

    def give(self, session: ck.Session) -> None:
        """Return a borrowed session; now and then this recycles the module (see the module's docstring)."""
        session.call_began, session.patience_s = math.inf, 0.0
        with self._lock:
            self._destroyed_objects += session.destroyed_objects
            session.destroyed_objects = 0
            self._free.append(session)
            due = self._destroyed_objects >= self._due_after and not self._draining
            generation = self.generation
            if self._waiters:
                self._condition.notify_all()
        # To open the module anew is to log in anew: while the PIN is known to be wrong the login is worth more.
        if due and self.guard.reason is None:
            self._recycle(generation)

    def _recycle(self, generation: int) -> None:
        """The borrower's call is done, must not fail for this, and may not wait for another that takes seconds, nor
        log out before it is sure that the PIN may be tried: then the memory is reclaimed after some more objects. When
        the token is away the next borrower is told."""
        try:
            self._open_anew(generation, _RECYCLE_WAIT_S, surely=True)
        except (TokenBusy, PinNotTried):
            self._due_after = self._destroyed_objects + _RECYCLE_AGAIN_OBJECTS
        except Unavailable:
            pass

    def reopen(self, seen_generation: int) -> None:
        """Start the module anew unless somebody did since `seen_generation`.

        The caller must have given its session back. Raises TokenBusy when sessions do not come home within `wait_s`,
        TokenUnavailable or PinRefused when the token cannot be opened.
        """
        self._open_anew(seen_generation, self._wait_s)

    def _open_anew(self, seen_generation: int, wait_s: float, *, surely: bool = False) -> None:
        with self._condition:
            if not self._wait(lambda: not self._draining, wait_s):
                raise TokenBusy("The HSM is being opened anew. Try again.")
            if self.generation != seen_generation:
                return
            self._require_not_closed()
            self._draining = True
            if not self._wait(self._all_home, wait_s):
                self._draining = False
                self._condition.notify_all()
                raise TokenBusy("The HSM is busy. Try again.")
        self._open_drained(surely=surely)

    def turn_away(self) -> None:
        """Have all who wait for a session now raise TokenBusy: it may take long to open the token."""
        with self._condition:
            self._turned_away += 1
            self._condition.notify_all()

    def close(self) -> None:
        """Close all sessions and finalise the module, for good. Sessions that are out are waited for, and then become
        invalid. A library that somebody still opens, perhaps for ever, is left alone: to call it could hang as well."""
        self.closed.set()
        with self._condition:
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._all_home() and not self._draining, _CLOSE_WAIT_S)
            if not math.isinf(self._opening_at):
                self.guard.leave_turn()
                return
            self._opening_at = time.monotonic()
            self._free.clear()
            self._sessions = []
            self._open_count = 0
            # C_Finalize closes them too; but a device in the network may not hear of that, and has few. One that is
            # away has none to close.
            if self._serial is not None:
                self._functions.C_CloseAllSessions(self.info.slot)
            with contextlib.suppress(CryptokiError):
                ck.finalize(self._functions)
            self._opening_at = math.inf

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For a borrower that waits for another one with its session in hand: that is no call of the library."""
        mine = [one for one in self._sessions if one.thread == threading.get_ident() and one.call_began != math.inf]
        for session in mine:
            session.call_began = math.inf
        try:
            yield
        finally:
            for session in mine:
                session.begin_call()

    def longest_call_s(self) -> float:
        """For how many seconds the slowest call of a borrower lasts, or the module is being opened, beyond its
        patience; negative when there is none. Takes no lock, because who hangs may hold it."""
        now = time.monotonic()
        waited = [now - session.call_began - session.patience_s for session in tuple(self._sessions)]
        # Before the first opening nobody waits for a session, so that there is nothing to be patient for.
        patience_s = 0.0 if self._serial is None else _OPENING_PATIENCE_S
        return max((now - self._opening_at - patience_s, *waited))

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
            self._require_not_closed()
            turned_away = self._turned_away
            opens = self._open_count == 0 and not self._draining
            if opens:
                self._require_turn()
                self._draining = True
        if opens:
            self._open_drained()

        def settled() -> bool:
            return (bool(self._free) and not self._draining) or self._turned_away != turned_away

        with self._condition:
            if not self._wait(settled, self._wait_s) or not self._free or self._draining:
                raise TokenBusy("All sessions with the HSM are in use. Try again.")
            return self._free.pop()

    def _all_home(self) -> bool:
        return len(self._free) == self._open_count

    def _require_not_closed(self) -> None:
        if self.closed.is_set():
            raise TokenUnavailable(NOT_OPENED)

    def _wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait so long at most; whether it came. Callers hold the condition."""
        self._waiters += 1
        try:
            return self._condition.wait_for(until, seconds)
        finally:
            self._waiters -= 1

    def _require_turn(self) -> None:
        """One attempt a second while there is no token, whoever asks; none while its PIN is known to be wrong."""
        if time.monotonic() < self._retry_at:
            raise TokenUnavailable(NOT_OPENED if self.guard.refusal is None else _PIN_REFUSED)

    def _open_drained(self, *, surely: bool = False) -> None:
        """Open while nobody has a session or gets one. Without the lock: the library may take its time, and who asks
        for a session meanwhile has to be told. `surely` keeps the sessions if the PIN would not be tried: then raises
        TokenBusy or PinNotTried."""
        try:
            if surely:
                self._require_may_try()
            self._open()
        finally:
            with self._condition:
                self._draining = False
                self._condition.notify_all()

    def _open(self) -> None:
        """Finalise, initialise, log in, open sessions. Callers have drained the pool, or made it just now."""
        self._opening_at = time.monotonic()
        first = self._serial is None
        try:
            self._open_all()
        except (PinRefused, PinNotTried, TokenRefused) as error:
            if first:
                raise
            # Whoever calls now can do nothing about it, and need not know which token this is.
            if error.message != self._told:
                _log.error("the token cannot be opened", token=str(self.address), reason=error.message)
            self._told = error.message
            raise TokenUnavailable(_PIN_REFUSED if isinstance(error, PinRefused) else NOT_OPENED) from error
        finally:
            self._opening_at = math.inf

    def _open_all(self) -> None:
        self._free.clear()
        self._open_count = 0
        self.generation += 1
        self._destroyed_objects = 0
        self._retry_at = time.monotonic() + 1.0
        try:
            self._finalize()
            fresh = ck.initialize(self._functions)
            self.info = self._choose()
            if not fresh:
                ck.check("C_CloseAllSessions", self._functions.C_CloseAllSessions(self.info.slot))
            first = ck.Session(self._functions, self.info.slot)
            with self.guard.turn(min(self._wait_s, _TURN_WAIT_S)):
                self._login(first)
            bound = self._size if self.info.max_sessions in (0, _UNAVAILABLE) else self.info.max_sessions
            sessions = [first]
            sessions += [ck.Session(self._functions, self.info.slot) for _ in range(min(self._size, bound) - 1)]
        except CryptokiError as error:
            metrics.token_error(error.function, error.name, error.meaning.name.lower())
            raise TokenUnavailable(NOT_OPENED) from error
        metrics.TOKEN_OPENED.inc()
        opening_s = time.monotonic() - self._opening_at
        self._due_after = min(self._recycle_after, max(_FEW_OBJECTS, int(opening_s / _FREED_IN_S)))
        self._serial, self._told = self.info.serial, ""
        self._sessions = sessions
        self._free.extend(sessions)
        self._open_count = len(sessions)

    def _require_may_try(self) -> None:
        """Raise TokenBusy or PinNotTried unless a log-in would try the PIN now. The turn is given back before it: to
        open a large token takes seconds, in which others want to log in."""
        with self.guard.turn(_RECYCLE_WAIT_S):
            # A token that hangs in this is seen as one that hangs while it is opened.
            self._opening_at = time.monotonic()
            try:
                flags = choose(self._functions, self.address).flags
            except (CryptokiError, TokenRefused) as error:
                raise TokenBusy(NOT_OPENED) from error
            finally:
                self._opening_at = math.inf
            if self.guard.reason is not None or flags & (ck.CKF_USER_PIN_LOCKED | ck.CKF_USER_PIN_FINAL_TRY):
                raise PinNotTried(NOT_OPENED)
            self.guard.require_notable()

    def _finalize(self) -> None:
        """A client whose device is away may fail in this too, and has to be opened anew all the same."""
        try:
            ck.finalize(self._functions)
        except CryptokiError as error:
            metrics.token_error(error.function, error.name, error.meaning.name.lower())

    def _choose(self) -> TokenInfo:
        found = choose(self._functions, self.address)
        self._require_known(found.serial)
        if self._serial is not None and found.serial != self._serial:
            raise TokenRefused(
                f"The token with the {self.address} has the serial {found.serial} and not {self._serial}, "
                "which holds the keys. Bring that one back."
            )
        return found

    def _require_known(self, serial: str) -> None:
        if self._expected is not None and serial not in self._expected:
            raise TokenRefused(
                f"The token with the {self.address} has the serial {serial}, which this deployment does not know. "
                "If it was replaced on purpose, run `hsmkms hsm accept`."
            )

    def _login(self, session: ck.Session) -> None:
        """Try the PIN, unless it is known to be wrong. Callers have the guard's turn."""
        reason = self.guard.reason
        # Set from a wrong PIN to the next right one (PKCS #11 2.40, CK_TOKEN_INFO): what had no answer may be that.
        if reason == NO_ANSWER and self.info.flags & ck.CKF_USER_PIN_COUNT_LOW:
            raise PinNotTried(
                "Two tries of the token's PIN in a row had no answer that is clear, and the token counts a wrong one. "
                "Run `hsmkms hsm login` when the token is well; nobody tries it before."
            )
        if reason == UNREADABLE:
            raise PinNotTried(
                f"The token's PIN is not tried: {UNREADABLE}. Look at tokens-refused in the state directory."
            )
        if reason not in (None, NO_ANSWER):
            raise PinRefused(f"The token's PIN was refused ({reason}) and is not tried again. {CORRECT_PIN}")
        log_in(session, self.info, self.pin, self.guard)

    def renew_after_fork(self) -> None:
        """In the child: no state of the parent's is usable. The next `take` opens everything anew."""
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._waiters = 0
        self._free = deque()
        self._open_count = 0
        self._sessions = []
        self._opening_at = math.inf
        self._draining = False
        self._retry_at = 0.0


NOT_OPENED: Final = "The HSM does not answer. Try again."
_PIN_REFUSED: Final = "The HSM refused its PIN. An operator has to correct it."
CORRECT_PIN: Final = "Correct it, then run `hsmkms hsm login`."
_REFUSALS: Final = {
    CKR_PIN_INCORRECT: "incorrect",
    CKR_PIN_EXPIRED: "expired",
    CKR_PIN_LOCKED: "locked",
    CKR_PIN_INVALID: "it has characters that no PIN of this token has",
    CKR_PIN_LEN_RANGE: "it is shorter or longer than a PIN of this token",
}


def choose(functions: ck.CData, address: TokenAddress) -> TokenInfo:
    """The one token at an address. Raises TokenRefused when it is not there or not alone, CryptokiError."""
    matching = [
        token
        for token in list_tokens(functions)
        if token.flags & ck.CKF_TOKEN_INITIALIZED
        and address.label in (None, token.label)
        and address.serial in (None, token.serial)
    ]
    if len(matching) > 1:
        raise TokenRefused(f"Several tokens have the {address}. Set token_serial to choose one.")
    if not matching:
        raise TokenAbsent(f"No token with the {address} is present. Check token_label and the device.")
    return matching[0]


def log_in(session: ck.Session, info: TokenInfo, pin: SecretText, guard: PinGuard, *, last_try: bool = False) -> None:
    """C_Login, once. A token that is one wrong PIN from being locked is asked only with `last_try`.

    Raises PinRefused, which the guard then remembers, PinNotTried or CryptokiError.
    """
    if info.flags & ck.CKF_USER_PIN_LOCKED:
        guard.refuse("locked")
        raise PinRefused(
            "The token's user PIN is locked. Its security officer has to unlock it, then run `hsmkms hsm login`."
        )
    if info.flags & ck.CKF_USER_PIN_FINAL_TRY and not last_try:
        guard.refuse("one wrong PIN would lock the token")
        raise PinRefused(
            "One more wrong PIN would lock the token. Run `hsmkms hsm login --last-try` with the right one."
        )
    guard.begin()
    returned = session.login(pin.reveal().encode())
    if returned in _REFUSALS:
        guard.refuse(_REFUSALS[returned])
        raise PinRefused(f"The token does not take this PIN ({_REFUSALS[returned]}). {CORRECT_PIN}")
    if returned in (CKR_OK, CKR_USER_ALREADY_LOGGED_IN):
        guard.answered()
        return
    error = CryptokiError("C_Login", returned)
    # Anything else may be how this token says that the PIN is wrong, such as in its maker's own words.
    if returned in TABLE and error.meaning in (Meaning.DEVICE, Meaning.SESSION):
        guard.answered()
    raise error


_FEW_OBJECTS: Final = 10_000
_RECYCLE_WAIT_S: Final = 0.1
_RECYCLE_AGAIN_OBJECTS: Final = 2_000
_FREED_IN_S: Final = 0.6e-6
"""What C_Finalize of SoftHSM 2.6.1 takes for each object that was destroyed. All callers wait for it, 60 ms after
100,000. So a module is started anew as soon as this is as long as its opening, on a small token milliseconds."""
_TURN_WAIT_S: Final = 1.0
_CLOSE_WAIT_S: Final = 1.0
_OPENING_PATIENCE_S: Final = 30.0
"""A large token takes seconds to be opened."""
_UNAVAILABLE = (1 << 64) - 1
"""CK_UNAVAILABLE_INFORMATION; 0 is CK_EFFECTIVELY_INFINITE."""


class _Renewed(Protocol):
    def renew_after_fork(self) -> None: ...


_RENEWED: Final[weakref.WeakSet[_Renewed]] = weakref.WeakSet()


def renew_after_fork(owner: _Renewed) -> None:
    """Have `owner.renew_after_fork` called in every forked child, for as long as `owner` lives."""
    _RENEWED.add(owner)


def _renew_all() -> None:
    for owner in tuple(_RENEWED):
        owner.renew_after_fork()


os.register_at_fork(after_in_child=_renew_all)
