"""NSS softoken (Debian's libnss3): a second, independent PKCS#11 implementation for the tests of the token room.

It takes an initialisation string that PKCS#11 does not know, which the module in front of it passes on
(`tests/faults/injector.c`). It lets a key that must not be extractable be drawn out (`selftest`), so it is no root of
trust and the service refuses it; the tests leave that one step out, and one of them proves the refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hsmkms.token import cryptoki as ck
from hsmkms.token.sessions import list_tokens

BEHIND: Final = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
LABEL: Final = "NSS Certificate DB"
PIN: Final = "a PIN of NSS"

_LARGE = "unwraps at most 256 bytes into a key object (CKR_TEMPLATE_INCONSISTENT)"
_TWINS = "keeps one object under one CKA_ID: the second replaces the first"
_RSA = "refuses the template of a transport key pair (CKR_KEY_TYPE_INCONSISTENT)"
LACKS: Final = {
    "test_every_length_comes_back": _LARGE,
    "test_every_other_length_is_refused": _LARGE,
    "test_plain_key_wrap_is_not_ours": _LARGE,
    "test_authenticated_decryption": _LARGE,
    "test_two_objects_under_one_id_are_refused": _TWINS,
    "test_another_key_under_the_id_is_refused": _TWINS,
    "test_unsafe_key_is_refused[wrong1-CKA_SENSITIVE]": "makes every private key sensitive, whatever it is told",
    "test_another_instances_transport_key_is_none": _RSA,
    "test_what_softhsm_can": _RSA,
    "test_a_pair_that_was_refused_opens_nothing_anew": _RSA,
    "test_few_wait_for_their_pair_and_more_come_again": _RSA,
    "test_describing_a_key": "has no CKA_CHECK_VALUE",
}
"""Tests that it cannot pass, by name or by name and parameters, and what it lacks for them."""


def environment_of(directory: Path) -> dict[str, str]:
    """What a process needs whose module in front finds an NSS database."""
    parameters = f"configdir='sql:{directory}' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
    return {"INJECT_MODULE": BEHIND, "INJECT_PARAMETERS": parameters}


def make_database(module: str) -> None:
    """Set the PIN of an empty database, whose security officer has none. The environment names it."""
    functions = ck.load_functions(module)
    # A test whose token was refused may have left the module open on another database.
    ck.finalize(functions)
    ck.initialize(functions)
    try:
        slot = next(token.slot for token in list_tokens(functions) if token.label == LABEL)
        session = ck.Session(functions, slot)
        session.init_pin(b"", PIN.encode())
        session.close()
    finally:
        ck.finalize(functions)
