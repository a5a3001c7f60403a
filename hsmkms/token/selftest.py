"""What a token must prove before it holds a root key: its mechanisms, that a key cannot be drawn out, a known answer.

All objects made here are session objects; nothing stays on the token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hsmkms.domain.ids import new_id
from hsmkms.errors import TokenRefused
from hsmkms.token import cryptoki as ck
from hsmkms.token import templates
from hsmkms.token.returned import CryptokiError

REQUIRED_MECHANISMS: Final = {
    ck.CKM_AES_KEY_GEN: "CKM_AES_KEY_GEN",
    ck.CKM_AES_KEY_WRAP: "CKM_AES_KEY_WRAP",
    ck.CKM_EC_KEY_PAIR_GEN: "CKM_EC_KEY_PAIR_GEN",
    ck.CKM_ECDSA: "CKM_ECDSA",
    ck.CKM_GENERIC_SECRET_KEY_GEN: "CKM_GENERIC_SECRET_KEY_GEN",
    ck.CKM_SHA256_HMAC: "CKM_SHA256_HMAC",
}

# RFC 3394 section 4.6: 256 bits of key data under a 256-bit KEK.
_KEK: Final = bytes(range(32))
_DATA: Final = bytes.fromhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f")
_WRAPPED: Final = bytes.fromhex("28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21")
_PACE_ROUNDS: Final = 9


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the self-test found. `call_s`: median seconds of one seal."""

    fixed_attributes: bool
    call_s: float


UNKNOWN: Final = Capabilities(fixed_attributes=False, call_s=math.inf)
"""Of a token that was not proved yet."""


def require_mechanisms(offered: frozenset[int], label: str) -> None:
    """Raise TokenRefused with one sentence that names every mechanism the token lacks."""
    lacking = [name for kind, name in REQUIRED_MECHANISMS.items() if kind not in offered]
    if lacking:
        raise TokenRefused(f"The token {label!r} lacks {', '.join(lacking)}, which hsmkms needs. Choose another token.")


def run(session: ck.Session) -> Capabilities:
    """Prove the token with throw-away keys. Raises TokenRefused, or CryptokiError when a call fails."""
    known = session.create_object(
        {
            ck.CKA_CLASS: ck.CKO_SECRET_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_AES,
            ck.CKA_TOKEN: False,
            ck.CKA_WRAP: True,
            ck.CKA_UNWRAP: True,
            ck.CKA_VALUE: _KEK,
        }
    )
    fixed = _takes_fixed_attributes(session)
    root = session.generate_key(
        ck.CKM_AES_KEY_GEN, templates.wrapping_key(new_id(), "hsmkms self-test", token=False, fixed=False)
    )
    try:
        if session.seal(known, _DATA) != _WRAPPED or session.open(known, _WRAPPED) != _DATA:
            raise TokenRefused("The token's CKM_AES_KEY_WRAP is not that of RFC 3394. Choose another token.")
        _require_kept(session, known, root)
        return Capabilities(fixed, _pace_s(session, root))
    finally:
        session.destroy(root)
        session.destroy(known)


def refuses(act: Callable[[], object]) -> bool:
    """Whether the token does not do this, however often it is asked. Raises CryptokiError when a session or the device
    was lost: that tells nothing of the token, and what is found here is believed for as long as the process lives."""
    for _ in range(2):
        try:
            act()
        except CryptokiError as error:
            if not error.is_answer:
                raise
        else:
            return False
    return True


def _takes_fixed_attributes(session: ck.Session) -> bool:
    """Whether the token knows MODIFIABLE and COPYABLE; some refuse the whole template because of them."""
    template = templates.wrapping_key(new_id(), "hsmkms self-test", token=False, fixed=True)
    return not refuses(lambda: session.destroy(session.generate_key(ck.CKM_AES_KEY_GEN, template)))


def _require_kept(session: ck.Session, known: int, root: int) -> None:
    """Attack a throw-away root key: NSS 3.87 lets itself be robbed both ways, so the flag alone proves nothing."""
    if not refuses(lambda: session.wrap_key(known, root)):
        raise TokenRefused("The token let a non-extractable key be wrapped out of it. It must not hold root keys.")
    if not refuses(lambda: session.copy_object(root, {ck.CKA_TOKEN: False, ck.CKA_EXTRACTABLE: True})):
        raise TokenRefused(
            "The token copies a non-extractable key into an extractable one. It must not hold root keys."
        )


def _pace_s(session: ck.Session, key: int) -> float:
    times = []
    for _ in range(_PACE_ROUNDS):
        session.begin_call()
        started = time.perf_counter()
        session.seal(key, _DATA)
        times.append(time.perf_counter() - started)
    return sorted(times)[_PACE_ROUNDS // 2]
