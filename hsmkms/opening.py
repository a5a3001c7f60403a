"""Opens the tokens of a process: the one that the settings name, and its standby if they name one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import HsmkmsError, SettingsInvalid, TokenRefused
from hsmkms.settings import Settings
from hsmkms.token.hanging import HangWatch
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
from hsmkms.token.standby import PairedToken

PRIMARY: Final = "primary"
STANDBY: Final = "standby"
ENVIRONMENT: Final = {PRIMARY: "HSMKMS_PIN", STANDBY: "HSMKMS_STANDBY_PIN"}
GUARD_DIRECTORY: Final = "tokens-refused"
_AGAIN_S: Final = 1.0
_JOIN_S: Final = 2.0
_HEAD_START_S: Final = 1.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Pins:
    """User PINs by the token's part. `take` replaces one for whoever opens a token afterwards."""

    _of: dict[str, SecretText] = field(repr=False)

    def of(self, part: str) -> SecretText:
        """Raises SettingsInvalid."""
        if part not in self._of:
            prefix = "" if part == PRIMARY else "standby_"
            raise SettingsInvalid(
                f"The PIN of the {part} token is not known. Set {prefix}pin_file or {ENVIRONMENT[part]}."
            )
        return self._of[part]

    def ask(self, parts: Iterable[str], prompt: Callable[[str], SecretText]) -> None:
        """Have a person give those that are not set."""
        for part in parts:
            if part not in self._of:
                self._of[part] = prompt(part)

    def take(self, part: str, pin: SecretText) -> None:
        """From now on."""
        self._of[part] = pin


def address_of(settings: Settings) -> TokenAddress:
    """The token that the settings name. Also points SoftHSM at its configuration file."""
    if settings.softhsm2_conf is not None:
        os.environ["SOFTHSM2_CONF"] = str(settings.softhsm2_conf)
    if settings.token_label is None and settings.token_serial is None:
        raise SettingsInvalid("Set token_label or token_serial: slot numbers move, so they cannot name a token.")
    return TokenAddress(settings.pkcs11_module, settings.token_label, settings.token_serial)


def standby_address_of(settings: Settings) -> TokenAddress | None:
    """The standby that the settings name, if they do. Raises SettingsInvalid."""
    module = settings.standby_pkcs11_module
    if module is None:
        return None
    if settings.standby_token_label is None and settings.standby_token_serial is None:
        raise SettingsInvalid("Set standby_token_label or standby_token_serial beside standby_pkcs11_module.")
    if (
        Path(module).exists()
        and Path(settings.pkcs11_module).exists()
        and os.path.samefile(module, settings.pkcs11_module)
    ):
        # One library has one C_Initialize: opening the primary anew would end the standby's sessions, and a primary
        # that hangs would take the standby with it.
        raise SettingsInvalid(
            "standby_pkcs11_module is the file of pkcs11_module. Use a library, or a copy, of its own."
        )
    return TokenAddress(module, settings.standby_token_label, settings.standby_token_serial)


def parts_of(settings: Settings) -> dict[str, TokenAddress]:
    """The tokens of the deployment by their part. Raises SettingsInvalid."""
    standby = standby_address_of(settings)
    return {PRIMARY: address_of(settings), **({} if standby is None else {STANDBY: standby})}


def guard_of(settings: Settings, address: TokenAddress, *, by_command: bool) -> PinGuard:
    """What this host knows of a PIN that was refused, as the service or a command beside it sees it."""
    return PinGuard(settings.state_dir / GUARD_DIRECTORY, str(address), by_command=by_command)


def open_token(settings: Settings, pins: Pins, stack: ExitStack, *, serves: bool, stays: bool) -> Token:
    """The token, opened and proved; with a standby one of them is enough. `stack` closes what this opens.

    `serves` says that this is the service and no command beside it, `stays` that the process answers somebody while it
    opens the token. Raises OperatorError or Unavailable.
    """
    parts = parts_of(settings)
    pool = _pool(settings, parts[PRIMARY], pins.of(PRIMARY), serves=serves)
    if STANDBY not in parts:
        token = Token(pool)
        _keep(settings, pool, token, stack, lambda: stays)
        token.prove()
        return token
    standby_pool = _pool(settings, parts[STANDBY], pins.of(STANDBY), serves=serves)
    standby = Token(standby_pool, STANDBY)
    pair = PairedToken(pool, standby, settings.standby_proof_s)

    def can_use(other: Token, other_pool: SessionPool) -> bool:
        # One that was refused or is away is tried again and again, and is no reason to wait for the one that hangs.
        return stays or other.is_proved or 0 <= other_pool.longest_call_s() <= settings.token_call_timeout_s

    _keep(settings, pool, pair, stack, lambda: can_use(standby, standby_pool))
    _keep(settings, standby_pool, standby, stack, lambda: can_use(pair, pool))
    opening = _Pair(pair, standby)
    stack.callback(opening.close)
    opening.wait(settings.token_call_timeout_s)
    return pair


