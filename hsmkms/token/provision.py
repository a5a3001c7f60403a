"""Initialise an empty token by C_InitToken and C_InitPIN, for SoftHSM on a laptop and in CI.

A command line tool would show the PINs in the process list; this does not.
"""

from __future__ import annotations

from hsmkms.domain.secrets import SecretText
from hsmkms.errors import TokenRefused
from hsmkms.token import cryptoki as ck
from hsmkms.token.returned import CryptokiError
from hsmkms.token.sessions import list_tokens


def has_token(module: str, label: str) -> bool:
    """True if an initialised token with this label is present."""
    functions = ck.load_functions(module)
    ck.initialize(functions)
    try:
        return any(t.label == label and t.flags & ck.CKF_TOKEN_INITIALIZED for t in list_tokens(functions))
    finally:
        ck.finalize(functions)


def init_token(module: str, label: str, so_pin: SecretText, pin: SecretText) -> None:
    """Initialise the first empty slot with `label` (at most 32 bytes) and both PINs. Raises TokenRefused."""
    functions = ck.load_functions(module)
    try:
        ck.initialize(functions)
        empty = [t.slot for t in list_tokens(functions) if not t.flags & ck.CKF_TOKEN_INITIALIZED]
        if not empty:
            raise TokenRefused(
                "No slot with an uninitialised token is present. Initialise one by your HSM's own tools."
            )
        security_officer = so_pin.reveal().encode()
        ck.check(
            "C_InitToken",
            functions.C_InitToken(empty[0], security_officer, len(security_officer), label.encode().ljust(32)),
        )
        # SoftHSM renumbers its slots when a token is born.
        ck.finalize(functions)
        ck.initialize(functions)
        slot = next(t.slot for t in list_tokens(functions) if t.label == label)
        session = ck.Session(functions, slot)
        session.init_pin(security_officer, pin.reveal().encode())
        session.close()
    except CryptokiError as error:
        raise TokenRefused(f"The token could not be initialised ({error}).") from error
    finally:
        ck.finalize(functions)
