"""Registrations: which resource of a source service a root key protects (contract section 1.5, additions 3.9)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from hsmkms.domain.access import Caller, SourceCrn
from hsmkms.domain.keys import DESCRIPTION_CHARS, Key, KeyState, effective_state
from hsmkms.errors import (
    InvalidField,
    InvalidQueryParam,
    RegistrationKeyNotRoot,
    RegistrationKeyState,
    RegistrationVersion,
    ResourceOwner,
)

MAX_METADATA_CHARS: Final = 4_096
CRN_QUERY: Final = "urlEncodedResourceCRNQuery"

_PREFIX: Final = ("crn", "v1", "bluemix", "public")
_SEGMENTS: Final = 10
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_ACCOUNT: Final = re.compile(r"a/[A-Za-z0-9._-]{1,128}", re.ASCII)
_TYPE: Final = re.compile(r"[A-Za-z0-9._-]{0,128}", re.ASCII)
_RESOURCE: Final = re.compile(r"[!-)+-~]{0,512}", re.ASCII)
"""Any visible character but `*`, which means something in a query."""
_WELL_FORMED: Final = (_PLAIN, _PLAIN, _ACCOUNT, _PLAIN, _TYPE, _RESOURCE)


@dataclass(frozen=True, slots=True)
class ResourceCrn:
    """Names a resource: `crn:v1:bluemix:public:<service>:<region>:a/<account>:<instance>:<type>:<resource>`, whose
    last two segments may be empty."""

    service: str
    region: str
    account: str
    service_instance: str
    resource_type: str
    resource: str

    def __str__(self) -> str:
        return ":".join((self.source, self.resource_type, self.resource))

    @property
    def source(self) -> str:
        """The first eight segments, which name the instance of the service that owns the resource."""
        return source_text(SourceCrn(self.service, self.region, self.account, self.service_instance))


def source_text(source: SourceCrn) -> str:
    """The first eight segments of the CRN of every resource of a source service's instance."""
    return ":".join((*_PREFIX, source.service, source.region, f"a/{source.account}", source.instance_id))


def parse_resource_crn(text: str) -> ResourceCrn:
    """A CRN that names a resource at least down to its service instance. Raises InvalidField."""
    parts = text.split(":", _SEGMENTS - 1)
    well_formed = len(parts) == _SEGMENTS and tuple(parts[:4]) == _PREFIX
    if not well_formed or not all(form.fullmatch(part) for form, part in zip(_WELL_FORMED, parts[4:], strict=True)):
        raise InvalidField(
            "resourceCrn", "Give the whole CRN of the resource: ten segments, at least up to its service instance."
        )
    service, region, scope, service_instance, resource_type, resource = parts[4:]
    return ResourceCrn(service, region, scope.removeprefix("a/"), service_instance, resource_type, resource)


@dataclass(frozen=True, slots=True)
class CrnQuery:
    """What the fields of a ResourceCrn must be, None for any; with `prefix` the last one only begins so."""

    segments: tuple[str | None, ...]
    prefix: bool


@dataclass(frozen=True, slots=True)
class RegistrationQuery:
    """Which registrations to list, and which page of them."""

    limit: int
    offset: int
    crn: CrnQuery | None
    prevents_deletion: bool | None


