"""Try a PIN that an operator brought: once, whatever was refused before, and for all processes of the host."""

from __future__ import annotations

from typing import Final

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import TokenUnavailable
from hsmkms.token import cryptoki as ck
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.returned import CryptokiError
from hsmkms.token.sessions import NOT_OPENED, TokenAddress, TokenInfo, choose, log_in

_TURN_WAIT_S: Final = 10.0


def try_pin(address: TokenAddress, pin: SecretText, guard: PinGuard, *, last_try: bool) -> TokenInfo:
    """Log in once and out again; whoever was kept from trying may do so afterwards.

    Raises PinRefused, TokenRefused, TokenUnavailable, TokenBusy.
    """
    functions = ck.load_functions(address.module)
    try:
        ck.initialize(functions)
        info = choose(functions, address)
        session = ck.Session(functions, info.slot)
        with guard.turn(_TURN_WAIT_S):
            log_in(session, info, pin, guard, last_try=last_try)
            guard.clear()
        return info
    except CryptokiError as error:
        raise TokenUnavailable(NOT_OPENED) from error
    finally:
        ck.finalize(functions)
