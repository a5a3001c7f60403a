"""Shapes on the wire: request models, response models for OpenAPI, and domain values as response objects.

Member names are those of contract section 1.1 and additions section 3; they are known nowhere else.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pydantic

from hsmkms.domain.crn import key_crn
from hsmkms.domain.importing import ImportToken, Passage
from hsmkms.domain.key_policies import KeyPolicy, KeyPolicyKind
from hsmkms.domain.keys import Key, KeyState, KeyVersion, effective_state
from hsmkms.domain.lifecycle import is_set_for_deletion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.domain.tenants import Instance, KeyRing
from hsmkms.domain.waits import Waits
from hsmkms.errors import InvalidField

KEY_TYPE: Final = "application/vnd.ibm.kms.key+json"
KEY_ACTION_TYPE: Final = "application/vnd.ibm.kms.key_action+json"
KEY_VERSION_TYPE: Final = "application/vnd.ibm.kms.key.version+json"
KEY_RING_TYPE: Final = "application/vnd.ibm.kms.key_ring+json"
ALIAS_TYPE: Final = "application/vnd.ibm.kms.alias+json"
IMPORT_TOKEN_TYPE: Final = "application/vnd.ibm.kms.import_token+json"
POLICY_TYPE: Final = "application/vnd.ibm.kms.policy+json"
ALLOWED_IP_TYPE: Final = "application/vnd.ibm.kms.allowed_ip_metadata+json"


class RequestModel(pydantic.BaseModel):
    """What clients send: no member too many, no type taken for another."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class CollectionMetadata(RequestModel):
    collectionType: str
    collectionTotal: int


class KeyCreateResource(RequestModel):
    type: Literal["application/vnd.ibm.kms.key+json"]
    name: str
    aliases: list[str] = []
    description: str | None = None
    tags: list[str] = []
    extractable: bool = True
    expirationDate: str | None = None
    payload: str | None = None
    encryptedNonce: str | None = None
    iv: str | None = None
    encryptionAlgorithm: str | None = None


class KeyCreateBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[KeyCreateResource]


class RotationWish(RequestModel):
    enabled: bool | None = None
    interval_month: int | None = None


class DualAuthWish(RequestModel):
    enabled: bool


class KeyWithPoliciesResource(KeyCreateResource):
    rotation: RotationWish | None = None
    dualAuthDelete: DualAuthWish | None = None


class KeyWithPoliciesBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[KeyWithPoliciesResource]


class KeyPolicyWriteResource(RequestModel):
    type: str | None = None
    rotation: RotationWish | None = None
    dualAuthDelete: DualAuthWish | None = None


class KeyPolicyBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[KeyPolicyWriteResource]


class KeyPatchBody(RequestModel):
    keyRingID: str


class WrapBody(RequestModel):
    plaintext: str | None = None
    aad: list[str] = []


class UnwrapBody(RequestModel):
    ciphertext: str
    aad: list[str] = []


class BulkWrapBody(RequestModel):
    items: list[WrapBody]


class BulkUnwrapBody(RequestModel):
    items: list[UnwrapBody]


class RotateBody(RequestModel):
    payload: str | None = None
    encryptedNonce: str | None = None
    iv: str | None = None
    encryptionAlgorithm: str | None = None


class ImportTokenBody(RequestModel):
    expiration: int | None = None
    maxAllowedRetrievals: int | None = None


class InstancePolicyAttributes(RequestModel):
    allowed_network: str | None = None
    allowed_ip: list[str] | None = None
    create_root_key: bool | None = None
    create_standard_key: bool | None = None
    import_root_key: bool | None = None
    import_standard_key: bool | None = None
    enforce_token: bool | None = None
    interval_month: int | None = None


class InstancePolicyData(RequestModel):
    enabled: bool
    attributes: InstancePolicyAttributes | None = None


class InstancePolicyWriteResource(RequestModel):
    policy_type: str
    policy_data: InstancePolicyData


