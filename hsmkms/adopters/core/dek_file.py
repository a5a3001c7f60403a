"""A wrapped DEK on disk: which key opens it, and what it belongs to. The DEK itself is never written.

The file is JSON of one object; `format` says which members there are. A rewrap changes `key_version`, `ciphertext` and
`wrapped_at` and nothing else: `dek_id` names the DEK itself, so what refers to it outlives every rotation.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pydantic

from hsmkms.adopters.client import AdopterError, Key, Rewrapped, WrappedDek
from hsmkms.adopters.core import atomic

FORMAT: Final = 1
_MAX_BYTES: Final = 65_536


class DekFileInvalid(AdopterError):
    """The file is not there, is damaged, or is of a later version of this program."""


class WrappedDekFile(pydantic.BaseModel):
    """The content of the file. `kind` and `resource_crn` say what the DEK encrypts; `key_version` is the id of the
    version that wrapped it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: int = FORMAT
    kind: str = pydantic.Field(min_length=1)
    resource_crn: str = pydantic.Field(min_length=1)
    dek_id: str = pydantic.Field(min_length=1)
    key_crn: str = pydantic.Field(min_length=1)
    key_id: str = pydantic.Field(min_length=1)
    key_version: str = pydantic.Field(min_length=1)
    ciphertext: str = pydantic.Field(min_length=1)
    created_at: datetime
    wrapped_at: datetime

    @property
    def aad(self) -> tuple[str, ...]:
        """What the ciphertext is bound to besides the key: it opens for nothing else."""
        return aad_of(self.kind, self.resource_crn, self.dek_id)

    @classmethod
    def of(cls, kind: str, resource_crn: str, dek_id: str, key: Key, wrapped: WrappedDek) -> WrappedDekFile:
        """A new one."""
        now = _now()
        return cls(
            kind=kind,
            resource_crn=resource_crn,
            dek_id=dek_id,
            key_crn=key.crn,
            key_id=key.id,
            key_version=wrapped.key_version,
            ciphertext=wrapped.ciphertext,
            created_at=now,
            wrapped_at=now,
        )

    def moved(self, to: Rewrapped) -> WrappedDekFile:
        """The same DEK under another version of its key."""
        return self.model_copy(
            update={"ciphertext": to.ciphertext, "key_version": to.key_version, "wrapped_at": _now()}
        )

    @classmethod
    def read(cls, file: Path) -> WrappedDekFile:
        """Raises DekFileInvalid, which says what is wrong and quotes nothing of it."""
        try:
            with file.open("rb") as reader:
                content = reader.read(_MAX_BYTES + 1)
        except OSError as error:
            raise DekFileInvalid(f"The wrapped DEK {file} cannot be read: {error.strerror}.") from error
        return cls.parse(content, str(file))

    @classmethod
    def parse(cls, content: bytes, place: str) -> WrappedDekFile:
        """The same from what was read at a place. Raises DekFileInvalid, which names it."""
        if not content.strip(b"\0 \n"):
            raise DekFileInvalid(f"The wrapped DEK {place} is empty. {_RESTORE}")
        try:
            found = json.loads(content)
        except ValueError as error:
            raise DekFileInvalid(f"The wrapped DEK {place} is damaged: it is not JSON. {_RESTORE}") from error
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise DekFileInvalid(
                f"The wrapped DEK {place} is of format {version}; this program knows up to {FORMAT}. Use a newer one."
            )
        try:
            return cls.model_validate(found)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise DekFileInvalid(f"The wrapped DEK {place} is damaged at {name}. {_RESTORE}") from None

    def write(self, file: Path) -> None:
        """Replace the file whole. Raises OSError, and then the one before is still there."""
        atomic.replace(file, self.model_dump_json(indent=1).encode() + b"\n")


def new_dek_id() -> str:
    """The name of a DEK, for its whole life."""
    return str(uuid.uuid4())


def aad_of(kind: str, resource_crn: str, dek_id: str) -> tuple[str, ...]:
    """Binds a DEK to what it encrypts. A string has 255 characters at most (contract section 2), a CRN more."""
    pieces = [resource_crn[start : start + 200] for start in range(0, len(resource_crn), 200)]
    return (kind, dek_id, *pieces)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


_RESTORE: Final = "Restore it from a backup: any older copy opens too while the key exists."
