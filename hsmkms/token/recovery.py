"""Calls of a token that may go away: what is tried again, what is opened anew, and who is to blame for a failure."""

from __future__ import annotations

import hmac
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import structlog

from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import (
    HsmkmsError,
    KeyMaterialMissing,
    TokenAway,
    TokenBusy,
    TokenRefused,
    TokenUnavailable,
    Unavailable,
    UnprocessableCiphertext,
)
from hsmkms.telemetry import metrics
from hsmkms.token import cryptoki as ck
from hsmkms.token import selftest
from hsmkms.token.breaker import Breaker
from hsmkms.token.objects import KeyIndex, ObjectAmbiguous, ObjectMissing, aes_object, check_value
from hsmkms.token.returned import CryptokiError, Meaning
from hsmkms.token.sessions import SessionPool, TokenInfo, renew_after_fork

T = TypeVar("T")

SENTINEL_ID: Final = str(uuid.uuid5(uuid.UUID("5b0b6f5e-6d39-4f0e-9a5c-2f1d7a4c8e11"), "hsmkms sentinel"))
"""CKA_ID of a key that is always there: while it cannot be found, nothing that is missing counts as destroyed."""
OTHER_TOKEN: Final = "The token that answers is not the one that holds the keys. Try again."
UNAVAILABLE: Final = "The HSM does not answer as it should. Try again."

_CANARY_FRAME: Final = bytes(range(1, 17))
_CHECK_REOPENS_S: Final = 1.0
_UNUSABLE_S: Final = 1.0
_REPAIR_S: Final = 1.0
_DOUBTFUL_AGAIN: Final = 1
_IN_DOUBT_S: Final = 10.0
_log = structlog.get_logger(__name__)

_FOR_THE_CANARY: Final = frozenset({Meaning.DOUBTFUL, Meaning.CALL})
_OURS: Final = frozenset({Meaning.CALL, Meaning.DATA})
"""When the input is this service's own, bad data is a call that the token does not take."""
_NOT_DONE: Final = "The HSM does not do this. The operator finds the reason in the log."
_MISSING: Final = "The key's object is not on the token. Run `hsmkms doctor`."


