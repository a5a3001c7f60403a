"""Shapes on the wire of registrations, events and acknowledgements (additions sections 3.9 and 3.10)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from hsmkms.api.wire import AnswerModel, CollectionMetadata, ListMetadata, RequestModel, VersionReference, time_text
from hsmkms.domain.crn import key_crn
from hsmkms.domain.events import KeyEvent
from hsmkms.domain.keys import KeyState
from hsmkms.domain.registrations import Registration
from hsmkms.domain.tenants import Instance

REGISTRATION_TYPE: Final = "application/vnd.ibm.kms.registration+json"
REGISTRATION_INPUT_TYPE: Final = "application/vnd.ibm.kms.registration_input+json"
RESOURCE_CRN_TYPE: Final = "application/vnd.ibm.kms.resource_crn+json"
EVENT_ACKNOWLEDGE_TYPE: Final = "application/vnd.ibm.kms.event_acknowledge+json"
EVENT_TYPE: Final = "application/vnd.hsmkms.event+json"
"""Reading events is ours: how IBM's services hear of them is not public."""


class RegistrationWriteResource(RequestModel):
    description: str | None = None
    preventKeyDeletion: bool | None = None
    registrationMetadata: str | None = None
    keyVersionId: str | None = None


class RegistrationBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[RegistrationWriteResource]


class ResourceCrnResource(RequestModel):
    resourceCrn: str


class ResourceCrnBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[ResourceCrnResource]


class KeyStateData(RequestModel):
    rewrappedKeyVersion: str | None = None


class AcknowledgementResource(RequestModel):
    eventId: str
    adopterKeyState: str
    timestamp: str
    keyStateData: KeyStateData | None = None
    deleteRegistration: bool | None = None


class AcknowledgementBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[AcknowledgementResource]


class RegistrationResource(AnswerModel):
    keyId: str
    keyName: str
    resourceCrn: str
    createdBy: str
    creationDate: str
    updatedBy: str
    lastUpdated: str
    description: str | None = None
    preventKeyDeletion: bool
    keyVersion: VersionReference
    registrationMetadata: str | None = None


class RegistrationCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[RegistrationResource]


class EventResource(AnswerModel):
    eventId: str
    eventType: str
    keyId: str
    keyCrn: str
    resourceCrn: str
    keyState: int
    requestedKeyState: str
    keyVersion: VersionReference
    correlationId: str
    creationDate: str
    acknowledgeBefore: str
    status: str
    acknowledgedDate: str | None = None
    adopterKeyState: str | None = None


class EventMetadata(ListMetadata):
    cursor: int | None = None


class EventCollection(AnswerModel):
    metadata: EventMetadata
    resources: list[EventResource]


def registration_resource(registration: Registration, *, to_service: bool) -> dict[str, Any]:
    """A registration; its metadata is for its service alone."""
    resource: dict[str, Any] = {
        "keyId": registration.key_id,
        "keyName": registration.key_name,
        "resourceCrn": str(registration.crn),
        "createdBy": registration.created_by,
        "creationDate": time_text(registration.created_at),
        "updatedBy": registration.updated_by,
        "lastUpdated": time_text(registration.updated_at),
        "preventKeyDeletion": registration.prevents_deletion,
        "keyVersion": {
            "id": registration.version_id,
            "creationDate": time_text(registration.version_created_at),
        },
    }
    if registration.description is not None:
        resource["description"] = registration.description
    if to_service and registration.metadata is not None:
        resource["registrationMetadata"] = registration.metadata
    return resource


def event_resource(event: KeyEvent, instance: Instance, now: datetime) -> dict[str, Any]:
    """An event. `requestedKeyState` is what IBM's object storage reports of its own notices (additions section 11)."""
    enabled = event.key_state in (KeyState.ACTIVE, KeyState.DEACTIVATED)
    resource: dict[str, Any] = {
        "eventId": event.id,
        "eventType": event.type.value,
        "keyId": event.key_id,
        "keyCrn": key_crn(instance.region, instance.account, instance.id, event.key_id),
        "resourceCrn": event.resource_crn,
        "keyState": int(event.key_state),
        "requestedKeyState": "enabled" if enabled else "disabled",
        "keyVersion": {"id": event.version_id},
        "correlationId": event.correlation_id,
        "creationDate": time_text(event.created_at),
        "acknowledgeBefore": time_text(event.due_at),
        "status": event.status(now).value,
    }
    if event.acknowledged_at is not None and event.adopter_key_state is not None:
        resource["acknowledgedDate"] = time_text(event.acknowledged_at)
        resource["adopterKeyState"] = event.adopter_key_state.value
    return resource
