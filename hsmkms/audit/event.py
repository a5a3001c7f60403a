"""One audit event in CADF's shape (DMTF DSP0262; contract section 7, additions section 9).

No member can hold a plaintext, a ciphertext or a credential: request and response data are closed sets of names, times,
numbers and ids.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

EVENT_TYPE: Final = "http://schemas.dmtf.org/cloud/audit/1.0/event"
SUCCESS: Final = "success"
FAILURE: Final = "failure"
PENDING: Final = "pending"
"""Written before a change is made; the event of its outcome names it in `intent`."""
CRITICAL: Final = "critical"
WARNING: Final = "warning"
NORMAL: Final = "normal"

_CRITICAL_STATUS: Final = frozenset({401, 403, 503, 507})
_WARNING_STATUS: Final = frozenset({400, 409, 424, 502, 504, 505})
_CRITICAL_ACTIONS: Final = frozenset({"kms.secrets.delete", "kms.registrations.delete"})
_WARNING_ACTIONS: Final = frozenset(
    {
        "kms.secrets.rotate",
        "kms.secrets.restore",
        "kms.secrets.enable",
        "kms.secrets.disable",
        "kms.secrets.setkeyfordeletion",
        "kms.secrets.unsetkeyfordeletion",
        "kms.policies.write",
        "kms.instance-policies.write",
    }
)


class _Cadf(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    pass


class Host(_Cadf, frozen=True):
    """Where a caller came from, as the socket tells."""

    address: str


class Credential(_Cadf, frozen=True):
    """What kind of proof a caller brought, never the proof."""

    type: str


class Initiator(_Cadf, frozen=True):
    """Who asked."""

    id: str
    name: str
    type_uri: str = msgspec.field(name="typeURI")
    credential: Credential | None = None
    host: Host | None = None


class Target(_Cadf, frozen=True):
    """What it was about; `id` is a CRN."""

    id: str
    name: str
    type_uri: str = msgspec.field(name="typeURI")


class Reason(_Cadf, frozen=True):
    """HTTP status and its phrase."""

    reason_code: int
    reason_type: str


class RequestData(_Cadf, frozen=True):
    """What was asked for."""

    request_uri: str | None = msgspec.field(default=None, name="requestURI")
    instance_id: str | None = msgspec.field(default=None, name="instanceID")
    key_ring_id: str | None = None
    key_type: str | None = None


class ResponseData(_Cadf, frozen=True):
    """What came of it; the contract's table says which member belongs to which action."""

    key_id: str | None = None
    key_ring_id: str | None = None
    key_version_id: str | None = None
    key_version_creation_date: datetime | None = None
    rewrapped_key_version_id: str | None = None
    key_state: int | None = None
    expiration_date: datetime | None = None
    days_to_key_expire: int | None = None
    deletion_date: datetime | None = None
    purge_allowed_from: datetime | None = None
    purge_eligible_on: datetime | None = None
    total_resources: int | None = None
    failed_resources: int | None = None
    resources_digest: str | None = None
    max_allowed_retrievals: int | None = None
    remaining_retrievals: int | None = None


class Event(_Cadf, frozen=True):
    """One request, or one step of a job. `event_time` is UTC."""

    id: str
    event_time: datetime
    action: str
    outcome: str
    severity: str
    initiator: Initiator
    target: Target
    correlation_id: str
    request_data: RequestData
    response_data: ResponseData = ResponseData()
    reason: Reason | None = None
    intent: str | None = None
    observer: str = "hsmkms"
    type_uri: str = msgspec.field(default=EVENT_TYPE, name="typeURI")


def severity_of(action: str, status: int) -> str:
    """By the status and the action (contract section 7)."""
    if status in _CRITICAL_STATUS or action in _CRITICAL_ACTIONS:
        return CRITICAL
    if status in _WARNING_STATUS or action in _WARNING_ACTIONS:
        return WARNING
    return NORMAL


encode: Final = msgspec.json.Encoder().encode
