"""What Swift stores with a bucket: its DEKs, wrapped, each in a header of its own.

X-Container-Sysmeta-Hsmkms-Dek-<id of the DEK>: a WrappedDekFile as JSON

A bucket has one DEK. Two calls that make the same bucket at the same moment leave two: nothing that one of them wrote
is taken away by the other, both agree on which is used, and what was encrypted is found by the DEK's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hsmkms.adopters.core.dek_file import DekFileInvalid, WrappedDekFile
from hsmkms.adopters.objectstorage.configuration import Account

KIND: Final = "bucket"
_PREFIX: Final = "hsmkms-dek-"
_SEGMENTS: Final = "+segments"
_RESERVED: Final = "\0"
_VERSIONS: Final = f"{_RESERVED}versions{_RESERVED}"
MARK: Final = "X-Container-Sysmeta-Hsmkms-Protected"
"""Says of a container of parts or versions that its bucket is under a root key, should nobody find the bucket."""


@dataclass(frozen=True)
class BucketDeks:
    """The DEKs of one bucket, that which encrypts now first. `keeps_key`: the root key must not be deleted."""

    deks: tuple[WrappedDekFile, ...]
    keeps_key: bool = False

    @property
    def active(self) -> WrappedDekFile:
        return self.deks[0]

    @classmethod
    def of(cls, account: Account, bucket: str, sysmeta: Mapping[str, str]) -> BucketDeks | None:
        """From a container's system metadata, names in lower case; None for a bucket without a root key.

        Raises DekFileInvalid.
        """
        crn, found = account.bucket_crn(bucket), []
        for name, value in sysmeta.items():
            if not name.startswith(_PREFIX) or not value:
                continue
            dek = WrappedDekFile.parse(value.encode(), f"of the bucket {bucket}")
            if dek.kind != KIND or dek.resource_crn != crn or name != f"{_PREFIX}{dek.dek_id}":
                raise DekFileInvalid(f"The wrapped DEK of the bucket {bucket} is that of {dek.resource_crn}.")
            found.append(dek)
        found.sort(key=lambda dek: (dek.created_at, dek.dek_id))
        return cls(tuple(found), "hsmkms-retention" in sysmeta) if found else None


def header_of(dek: WrappedDekFile) -> tuple[str, str]:
    """Name and value of the header that keeps a DEK."""
    return f"X-Container-Sysmeta-{_PREFIX}{dek.dek_id}".title(), dek.model_dump_json()


def bucket_of(container: str) -> str:
    """The bucket whose DEK a container's objects are under: parts and old versions are in containers of their own."""
    name = container.removeprefix(_VERSIONS)
    return name.removesuffix(_SEGMENTS)


def is_subsidiary(container: str) -> bool:
    """Whether a container is there for a bucket of another name."""
    return container.startswith(_RESERVED) or bucket_of(container) != container


def segments_of(bucket: str) -> str:
    """Where a bucket's parts are."""
    return f"{bucket}{_SEGMENTS}"


@dataclass(frozen=True)
class Part:
    """A part of a multipart upload; `upload` is the object that lies there until the upload is complete."""

    obj: str
    upload: str


def part_of(name: str) -> Part | None:
    """What an object in a container of parts is: `<object>/<upload>/<number>`, or None for anything else."""
    pieces = name.rsplit("/", 2)
    if len(pieces) != 3 or not pieces[2].isdecimal():
        return None
    return Part(pieces[0], f"{pieces[0]}/{pieces[1]}")