class RecoveringToken:
    """One token, opened and proved. Methods raise TokenUnavailable or TokenBusy when the device does not answer."""

    def __init__(self, pool: SessionPool, part: str = "primary") -> None:
        """Prove the token if its pool is open; else all calls say that it is away, until `prove` was called. `part` is
        which one it is of those that the service has.

        Raises TokenRefused when it lacks a mechanism or does not keep its keys.
        """
        self._pool = pool
        self.breaker = Breaker(partial(self._probe, pool.reopen), str(pool.address), part, pool.closed)
        self._index = KeyIndex()
        # Token objects are generated, searched and destroyed by one thread at a time: SoftHSM 2.6.1 fails one of two
        # that do so together (in 1 of 85 calls of eight threads), and may show the object twice afterwards.
        self._objects_lock = _OneByOne(pool, self.breaker)
        self._canary: tuple[int, bytes] | None = None
        self._check_reopens_at = 0.0
        self._unusable: dict[str, tuple[float, KeyMaterialMissing | TokenRefused]] = {}
        self._searched: tuple[int, float] = (0, 0.0)
        self._missing: dict[str, float] = {}
        self._in_doubt_until = 0.0
        self._sentinel_check: bytes | None = None
        self._swapped = False
        self._compared = 0
        self._mechanisms: frozenset[int] = frozenset()
        self.capabilities = selftest.UNKNOWN
        self.is_proved = False
        """Whether the self-test was passed; before that nothing else is asked of the token."""
        renew_after_fork(self)
        if pool.is_open:
            self._prove()
            self.is_proved = True
        else:
            self.breaker.hold()

    def prove(self) -> None:
        """Open a token, and prove it. Raises as the constructors of pool and token."""
        if self._pool.is_open:
            # From a proof before this one, which may have failed because the device had closed these sessions.
            self._pool.reopen(self._pool.generation)
        else:
            self._pool.open()
        self._prove()
        self._pool.require_expected()
        self.breaker.admit()
        self.is_proved = True

    def _prove(self) -> None:
        try:
            self._mechanisms = self._pool.mechanisms()
            selftest.require_mechanisms(self._mechanisms, self._pool.info.label)
            with self._pool.session() as session:
                self.capabilities = selftest.run(session)
        except CryptokiError as error:
            raise TokenUnavailable(UNAVAILABLE) from error

    @property
    def mechanisms(self) -> frozenset[int]:
        """Mechanism numbers, as the token told them when it was proved. Raises TokenAway before."""
        self.breaker.require_not_held()
        return self._mechanisms

    @property
    def info(self) -> TokenInfo:
        """Label, serial and firmware of the token."""
        return self._pool.info

    def expect(self, serials: frozenset[str]) -> None:
        """Refuse every token of another serial from now on. Raises TokenRefused when it is open and is such a one."""
        self._pool.expect(serials)

    def refuse(self) -> None:
        """Use the token no more, for as long as this process lives."""
        self.breaker.refuse()

    def take_pin(self, pin: SecretText) -> None:
        """Log in with this PIN from now on; a token that was away because of the old one is tried at once."""
        self._pool.take_pin(pin)
        if self.is_proved:
            self.breaker.require_not_held()
            self._check()

    def close(self) -> None:
        """Finalise the module."""
        self._pool.close()

    def renew_after_fork(self) -> None:
        """In the child: another thread of the parent may have held a lock."""
        self._objects_lock = _OneByOne(self._pool, self.breaker)
        self.breaker.renew_after_fork()

    def check(self) -> None:
        """Wrap and unwrap a canary. Raises TokenUnavailable when the token cannot, at once if that is known."""
        self.breaker.require_closed()
        self._check()

    def _check(self) -> None:
        try:
            self._probe(self._reopen)
        except TokenUnavailable:
            self._trip()
            raise
        self.breaker.close()

    def _trip(self) -> None:
        self.breaker.trip()
        # Who waits for a session passed the breaker before.
        self._pool.turn_away()

    def _probe(self, reopen: Callable[[int], None]) -> None:
        generation = self._pool.generation
        if self._canary_sings(fresh=True):
            return
        now = time.monotonic()
        if now >= self._check_reopens_at:
            # Anybody may ask for readiness, so this starts the module anew at most once a second.
            self._check_reopens_at = now + _CHECK_REOPENS_S
            reopen(generation)
        if not self._canary_sings(fresh=True):
            raise TokenUnavailable(UNAVAILABLE)

    def _consider(self) -> None:
        """A call failed although everything was opened anew: that it is the whole token, a canary decides."""
        if self._sentinel_check is None:
            # A token without a sentinel, as in a ceremony: nothing could close the breaker.
            return
        if self.breaker.is_open:
            return
        try:
            sings = self._canary_sings(fresh=True)
        except TokenBusy:
            return
        except TokenUnavailable:
            sings = False
        if not sings:
            self._trip()

    def _reopen(self, generation: int) -> None:
        """Start the module anew, unless somebody did since `generation`. Who calls may be the event loop, so a thread
        does it and goes on if it takes long: then the token is away until its canary sings.

        Raises TokenUnavailable, TokenBusy.
        """
        if self._sentinel_check is None:
            self._pool.reopen(generation)
            return
        repair = _Repair(self._pool, generation)
        if not repair.is_done_within(_REPAIR_S):
            self._trip()
            raise TokenAway
        if repair.failure is not None:
            raise repair.failure

    def _require_quick(self, failure: Exception, began: float) -> None:
        """Raise TokenAway for a device that takes long to say that it is away: to ask it again takes as long again, and
        is left to the breaker's thread."""
        lost = isinstance(failure, CryptokiError) and failure.meaning in (Meaning.DEVICE, Meaning.SESSION)
        if lost and self._sentinel_check is not None and time.monotonic() - began > _REPAIR_S:
            self._trip()
            raise TokenAway from failure

    def _forget(self, version_id: str) -> None:
        with self._objects_lock:
            self._index.forget(version_id)

    def _find(self, session: ck.Session, version_id: str) -> int:
        with self._objects_lock:
            return self._index.look_up(session, self._pool.generation, version_id)

    def _call(
        self,
        act: Callable[[ck.Session], T],
        *,
        attempts: int = 2,
        missing: Unavailable | None = None,
        patience_s: float = 0,
    ) -> T:
        """Run `act`; when session, login or device was lost, open the token anew and run it once more. `missing` is
        what to say of an object that was not found even then, `patience_s` how long it may take beyond other calls."""
        self.breaker.require_closed()
        try:
            return self._attempt(act, attempts, missing, patience_s)
        except TokenUnavailable:
            self._consider()
            raise

    def _attempt(
        self, act: Callable[[ck.Session], T], attempts: int, missing: Unavailable | None, patience_s: float
    ) -> T:
        failure: Exception
        for last in (*(False,) * (attempts - 1), True):
            session = self._pool.take()
            session.patience_s = patience_s
            generation = self._pool.generation
            try:
                # Before anything is made or destroyed, and after each opening: another token may be in its place.
                if self._compared != generation:
                    self._compare_sentinel(session, generation)
                return act(session)
            except (CryptokiError, ObjectMissing, ObjectAmbiguous) as error:
                failure, began = _counted(error), session.call_began
            finally:
                self._pool.give(session)
            if attempts > 1:
                # Else nothing is asked again: a key that takes long to fail is not yet the whole token.
                self._require_quick(failure, began)
            self._require_other_than_call(failure)
            if missing is not None and not isinstance(failure, CryptokiError):
                if last:
                    self._missing[missing.message] = time.monotonic() + _UNUSABLE_S
                if last or self._is_known_missing(missing):
                    break
            self._reopen(generation)
        raise _explain(failure, missing) from failure

    def _is_known_missing(self, missing: Unavailable) -> bool:
        """Whether a fresh start, a moment ago, did not help to find it either. It was searched for once more, of which
        nothing is to be believed when the module noticed an outage since then: only a canary tells."""
        return time.monotonic() < self._missing.get(missing.message, 0.0) and self._canary_sings()

    def _on_key(self, version: KeyVersion, act: Callable[[ck.Session, int], T], *, input_is_ours: bool = True) -> T:
        """Run `act` with the handle of `version`: again after a search, and again after a fresh start."""
        if self.breaker.is_open:
            self.breaker.require_closed()
        if self._unusable:
            self._require_usable(version)
        try:
            return self._attempt_on_key(version, act, input_is_ours=input_is_ours)
        except TokenUnavailable:
            self._consider()
            raise

    def _attempt_on_key(self, version: KeyVersion, act: Callable[[ck.Session, int], T], *, input_is_ours: bool) -> T:
        failure: Exception
        for last in (False, False, True):
            session = self._pool.take()
            generation = self._pool.generation
            try:
                return act(session, self._resolve(session, generation, version))
            except (CryptokiError, ObjectMissing, ObjectAmbiguous) as error:
                failure, began = _counted(error), session.call_began
            finally:
                self._pool.give(session)
            self._require_quick(failure, began)
            if not input_is_ours and self._is_bad_input(failure, version) and self._fails_again(version, act, failure):
                raise UnprocessableCiphertext from failure
            self._require_other_than_call(failure)
            if not isinstance(failure, CryptokiError) and self._searched_just_now(generation):
                break
            if not last:
                self._recover(failure, generation, version)
        if isinstance(failure, CryptokiError):
            raise _explain(failure) from failure
        raise self._explain_object(failure, version) from failure

    def _require_usable(self, version: KeyVersion) -> None:
        """Raise what was wrong with an object a moment ago."""
        until, error = self._unusable.get(version.id, (0.0, None))
        if error is not None and time.monotonic() < until:
            raise type(error)(error.message)

    def _searched_just_now(self, generation: int) -> bool:
        """Whether this opening is the second of two, just now, in which the sentinel was found and another key not. So
        keys that are lost have the module opened anew at a rate, however many they are."""
        return self._searched[0] == generation and time.monotonic() < self._searched[1]

    def _resolve(self, session: ck.Session, generation: int, version: KeyVersion) -> int:
        handle = self._index.trusted(generation, version)
        if handle is not None:
            return handle
        with self._objects_lock:
            return self._index.resolve(session, generation, version)

    def _is_bad_input(self, failure: Exception, version: KeyVersion) -> bool:
        """Whether the blob is to blame; in doubt a canary under the same key tells."""
        if not isinstance(failure, CryptokiError):
            return False
        if failure.meaning not in _FOR_THE_CANARY:
            return failure.meaning is Meaning.DATA
        if not self._key_sings(version):
            return False
        if time.monotonic() < self._in_doubt_until:
            # The device fails now and then, so that this ciphertext is bad is not proved; nor is it by opening anew.
            raise TokenUnavailable(UNAVAILABLE) from failure
        return True

    def _fails_again(self, version: KeyVersion, act: Callable[[ck.Session, int], T], failure: Exception) -> bool:
        """Whether a doubtful call fails in the same way after the canary sang: a device that was away for a moment may
        have come back between the two."""
        if not isinstance(failure, CryptokiError) or failure.meaning is Meaning.DATA:
            return True
        session = self._pool.take()
        try:
            act(session, self._resolve(session, self._pool.generation, version))
        except CryptokiError as error:
            return error.returned == failure.returned
        except (ObjectMissing, ObjectAmbiguous):
            # The token went away in between, and came back without some of its objects: that tells nothing.
            return False
        finally:
            self._pool.give(session)
        self._in_doubt_until = time.monotonic() + _IN_DOUBT_S
        return False

    def _require_other_than_call(self, failure: Exception) -> None:
        """Raise TokenUnavailable for what a token that is well does not do, such as to wrap what is too large for it.
        It would do it no better after a fresh start, which clients could bring about."""
        if not isinstance(failure, CryptokiError) or failure.meaning not in _OURS:
            return
        if self._sentinel_check is not None and self._canary_sings():
            _log.error("the token does not do what it was asked", token=str(self._pool.address), cause=str(failure))
            raise TokenUnavailable(_NOT_DONE) from failure

    def _open_surely(self, session: ck.Session, handle: int, sealed: bytes) -> bytes:
        """Bad input fails every time; a device that fails now and then does not, and is in doubt from then on."""
        try:
            return session.open(handle, sealed)
        except CryptokiError as error:
            if error.meaning not in _FOR_THE_CANARY:
                raise
            failure = error
        for _ in range(_DOUBTFUL_AGAIN):
            session.begin_call()
            try:
                opened = session.open(handle, sealed)
            except CryptokiError as error:
                if error.returned != failure.returned:
                    raise
            else:
                self._in_doubt_until = time.monotonic() + _IN_DOUBT_S
                return opened
        raise failure

    def _recover(self, failure: Exception, generation: int, version: KeyVersion) -> None:
        """Make another try worth it. The failing session is home already."""
        if isinstance(failure, CryptokiError) and failure.meaning is Meaning.OBJECT:
            # Destroyed and made again by another process, or gone: a search tells, without a fresh start.
            self._forget(version.id)
            return
        self._reopen(generation)

    def _explain_object(self, failure: Exception, version: KeyVersion) -> HsmkmsError:
        """What to say of an object that is missing or there twice. For a moment it is said to all who want the key: a
        fresh start may take half a second on a large token, so a lost key may not demand one with every request."""
        error = self._explain_missing(version) if isinstance(failure, ObjectMissing) else _explain(failure)
        if isinstance(error, KeyMaterialMissing | TokenRefused):
            now = time.monotonic()
            still = {one: known for one, known in self._unusable.items() if known[0] > now}
            self._unusable = {**still, version.id: (now + _UNUSABLE_S, error)}
        return error

    def _explain_missing(self, version: KeyVersion) -> HsmkmsError:
        """After a fresh start an object was not found: what to say of it."""
        wanted = aes_object(version.id)
        if self._searched_just_now(self._pool.generation):
            alone = self._call(lambda session: self._is_alone_missing(session, wanted))
            return KeyMaterialMissing(_MISSING) if alone else TokenUnavailable(OTHER_TOKEN)
        generation = self._opening_without(wanted, self._reopen)
        if not generation:
            return TokenUnavailable(OTHER_TOKEN)
        self._searched = (generation, time.monotonic() + _UNUSABLE_S)
        return KeyMaterialMissing(_MISSING)

    def _destroyed(self, destroy: Callable[[ck.Session], bool], wanted: ck.Template) -> bool:
        """Whether `destroy` found what it is for. Nothing there is also how a token looks that went away, or came back
        under a module that noticed. Raises TokenUnavailable when that nothing was there is not proved."""
        for again in (False, True):
            if again:
                # Whoever destroys is no event loop, and a large token is not away for taking seconds to open.
                self._pool.reopen(self._pool.generation)
            if self._call(destroy):
                return True
            if self._sentinel_check is None:
                # A token of a ceremony: only its serial tells that it is there, which each opening compares.
                if again:
                    return False
            elif self._opening_without(wanted, self._pool.reopen):
                return False
        raise TokenUnavailable(OTHER_TOKEN)

    def _opening_without(self, wanted: ck.Template, reopen: Callable[[int], None]) -> int:
        """The generation in which an object alone is gone: the sentinel is there beside it. 0 if it is not.

        Asked twice, with a fresh start between: a token that goes away while the module reads its objects has some of
        them and not others.
        """
        for again in (False, True):
            if again:
                reopen(self._pool.generation)
            generation = self._pool.generation
            if not self._call(lambda session: self._is_alone_missing(session, wanted)):
                return 0
        return generation

    def _is_alone_missing(self, session: ck.Session, wanted: ck.Template) -> bool:
        """Whether an object is not there and the sentinel is, before and after: the token may go away in between."""
        sentinel = aes_object(SENTINEL_ID)
        with self._objects_lock:
            return bool(session.find(sentinel)) and not session.find(wanted) and bool(session.find(sentinel))

    def _is_there(self, session: ck.Session, version_id: str) -> bool:
        try:
            self._find(session, version_id)
        except ObjectMissing:
            return False
        return True

    def _canary_sings(self, *, fresh: bool = False) -> bool:
        """True if the token opens a known good blob now. `fresh` has the blob made anew."""
        session = self._pool.take()
        try:
            generation = self._pool.generation
            handle = self._find(session, SENTINEL_ID)
            if self._canary is None or self._canary[0] != generation:
                self._require_same_sentinel(session, handle)
            if fresh or self._canary is None or self._canary[0] != generation:
                self._canary = (generation, session.seal(handle, _CANARY_FRAME))
            session.begin_call()
            return session.open(handle, self._canary[1]) == _CANARY_FRAME
        except (CryptokiError, ObjectMissing, ObjectAmbiguous) as error:
            _counted(error)
            return False
        except _OtherSentinel:
            return False
        finally:
            self._pool.give(session)

    def _key_sings(self, version: KeyVersion) -> bool:
        """True if the token opens with a key what it seals with it now: it may refuse that key and no other."""
        session = self._pool.take()
        try:
            handle = self._resolve(session, self._pool.generation, version)
            sealed = session.seal(handle, _CANARY_FRAME)
            session.begin_call()
            return session.open(handle, sealed) == _CANARY_FRAME
        except (CryptokiError, ObjectMissing, ObjectAmbiguous) as error:
            _counted(error)
            return False
        finally:
            self._pool.give(session)

    def _compare_sentinel(self, session: ck.Session, generation: int) -> None:
        """Raise TokenUnavailable when the sentinel is not the one that was there first, ObjectMissing when none is."""
        try:
            self._require_same_sentinel(session, self._find(session, SENTINEL_ID))
        except _OtherSentinel:
            raise TokenUnavailable(OTHER_TOKEN) from None
        except ObjectMissing:
            if self._sentinel_check is not None:
                raise
            # A token of a ceremony, or one that `init` makes a sentinel on.
        self._compared = generation

    def _require_same_sentinel(self, session: ck.Session, handle: int) -> None:
        """A token may be swapped for one of the same label and even serial; the sentinel's key is not the same then."""
        found = check_value(session, handle)
        if self._sentinel_check is None:
            self._sentinel_check = found
        swapped, self._swapped = self._swapped, not hmac.compare_digest(found, self._sentinel_check)
        if self._swapped:
            if not swapped:
                _log.critical("the token was swapped: it holds another sentinel key", token=str(self._pool.address))
            raise _OtherSentinel