class InstancePolicyBody(RequestModel):
    metadata: CollectionMetadata
    resources: list[InstancePolicyWriteResource]


class AnswerModel(pydantic.BaseModel):
    """What they get, for the description."""

    model_config = pydantic.ConfigDict(extra="forbid")


class SearchQuery(AnswerModel):
    query: str
    scopes: list[str]
    # `not` is a keyword of Python.
    negated: bool = pydantic.Field(alias="not")
    exact: bool


class ListMetadata(AnswerModel):
    collectionType: str
    collectionTotal: int
    totalCount: int | None = None
    incompleteSearch: bool | None = None
    searchQuery: SearchQuery | None = None


class VersionReference(AnswerModel):
    id: str
    creationDate: str | None = None


class AlgorithmMetadata(AnswerModel):
    bitLength: str
    mode: str


class DualAuthDelete(AnswerModel):
    enabled: bool
    keySetForDeletion: bool | None = None
    authExpiration: str | None = None


class Rotation(AnswerModel):
    enabled: bool
    interval_month: int | None = None


class KeyResource(AnswerModel):
    type: str
    id: str
    name: str
    aliases: list[str] | None = None
    description: str | None = None
    tags: list[str] | None = None
    state: int
    expirationDate: str | None = None
    extractable: bool
    crn: str
    imported: bool
    keyRingID: str
    creationDate: str
    createdBy: str
    algorithmType: str
    algorithmMetadata: AlgorithmMetadata
    algorithmBitSize: int
    algorithmMode: str
    lastUpdateDate: str | None = None
    lastRotateDate: str | None = None
    keyVersion: VersionReference | None = None
    importedBy: Literal["token", "process"] | None = None
    dualAuthDelete: DualAuthDelete
    rotation: Rotation | None = None
    deleted: bool
    deletionDate: str | None = None
    deletedBy: str | None = None
    restoreExpirationDate: str | None = None
    restoreAllowed: bool | None = None
    purgeAllowed: bool | None = None
    purgeAllowedFrom: str | None = None
    purgeScheduledOn: str | None = None
    payload: str | None = None


class KeyCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[KeyResource]


class AliasResource(AnswerModel):
    keyId: str
    alias: str
    creationDate: str
    createdBy: str


class AliasCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[AliasResource]


class KeyPolicyResource(AnswerModel):
    type: str
    id: str
    crn: str
    creationDate: str
    createdBy: str
    lastUpdateDate: str
    updatedBy: str
    rotation: Rotation | None = None
    dualAuthDelete: DualAuthDelete | None = None


class KeyPolicyCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[KeyPolicyResource] | None = None


class InstancePolicyResource(AnswerModel):
    policy_type: str
    policy_data: InstancePolicyData
    creationDate: str
    createdBy: str
    updatedBy: str
    lastUpdated: str


class InstancePolicyCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[InstancePolicyResource]


class AllowedIpResource(AnswerModel):
    private_endpoint_port: int


class AllowedIpCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[AllowedIpResource]


class VersionCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[VersionReference]


class KeyRingResource(AnswerModel):
    id: str
    creationDate: str | None = None
    createdBy: str | None = None


class KeyRingCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[KeyRingResource]


class ImportTokenAnswer(AnswerModel):
    id: str
    creationDate: str
    expirationDate: str
    maxAllowedRetrievals: int
    remainingRetrievals: int
    payload: str | None = None
    nonce: str | None = None


class WrapAnswer(AnswerModel):
    plaintext: str | None = None
    ciphertext: str
    keyVersion: VersionReference


class UnwrapAnswer(AnswerModel):
    plaintext: str
    keyVersion: VersionReference
    ciphertext: str | None = None
    rewrappedKeyVersion: VersionReference | None = None


class RewrapAnswer(AnswerModel):
    ciphertext: str
    keyVersion: VersionReference
    rewrappedKeyVersion: VersionReference


class ErrorTarget(AnswerModel):
    type: str
    name: str


class ErrorReason(AnswerModel):
    code: str
    message: str
    status: int
    moreInfo: str
    target: ErrorTarget | None = None


