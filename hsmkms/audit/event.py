"""One audit event in CADF's shape (DMTF DSP0262; contract section 7, additions section 9).

No member can hold a plaintext, a ciphertext or a credential: request and response data are closed sets of names, times,
numbers and ids.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

EVENT_TYPE: Final = "http://schemas.dmtf.org/cloud/audit/1.0/event"
ACTIVITY: Final = "activity"
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


class Observer(_Cadf, frozen=True):
    """Who noticed and says so."""

    id: str
    name: str
    type_uri: str = msgspec.field(name="typeURI")


HSMKMS: Final = Observer("hsmkms", "hsmkms", "service/security/keymanager")


class Reason(_Cadf, frozen=True):
    """HTTP status and its phrase."""

    reason_code: int
    reason_type: str


class Values(_Cadf, frozen=True, kw_only=True):
    """What an action changes, as it was or as it became. The names of the policies' members are Key Protect's."""

    key_ring_id: str | None = None
    key_state: int | None = None
    auth_id: str | None = msgspec.field(default=None, name="authID")
    auth_expiration: datetime | None = None
    allowed_network_enabled: bool | None = msgspec.field(default=None, name="policyAllowedNetworkEnabled")
    allowed_network: str | None = msgspec.field(default=None, name="policyAllowedNetworkAttribute")
    dual_auth_delete_enabled: bool | None = msgspec.field(default=None, name="policyDualAuthDeleteEnabled")
    allowed_ip_enabled: bool | None = msgspec.field(default=None, name="policyAllowedIPEnabled")
    allowed_ip: tuple[str, ...] | None = msgspec.field(default=None, name="policyAllowedIPAttribute")
    create_access_enabled: bool | None = msgspec.field(default=None, name="PolicyKCIAEnabled")
    create_root_key: bool | None = msgspec.field(default=None, name="PolicyKCIAAttrCRK")
    create_standard_key: bool | None = msgspec.field(default=None, name="PolicyKCIAAttrCSK")
    import_root_key: bool | None = msgspec.field(default=None, name="PolicyKCIAAttrIRK")
    import_standard_key: bool | None = msgspec.field(default=None, name="PolicyKCIAAttrISK")
    enforce_token: bool | None = msgspec.field(default=None, name="PolicyKCIAAttrET")
    metrics_enabled: bool | None = msgspec.field(default=None, name="policyMetricsEnabled")
    rotation_enabled: bool | None = msgspec.field(default=None, name="policyRotationEnabled")
    rotation_interval_month: int | None = msgspec.field(default=None, name="policyRotationAttribute")
    roles: tuple[str, ...] | None = None
    members: tuple[str, ...] | None = None
    subject: str | None = None
    scope: str | None = None


class RequestData(_Cadf, frozen=True, kw_only=True):
    """What was asked for."""

    request_uri: str | None = msgspec.field(default=None, name="requestURI")
    instance_id: str | None = msgspec.field(default=None, name="instanceID")
    key_ring_id: str | None = None
    key_type: str | None = None
    expiration_date: datetime | None = None
    initial_value: Values | None = None
    new_value: Values | None = None


class EventAckData(_Cadf, frozen=True, kw_only=True):
    """What a service did about a notice, or did not do in time."""

    event_id: str
    event_type: str
    key_state: int
    resource_crn: str = msgspec.field(name="resourceCRN")
    event_ack_time_stamp: datetime | None = None
    new_key_version_id: str | None = None
    new_key_version_creation_date: datetime | None = None
    old_key_version_id: str | None = None
    old_key_version_creation_date: datetime | None = None


class ResponseData(_Cadf, frozen=True, kw_only=True):
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
    initial_value: Values | None = None
    new_value: Values | None = None
    event_ack_data: EventAckData | None = None
    records: tuple[str, ...] | None = None
    reason_for_failure: str | None = None
    resource_crn: str | None = msgspec.field(default=None, name="resourceCRN")


NOTHING_ANSWERED: Final = ResponseData()


class Event(_Cadf, frozen=True, kw_only=True):
    """One request, or one step of a job. `event_time` is UTC; `data_event` says that it was about what keys protect,
    and not about keys."""

    type_uri: str = msgspec.field(name="typeURI")
    event_type: str
    id: str
    event_time: datetime
    action: str
    outcome: str
    message: str
    severity: str
    initiator: Initiator
    target: Target
    observer: Observer
    reason: Reason | None = None
    correlation_id: str
    request_data: RequestData
    response_data: ResponseData
    data_event: bool
    log_source_crn: str | None = msgspec.field(default=None, name="logSourceCRN")
    intent: str | None = None


def severity_of(action: str, status: int) -> str:
    """By the status and the action (contract section 7)."""
    if status in _CRITICAL_STATUS or action in _CRITICAL_ACTIONS:
        return CRITICAL
    if status in _WARNING_STATUS or action in _WARNING_ACTIONS:
        return WARNING
    return NORMAL


encode: Final = msgspec.json.Encoder().encode
