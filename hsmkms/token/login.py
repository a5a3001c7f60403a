"""Try a PIN that an operator brought: once, and whatever was refused before."""

from __future__ import annotations

import os
import threading
from typing import Final

import structlog

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import TokenUnavailable
from hsmkms.token import cryptoki as ck
from hsmkms.token.hanging import EXIT_CODE
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.returned import CryptokiError
from hsmkms.token.sessions import NOT_OPENED, TokenAddress, TokenInfo, choose, log_in

_TURN_WAIT_S: Final = 10.0

_log = structlog.get_logger(__name__)


def try_pin(address: TokenAddress, pin: SecretText, guard: PinGuard, *, timeout_s: float, last_try: bool) -> TokenInfo:
    """Log in once and out again; whoever is kept from trying is so until `guard.clear`. This process ends when that
    takes longer than `timeout_s` seconds: it would keep all others from logging in.

    Raises PinRefused, PinNotTried, TokenRefused, TokenUnavailable, TokenBusy.
    """
    functions = ck.load_functions(address.module)
    hangs = threading.Timer(timeout_s, _end, (address, timeout_s))
    hangs.daemon = True
    with guard.turn(_TURN_WAIT_S):
        hangs.start()
        try:
            ck.initialize(functions)
            info = choose(functions, address)
            log_in(ck.Session(functions, info.slot), info, pin, guard, last_try=last_try)
            return info
        except CryptokiError as error:
            raise TokenUnavailable(NOT_OPENED) from error
        finally:
            ck.finalize(functions)
            hangs.cancel()


def _end(address: TokenAddress, timeout_s: float) -> None:
    _log.critical("the token hangs; the PIN may not have been tried", token=str(address), after_s=timeout_s)
    os._exit(EXIT_CODE)
