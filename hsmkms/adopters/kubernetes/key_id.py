"""The key_id of KMS v2: `<root key's id>:<its version's id>`.

It is public, the same on every node, and changes when the root key is rotated and at no other time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.kubernetes.refusals import PluginRefused, RequestInvalid

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_FORM: Final = re.compile(f"({_UUID}):({_UUID})", re.ASCII)
_KEY: Final = re.compile(_UUID, re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyId:
    """A root key and the version of it that encrypts."""

    root_key: str
    version: str

    def __str__(self) -> str:
        return f"{self.root_key}:{self.version}"

    @classmethod
    def parse(cls, text: str) -> KeyId:
        """Raises RequestInvalid."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise RequestInvalid("The key_id is not one that this plugin gave. Another plugin encrypted this.")
        return cls(found[1], found[2])


def root_key_of(client: KeyServiceClient, key: str) -> tuple[KeyServiceClient, str]:
    """A client of the instance that holds a root key, and the key's id, for an id or a CRN.

    Raises PluginRefused for an alias: it can be moved to another key, and then no secret of the cluster would open.
    """
    client, key_id = client.at_key(key)
    if not _KEY.fullmatch(key_id.lower()):
        raise PluginRefused(f"Name the root key by its id or CRN, not by an alias, which can move: {key_id}.")
    return client, key_id.lower()
