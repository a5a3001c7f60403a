"""What a caller asks for when creating a key, and the rules it has to meet (contract section 1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hsmkms.domain.ids import is_alias
from hsmkms.domain.importing import BroughtMaterial, require_material
from hsmkms.domain.keys import DESCRIPTION_CHARS, MAX_ALIASES, MAX_TAGS, NAME_CHARS, TAG_CHARS, TAG_FORBIDDEN
from hsmkms.errors import InvalidField


@dataclass(frozen=True, slots=True)
class NewKey:
    """A wish for a key: `extractable` False is a root key, True a standard key; without `material` it is born here."""

    name: str
    description: str | None
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    extractable: bool
    expires_at: datetime | None
    material: BroughtMaterial | None = None


def require_valid(wish: NewKey, now: datetime) -> None:
    """Raise InvalidField that names the first member which breaks a rule."""
    if wish.material is not None:
        require_material(wish.material, extractable=wish.extractable)
    _require_text("name", wish.name, NAME_CHARS)
    if wish.description is not None:
        _require_text("description", wish.description, DESCRIPTION_CHARS)
    if len(wish.tags) > MAX_TAGS:
        raise InvalidField("tags", f"The field `tags` takes at most {MAX_TAGS} tags.")
    for tag in wish.tags:
        if len(tag) > TAG_CHARS or TAG_FORBIDDEN & set(tag) or not _storable(tag):
            raise InvalidField("tags", f"A tag has at most {TAG_CHARS} characters and none of < > , : & |.")
    if len(wish.aliases) > MAX_ALIASES:
        raise InvalidField("aliases", f"The field `aliases` takes at most {MAX_ALIASES} aliases.")
    if len(set(wish.aliases)) != len(wish.aliases) or not all(is_alias(alias) for alias in wish.aliases):
        raise InvalidField(
            "aliases", "Aliases differ from each other, have 2 to 90 letters, digits, - or _, and are no UUID."
        )
    if wish.expires_at is not None and wish.expires_at <= now:
        raise InvalidField("expirationDate", "The field `expirationDate` must be in the future.")


def _require_text(field: str, text: str, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= len(text) <= bounds[1] or not _storable(text):
        raise InvalidField(field, f"The field `{field}` must have {bounds[0]} to {bounds[1]} printable characters.")


def _storable(text: str) -> bool:
    """No NUL and no lone surrogate, which databases refuse."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