def parse_crn_query(text: str, *, all_keys: bool) -> CrnQuery:
    """A CRN with `*` for whole segments or at the end of the last; over all keys not in the first eight.

    Raises InvalidQueryParam.
    """
    parts = text.split(":", _SEGMENTS - 1)
    if len(parts) != _SEGMENTS or any(part not in ("*", own) for part, own in zip(parts, _PREFIX, strict=False)):
        raise InvalidQueryParam(CRN_QUERY, "Give all ten segments of the CRN; `*` stands for any value of one.")
    if all_keys and "*" in parts[:8]:
        raise InvalidQueryParam(CRN_QUERY, "Over all keys only the last two segments of the CRN may be `*`.")
    last = parts[-1]
    prefix = last.endswith("*")
    values = [*parts[4:-1], last.removesuffix("*")]
    if any("*" in value for value in values if value != "*"):
        raise InvalidQueryParam(CRN_QUERY, "A `*` stands for a whole segment, or at the end of the last one.")
    if values[2] != "*" and not values[2].startswith("a/"):
        raise InvalidQueryParam(CRN_QUERY, "The seventh segment of the CRN is `a/` and the account.")
    values[2] = values[2].removeprefix("a/")
    return CrnQuery(tuple(None if value == "*" else value for value in values), prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A resource that a root key protects. The version is the one that its DEK is wrapped with; `metadata` is the
    service's own; `revision` counts its changes."""

    key_id: str
    key_name: str
    crn: ResourceCrn
    version_id: str
    version_created_at: datetime
    description: str | None
    metadata: str | None
    prevents_deletion: bool
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationWish:
    """What a service asks for; None for what it left out."""

    description: str | None = None
    metadata: str | None = None
    prevents_deletion: bool | None = None
    version_id: str | None = None


def require_owner(caller: Caller, crn: ResourceCrn) -> None:
    """Raise ResourceOwner unless the resource lies in an instance that the caller acts for."""
    if SourceCrn(crn.service, crn.region, crn.account, crn.service_instance) not in caller.sources:
        raise ResourceOwner


def require_registrable(key: Key, now: datetime) -> None:
    """Raise RegistrationKeyNotRoot or RegistrationKeyState unless a registration of the key may be written."""
    if key.extractable:
        raise RegistrationKeyNotRoot
    if effective_state(key, now) is not KeyState.ACTIVE:
        raise RegistrationKeyState


def require_valid_wish(wish: RegistrationWish) -> None:
    """Raise InvalidField for a text that is too long or too short."""
    low, high = DESCRIPTION_CHARS
    if wish.description is not None and not low <= len(wish.description) <= high:
        raise InvalidField("description", f"A description has {low} to {high} characters.")
    if wish.metadata is not None and len(wish.metadata) > MAX_METADATA_CHARS:
        raise InvalidField("registrationMetadata", f"The field has at most {MAX_METADATA_CHARS} characters.")


def new_registration(key: Key, crn: ResourceCrn, wish: RegistrationWish, by: str, now: datetime) -> Registration:
    """A registration with the key's current version."""
    return Registration(
        key_id=key.id,
        key_name=key.name,
        crn=crn,
        version_id=key.current.id,
        version_created_at=key.current.created_at,
        description=wish.description,
        metadata=wish.metadata,
        prevents_deletion=bool(wish.prevents_deletion),
        created_at=now,
        created_by=by,
        updated_at=now,
        updated_by=by,
        revision=0,
    )


def changed_registration(
    registration: Registration, key: Key, wish: RegistrationWish, by: str, now: datetime, *, newer: bool
) -> Registration:
    """The registration after a change. With `newer` the key version must be newer than the one registered, else not
    older. Raises RegistrationVersion."""
    version_id, version_created_at = registration.version_id, registration.version_created_at
    if wish.version_id is not None:
        wanted = key.version(wish.version_id)
        if wanted is None:
            raise RegistrationVersion("The key has no such version. Give the id of one of its versions.")
        # Newest first.
        ids = [one.id for one in key.versions]
        steps = ids.index(version_id) - ids.index(wanted.id)
        if steps < 0 or (newer and steps == 0):
            raise RegistrationVersion("The key version is not newer than the one that is registered.")
        version_id, version_created_at = wanted.id, wanted.created_at
    prevents = registration.prevents_deletion if wish.prevents_deletion is None else wish.prevents_deletion
    return replace(
        registration,
        version_id=version_id,
        version_created_at=version_created_at,
        description=registration.description if wish.description is None else wish.description,
        metadata=registration.metadata if wish.metadata is None else wish.metadata,
        prevents_deletion=prevents,
        updated_at=now,
        updated_by=by,
        revision=registration.revision + 1,
    )