class ErrorResource(AnswerModel):
    errorMsg: str
    reasons: list[ErrorReason] | None = None


class BulkWrapAnswer(AnswerModel):
    items: list[WrapAnswer | ErrorResource]


class BulkUnwrapAnswer(AnswerModel):
    items: list[UnwrapAnswer | ErrorResource]


class ErrorCollection(AnswerModel):
    metadata: ListMetadata
    resources: list[ErrorResource]


class AccessTokenAnswer(AnswerModel):
    access_token: str
    refresh_token: str
    token_type: str
    expires_in: int
    expiration: int
    scope: str


class IamErrorContext(AnswerModel):
    requestId: str


class IamError(AnswerModel):
    errorCode: str
    errorMessage: str
    context: IamErrorContext


class PlatformErrorItem(AnswerModel):
    code: str
    message: str


class PlatformError(AnswerModel):
    trace: str
    status_code: int
    errors: list[PlatformErrorItem]


class JsonWebKey(AnswerModel):
    kty: str
    crv: str
    x: str
    y: str
    kid: str
    use: str
    alg: str


class JsonWebKeySet(AnswerModel):
    keys: list[JsonWebKey]


class Health(AnswerModel):
    status: str


class Readiness(AnswerModel):
    status: str
    token: bool
    database: bool
    audit: bool


