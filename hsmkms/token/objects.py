"""Token objects by CKA_ID: a list of all, and a search for what is not on it.

After each fresh start of the module every handle is unknown. A list costs a call an object: on SoftHSM less than a few
searches, on a device in the network perhaps minutes, for which nobody waits when the token comes back. So a list that
took long the last time is read only when searches since the start have taken as long; one that takes longer than half
a minute is given up for good.

An object is trusted after it was looked up exactly once, answered the right attributes and the label of its owner,
and gave the check value that its row has. Its handle is kept until the module is opened anew.
"""

from __future__ import annotations

import math
import time
from typing import Final

from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import KeyMaterialMissing
from hsmkms.token import cryptoki as ck
from hsmkms.token import templates

AES_OBJECTS: Final[dict[int, ck.Value]] = {
    ck.CKA_CLASS: ck.CKO_SECRET_KEY,
    ck.CKA_KEY_TYPE: ck.CKK_AES,
    ck.CKA_TOKEN: True,
}
_CHECK_BLOCK: Final = bytes(16)
CHECK_VALUE_BYTES: Final = 8
_SHORT_LISTING_S: Final = 0.5
_LONGEST_LISTING_S: Final = 30.0


def aes_object(version_id: str) -> ck.Template:
    """What a wrapping key is found by."""
    return {**AES_OBJECTS, ck.CKA_ID: templates.object_id(version_id)}


class ObjectMissing(Exception):
    """The token answered that no such object is there. It may also be the token that is gone: see `recovery`."""


class ObjectAmbiguous(Exception):
    """A look-up found several objects under one CKA_ID. SoftHSM 2.6.1 shows one object twice to a process of which one
    thread generates while another searches, until the module is opened anew; so that is done before it is believed."""


def check_value(session: ck.Session, handle: int) -> bytes:
    """The first 8 bytes of the AES key wrap of 16 zero bytes.

    A wrapping key may not encrypt, so the usual value (SP 800-57, encryption of a zero block) cannot be had; this one
    works on every token. No sealed frame begins with a zero byte, so it is never part of a ciphertext.
    """
    return session.seal(handle, _CHECK_BLOCK)[:CHECK_VALUE_BYTES]


class KeyIndex:
    """CKA_ID → handle for the AES keys of one token, valid for one generation of the session pool."""

    def __init__(self) -> None:
        self._generation = 0
        self._found: dict[bytes, list[int]] = {}
        self._listed = False
        self._listing_s = 0.0
        self._searched_s = 0.0
        # Replaced whole with the generation it belongs to, so that it may be read without a lock.
        self._trusted: tuple[int, dict[str, tuple[int, str, bytes]]] = (0, {})

    def is_due(self, generation: int) -> bool:
        """Whether the next look-up of an unknown id reads a list of all objects first."""
        fresh = generation != self._generation
        searched_s = 0.0 if fresh else self._searched_s
        return (fresh or not self._listed) and (self._listing_s < _SHORT_LISTING_S or searched_s >= self._listing_s)

    def resolve(self, session: ck.Session, generation: int, version: KeyVersion) -> int:
        """Handle of `version`. Raises ObjectMissing, ObjectAmbiguous, TokenRefused (unsafe attributes) or
        KeyMaterialMissing (another key under this id, or another owner's)."""
        handle = self.look_up(session, generation, version.id)
        read = session.read(handle, (ck.CKA_LABEL, *templates.READ_BACK))
        templates.require_safe(read)
        if read.get(ck.CKA_LABEL) != templates.label_of(version.owner).encode():
            raise KeyMaterialMissing("The key's object belongs to another key or instance. Run `hsmkms doctor`.")
        if check_value(session, handle) != version.check_value:
            raise KeyMaterialMissing("The token holds another key under this version's id. Run `hsmkms doctor`.")
        self._trusted[1][version.id] = (handle, version.owner, version.check_value)
        return handle

    def trusted(self, generation: int, version: KeyVersion) -> int | None:
        """The handle that `resolve` proved in this generation for this owner and check value, if it did."""
        known, handles = self._trusted
        found = handles.get(version.id) if known == generation else None
        if found is None or found[1] != version.owner or found[2] != version.check_value:
            return None
        return found[0]

    def look_up(self, session: ck.Session, generation: int, version_id: str) -> int:
        """Handle by id alone. Raises ObjectMissing or ObjectAmbiguous."""
        if generation != self._generation:
            self._found, self._trusted, self._generation = {}, (generation, {}), generation
            self._listed, self._searched_s = False, 0.0
        object_id = templates.object_id(version_id)
        if object_id not in self._found and self.is_due(generation):
            self._list(session)
        handles = self._found.get(object_id)
        if handles is None:
            began = time.monotonic()
            handles = session.find(aes_object(version_id))
            self._searched_s += time.monotonic() - began
            if not handles:
                raise ObjectMissing
            self._found[object_id] = handles
        if len(handles) != 1:
            raise ObjectAmbiguous
        return handles[0]

    def learn(self, generation: int, version: KeyVersion, handle: int) -> None:
        """Note an object that was just generated and read back, so that its first use does not search the token."""
        if generation == self._generation:
            self._found[templates.object_id(version.id)] = [handle]
            self._trusted[1][version.id] = (handle, version.owner, version.check_value)

    def forget(self, version_id: str) -> None:
        """Drop what is known of an id, so that the next look-up searches the token."""
        self._trusted[1].pop(version_id, None)
        self._found.pop(templates.object_id(version_id), None)

    def distrust(self, version_id: str) -> None:
        """Keep the handle, and have attributes and check value read again at the next `resolve`."""
        self._trusted[1].pop(version_id, None)

    def _list(self, session: ck.Session) -> None:
        began, found = time.monotonic(), dict[bytes, list[int]]()
        for handle in session.find(AES_OBJECTS):
            if time.monotonic() - began > _LONGEST_LISTING_S:
                self._listing_s = math.inf
                return
            object_id = session.read(handle, (ck.CKA_ID,)).get(ck.CKA_ID, b"")
            found.setdefault(object_id, []).append(handle)
        self._found, self._listed = found, True
        self._listing_s = time.monotonic() - began
