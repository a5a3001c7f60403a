"""Something that a DEK opens, under a key of its own, and its follower: what adopters share, without a system."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from hsmkms.adopters.client import Event, KeyServiceClient
from hsmkms.adopters.core.dek_file import WrappedDekFile, aad_of
from hsmkms.adopters.core.follower import Follower
from hsmkms.adopters.refusals import LockFailed
from hsmkms.domain.secrets import SecretBytes
from tests.support.adopter import Adopter
from tests.support.deployment import create_key

Act = Callable[[str, str], None]
_names = (f"db{number}" for number in itertools.count())


@dataclass
class Box:
    """Something that a DEK opens."""

    dek: bytes | None = None
    stuck: bool = False

    @property
    def is_open(self) -> bool:
        return self.dek is not None

    def unlock(self, dek: SecretBytes) -> None:
        self.dek = dek.reveal()

    def lock(self) -> None:
        if self.stuck:
            raise LockFailed("Somebody holds the box open.")
        self.dek = None


@dataclass
class Protected:
    """A box under a key of its own, followed."""

    key: str
    crn: str
    plaintext: bytes
    file: Path
    box: Box
    follower: Follower
    client: KeyServiceClient
    cursor: int

    def news(self) -> list[Event]:
        """Its events since it was made."""
        return [event for event in self.client.events(self.cursor).events if event.resource_crn == self.crn]


def protect(admin: httpx.Client, client: KeyServiceClient, database: Adopter, directory: Path) -> Protected:
    key, name = create_key(admin), next(_names)
    crn, file = database.crn(name), directory / f"{name}.json"
    made = client.generate_and_wrap(key, aad_of("volume", crn, name))
    WrappedDekFile.of("volume", crn, name, client.key(key), made).write(file)
    cursor = client.events(0).cursor
    client.register(key, crn)
    box = Box()
    follower = Follower(client, file, box)
    return Protected(key, crn, made.plaintext.reveal(), file, box, follower, client, cursor)
