"""python-pkcs11 at work in a process of its own, on the same token. Reads JSON lines `[what, key id, data]` (hex),
writes `[result, error]`: data in hex, or the name of the CK_RV as the standard spells it.

Of its own, because it initialises the module without locks (C_Initialize of NULL), which threads of ours need.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

_DEK = {
    Attribute.TOKEN: False,
    Attribute.PRIVATE: False,
    Attribute.SENSITIVE: False,
    Attribute.EXTRACTABLE: True,
}


def main() -> None:
    """Serve until standard input ends."""
    library = pkcs11.lib(sys.argv[1])
    session = library.get_token(token_label=sys.argv[2]).open(rw=True, user_pin=os.environ["TOKEN_PIN"])
    for line in sys.stdin:
        what, key_id, data = json.loads(line)
        key = session.get_key(object_class=ObjectClass.SECRET_KEY, key_type=KeyType.AES, id=bytes.fromhex(key_id))
        try:
            found = (_seal if what == "seal" else _open)(session, key, bytes.fromhex(data))
            print(json.dumps([found.hex(), None]), flush=True)
        except pkcs11.PKCS11Error as error:
            print(json.dumps([None, _ck_rv(type(error).__name__)]), flush=True)


def _seal(session: pkcs11.Session, key: Any, frame: bytes) -> bytes:
    kind = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET}
    dek = session.create_object({**kind, **_DEK, Attribute.VALUE: frame})
    try:
        return bytes(key.wrap_key(dek, mechanism=Mechanism.AES_KEY_WRAP))
    finally:
        dek.destroy()


def _open(_: pkcs11.Session, key: Any, sealed: bytes) -> bytes:
    dek = key.unwrap_key(
        ObjectClass.SECRET_KEY, KeyType.GENERIC_SECRET, sealed, mechanism=Mechanism.AES_KEY_WRAP, template=_DEK
    )
    try:
        return bytes(dek[Attribute.VALUE])
    finally:
        dek.destroy()


def _ck_rv(name: str) -> str:
    return "CKR_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


main()