class _OtherSentinel(Exception):
    """The token has a sentinel, and not the one that it had."""


def _counted(failure: Exception) -> Exception:
    """The failure, after it was counted."""
    if isinstance(failure, CryptokiError):
        metrics.token_error(failure.function, failure.name, failure.meaning.name.lower())
    else:
        metrics.token_error("C_FindObjects", type(failure).__name__, "object")
    return failure


class _Repair:
    """Somebody's fresh start of the module, which may outlast his patience."""

    def __init__(self, pool: SessionPool, generation: int) -> None:
        """Begin."""
        self._pool, self._generation = pool, generation
        self.failure: HsmkmsError | None = None
        self._thread = threading.Thread(target=self._run, name="token repair", daemon=True)
        self._thread.start()

    def is_done_within(self, seconds: float) -> bool:
        """Whether it came to an end, of which `failure` tells."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._pool.reopen(self._generation)
        except HsmkmsError as error:
            self.failure = error


class _OneByOne:
    """A lock that a thread may take again. Who waits for it has not called the library yet, and so does not hang."""

    def __init__(self, pool: SessionPool, breaker: Breaker) -> None:
        self._pool, self._breaker = pool, breaker
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        """Raises TokenAway when the token went away meanwhile: each of those who wait would find that out in turn."""
        if self._lock.acquire(blocking=False):
            return
        with self._pool.waiting():
            self._lock.acquire()
        if self._breaker.is_open:
            self._lock.release()
            raise TokenAway

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _explain(failure: Exception, missing: Unavailable | None = None) -> HsmkmsError:
    """What a second failure proved."""
    if isinstance(failure, ObjectAmbiguous):
        return TokenRefused("The token holds several keys under one CKA_ID. Remove the ones that are not yours.")
    return missing if missing is not None and isinstance(failure, ObjectMissing) else TokenUnavailable(UNAVAILABLE)