@contextmanager
def token_alone(settings: Settings, pins: Pins) -> Iterator[Token]:
    """The token without a database. Raises OperatorError or Unavailable."""
    with ExitStack() as stack:
        yield open_token(settings, pins, stack, serves=False, stays=False)


def _pool(settings: Settings, address: TokenAddress, pin: SecretText, *, serves: bool) -> SessionPool:
    return SessionPool(
        address,
        pin,
        size=settings.sessions,
        wait_s=settings.session_wait_s,
        recycle_after=settings.recycle_after_objects,
        guard=guard_of(settings, address, by_command=not serves),
        opened=False,
    )


def _keep(settings: Settings, pool: SessionPool, token: Token, stack: ExitStack, stays: Callable[[], bool]) -> None:
    # Of commands too: one that hangs in C_Login would keep every process of the host from logging in again.
    stack.callback(HangWatch(pool, token, settings.token_call_timeout_s, stays).close)
    # Before the watch ends: a library may hang in its end too.
    stack.callback(pool.close)


class _Pair:
    """Opens both tokens, each in a thread of its own: one that hangs or is away keeps nobody from the other."""

    def __init__(self, pair: PairedToken, standby: Token) -> None:
        self._pair = pair
        self._tokens = {PRIMARY: pair, STANDBY: standby}
        self._condition = threading.Condition()
        self._failures: dict[str, HsmkmsError] = {}
        self._comparing = threading.Lock()
        self._compared = False
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._open, args=(part,), name=f"opening {part}", daemon=True)
            for part in self._tokens
        ]
        for thread in self._threads:
            thread.start()
            # Libraries that share others (OpenSSL, in SoftHSM's case) may not like to be initialised together.
            with self._condition:
                self._condition.wait_for(lambda: self._settled(PRIMARY), _HEAD_START_S)

    def wait(self, patience_s: float) -> None:
        """Return when both are open, or one of them and the other has failed or taken longer than `patience_s` seconds.

        Raises what the primary failed by when both failed.
        """
        with self._condition:
            self._condition.wait_for(self._all_settled, patience_s)
            self._condition.wait_for(lambda: self._all_settled() or self._one_is_proved())
            if not self._one_is_proved():
                raise self._failures[PRIMARY]

    def close(self) -> None:
        """Stop to try. A thread that hangs is left behind."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _all_settled(self) -> bool:
        return all(self._settled(part) for part in self._tokens)

    def _one_is_proved(self) -> bool:
        return any(token.is_proved for token in self._tokens.values())

    def _settled(self, part: str) -> bool:
        return self._tokens[part].is_proved or part in self._failures

    def _open(self, part: str) -> None:
        """Until it is open, however long that takes."""
        token = self._tokens[part]
        while not self._stopped.is_set():
            try:
                if not token.is_proved:
                    Token.prove(token)
                self._compare()
            except HsmkmsError as error:
                self._note(part, error)
                self._stopped.wait(_AGAIN_S)
            else:
                break
        with self._condition:
            self._failures.pop(part, None)
            self._condition.notify_all()

    def _note(self, part: str, error: HsmkmsError) -> None:
        with self._condition:
            before = self._failures.get(part)
            self._failures[part] = error
            self._condition.notify_all()
        if before is None or before.message != error.message:
            _log.error("a token cannot be opened", part=part, reason=error.message, cause=str(error.__cause__))

    def _compare(self) -> None:
        """Once both are open: a standby of other keys is not used at all."""
        with self._comparing:
            if self._compared or not all(token.is_proved for token in self._tokens.values()):
                return
            try:
                if Token.has_sentinel(self._pair):
                    self._pair.require_same_keys()
            except TokenRefused as error:
                self._tokens[STANDBY].refuse()
                _log.critical("the standby is refused", reason=error.message)
            self._compared = True