class Version(AnswerModel):
    name: str
    version: str


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z`, to the second: Go's parser takes nothing with `+0000` (additions section 3.2)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def plaintext_of(text: str) -> bytes:
    """The bytes of a plaintext in a request. Raises InvalidField."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidField("plaintext", "The field `plaintext` must be standard base64.") from error


def base64_text(secret: SecretBytes) -> str:
    """The only way of plaintext into a response."""
    return binascii.b2a_base64(secret.reveal(), newline=False).decode()


def collection(kind: str, resources: list[dict[str, Any]], **metadata: object) -> dict[str, Any]:
    """The envelope of lists (additions section 1.2)."""
    return {
        "metadata": {"collectionType": kind, "collectionTotal": len(resources), **metadata},
        "resources": resources,
    }


def version_reference(version: KeyVersion) -> dict[str, Any]:
    """A key version with its creation date."""
    return {"id": version.id, "creationDate": time_text(version.created_at)}


def key_resource(
    key: Key,
    instance: Instance,
    waits: Waits,
    now: datetime,
    *,
    fresh: bool = False,
    payload: SecretBytes | None = None,
) -> dict[str, Any]:
    """A key (additions section 3.2). `fresh` is a create's answer, which has no lastUpdateDate (contract trap 7)."""
    resource: dict[str, Any] = {
        "type": KEY_TYPE,
        "id": key.id,
        "name": key.name,
        "state": int(effective_state(key, now)),
        "extractable": key.extractable,
        "crn": key_crn(instance.region, instance.account, instance.id, key.id),
        "imported": key.imported,
        "keyRingID": key.key_ring_id,
        "creationDate": time_text(key.created_at),
        "createdBy": key.created_by,
        "algorithmType": "Deprecated",
        "algorithmMetadata": {"bitLength": "256", "mode": "Deprecated"},
        "algorithmBitSize": 256,
        "algorithmMode": "Deprecated",
        "dualAuthDelete": _dual_auth(key, waits, now),
        "deleted": key.state is KeyState.DESTROYED,
    }
    if key.aliases:
        resource["aliases"] = list(key.aliases)
    if key.description is not None:
        resource["description"] = key.description
    if key.tags:
        resource["tags"] = list(key.tags)
    if key.expires_at is not None:
        resource["expirationDate"] = time_text(key.expires_at)
    if not fresh:
        resource["lastUpdateDate"] = time_text(key.updated_at or key.created_at)
    if key.rotated_at is not None:
        resource["lastRotateDate"] = time_text(key.rotated_at)
    # A damaged root key has none. It is shown all the same: who is to delete it has to find it.
    if key.versions:
        resource["keyVersion"] = version_reference(key.current)
        if key.current.passage is not Passage.GENERATED:
            resource["importedBy"] = key.current.passage.value
    if key.deleted_at is not None:
        resource.update(_deletion(key, key.deleted_at, waits, now))
    rotation = key.policy(KeyPolicyKind.ROTATION)
    if rotation is not None:
        resource["rotation"] = _rotation(rotation)
    if payload is not None:
        resource["payload"] = base64_text(payload)
    return resource


def import_token(token: ImportToken, *, whole: bool = False) -> dict[str, Any]:
    """An import token; `whole` with the PEM of its public key, encoded once more, and its nonce."""
    shown: dict[str, Any] = {
        "id": token.id,
        "creationDate": time_text(token.created_at),
        "expirationDate": time_text(token.expires_at),
        "maxAllowedRetrievals": token.retrievals,
        "remainingRetrievals": token.remaining,
    }
    if whole:
        shown["payload"] = base64.b64encode(token.public_pem).decode()
        shown["nonce"] = base64.b64encode(token.nonce).decode()
    return shown


def alias_resource(key: Key, alias: str, created_at: datetime, created_by: str) -> dict[str, Any]:
    """An alias (additions section 3.7)."""
    return {"keyId": key.id, "alias": alias, "creationDate": time_text(created_at), "createdBy": created_by}


def key_policy_resource(policy: KeyPolicy, key: Key, instance: Instance) -> dict[str, Any]:
    """One policy of a key (additions section 3.5), with the key's CRN as newer documents show it."""
    resource: dict[str, Any] = {
        "type": POLICY_TYPE,
        "id": policy.id,
        "crn": key_crn(instance.region, instance.account, instance.id, key.id),
        "creationDate": time_text(policy.created_at),
        "createdBy": policy.created_by,
        "lastUpdateDate": time_text(policy.updated_at),
        "updatedBy": policy.updated_by,
    }
    if policy.kind is KeyPolicyKind.ROTATION:
        resource["rotation"] = _rotation(policy)
    else:
        resource["dualAuthDelete"] = {"enabled": policy.enabled}
    return resource


def _rotation(policy: KeyPolicy) -> dict[str, Any]:
    interval = {} if policy.interval_month is None else {"interval_month": policy.interval_month}
    return {"enabled": policy.enabled, **interval}


def _dual_auth(key: Key, waits: Waits, now: datetime) -> dict[str, Any]:
    """The two further members only for a key that takes two to delete (contract section 1.1)."""
    if not key.needs_two_to_delete:
        return {"enabled": False}
    shown: dict[str, Any] = {"enabled": True, "keySetForDeletion": is_set_for_deletion(key, waits, now)}
    if key.deletion_set_at is not None and shown["keySetForDeletion"]:
        shown["authExpiration"] = time_text(key.deletion_set_at + waits.deletion_authorization)
    return shown


def _deletion(key: Key, deleted_at: datetime, waits: Waits, now: datetime) -> dict[str, Any]:
    # The expiration date if that is earlier (additions section 5).
    restorable_until = min(deleted_at + waits.restore, key.expires_at or datetime.max.replace(tzinfo=UTC))
    return {
        "deletionDate": time_text(deleted_at),
        "deletedBy": key.deleted_by,
        "restoreAllowed": now < restorable_until,
        "restoreExpirationDate": time_text(restorable_until),
        "purgeAllowed": now >= deleted_at + waits.purge_allowed,
        "purgeAllowedFrom": time_text(deleted_at + waits.purge_allowed),
        "purgeScheduledOn": time_text(deleted_at + waits.purge_scheduled),
    }


def key_ring_resource(ring: KeyRing) -> dict[str, Any]:
    """A key ring; `default` has only its id (contract section 1.5)."""
    if ring.created_at is None:
        return {"id": ring.id}
    return {"id": ring.id, "creationDate": time_text(ring.created_at), "createdBy": ring.created_by}
