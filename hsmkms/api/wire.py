"""Shapes on the wire: request models, response models for OpenAPI, and domain values as response objects.

Member names are those of contract section 1.1 and additions section 3; they are known nowhere else.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Final, Literal

import pydantic

from hsmkms.domain.crn import key_crn
from hsmkms.domain.key_policies import KeyPolicy, KeyPolicyKind
from hsmkms.domain.keys import Key, KeyState, KeyVersion, effective_state
from hsmkms.domain.lifecycle import is_set_for_deletion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.domain.tenants import Instance, KeyRing
from hsmkms.domain.waits import Waits

KEY_TYPE: Final = "application/vnd.ibm.kms.key+json"
KEY_ACTION_TYPE: Final = "application/vnd.ibm.kms.key_action+json"
KEY_VERSION_TYPE: Final = "application/vnd.ibm.kms.key.version+json"
KEY_RING_TYPE: Final = "application/vnd.ibm.kms.key_ring+json"
ALIAS_TYPE: Final = "application/vnd.ibm.kms.alias+json"
POLICY_TYPE: Final = "application/vnd.ibm.kms.policy+json"
ALLOWED_IP_TYPE: Final = "application/vnd.ibm.kms.allowed_ip_metadata+json"


class _Request(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class CollectionMetadata(_Request):
    collectionType: str
    collectionTotal: int


class KeyCreateResource(_Request):
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


class KeyCreateBody(_Request):
    metadata: CollectionMetadata
    resources: list[KeyCreateResource]


class RotationWish(_Request):
    enabled: bool | None = None
    interval_month: int | None = None


class DualAuthWish(_Request):
    enabled: bool


class KeyWithPoliciesResource(KeyCreateResource):
    rotation: RotationWish | None = None
    dualAuthDelete: DualAuthWish | None = None


class KeyWithPoliciesBody(_Request):
    metadata: CollectionMetadata
    resources: list[KeyWithPoliciesResource]


class KeyPolicyWriteResource(_Request):
    type: str | None = None
    rotation: RotationWish | None = None
    dualAuthDelete: DualAuthWish | None = None


class KeyPolicyBody(_Request):
    metadata: CollectionMetadata
    resources: list[KeyPolicyWriteResource]


class KeyPatchBody(_Request):
    keyRingID: str


class WrapBody(_Request):
    plaintext: str | None = None
    aad: list[str] = []


class UnwrapBody(_Request):
    ciphertext: str
    aad: list[str] = []


class RotateBody(_Request):
    payload: str | None = None
    encryptedNonce: str | None = None
    iv: str | None = None
    encryptionAlgorithm: str | None = None


class InstancePolicyAttributes(_Request):
    allowed_network: str | None = None
    allowed_ip: list[str] | None = None
    create_root_key: bool | None = None
    create_standard_key: bool | None = None
    import_root_key: bool | None = None
    import_standard_key: bool | None = None
    enforce_token: bool | None = None
    interval_month: int | None = None


class InstancePolicyData(_Request):
    enabled: bool
    attributes: InstancePolicyAttributes | None = None


class InstancePolicyWriteResource(_Request):
    policy_type: str
    policy_data: InstancePolicyData


class InstancePolicyBody(_Request):
    metadata: CollectionMetadata
    resources: list[InstancePolicyWriteResource]


CANONICAL_NAMES: Final = {
    name.lower(): name
    for model in (
        CollectionMetadata,
        KeyWithPoliciesResource,
        KeyCreateBody,
        KeyPatchBody,
        WrapBody,
        UnwrapBody,
        RotateBody,
        RotationWish,
        DualAuthWish,
        InstancePolicyAttributes,
        InstancePolicyData,
        InstancePolicyWriteResource,
    )
    for name in model.model_fields
}
"""Lower case to the one spelling; no two members of the API differ by case alone."""


class _Response(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class SearchQuery(_Response):
    query: str
    scopes: list[str]
    # `not` is a keyword of Python.
    negated: bool = pydantic.Field(alias="not")
    exact: bool


class ListMetadata(_Response):
    collectionType: str
    collectionTotal: int
    totalCount: int | None = None
    incompleteSearch: bool | None = None
    searchQuery: SearchQuery | None = None


class VersionReference(_Response):
    id: str
    creationDate: str | None = None


class AlgorithmMetadata(_Response):
    bitLength: str
    mode: str


class DualAuthDelete(_Response):
    enabled: bool
    keySetForDeletion: bool | None = None
    authExpiration: str | None = None


class Rotation(_Response):
    enabled: bool
    interval_month: int | None = None


class KeyResource(_Response):
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


class KeyCollection(_Response):
    metadata: ListMetadata
    resources: list[KeyResource]


class AliasResource(_Response):
    keyId: str
    alias: str
    creationDate: str
    createdBy: str


class AliasCollection(_Response):
    metadata: ListMetadata
    resources: list[AliasResource]


class KeyPolicyResource(_Response):
    type: str
    id: str
    crn: str
    creationDate: str
    createdBy: str
    lastUpdateDate: str
    updatedBy: str
    rotation: Rotation | None = None
    dualAuthDelete: DualAuthDelete | None = None


class KeyPolicyCollection(_Response):
    metadata: ListMetadata
    resources: list[KeyPolicyResource] | None = None


class InstancePolicyResource(_Response):
    policy_type: str
    policy_data: InstancePolicyData
    creationDate: str
    createdBy: str
    updatedBy: str
    lastUpdated: str


class InstancePolicyCollection(_Response):
    metadata: ListMetadata
    resources: list[InstancePolicyResource]


class AllowedIpResource(_Response):
    private_endpoint_port: int


class AllowedIpCollection(_Response):
    metadata: ListMetadata
    resources: list[AllowedIpResource]


class VersionCollection(_Response):
    metadata: ListMetadata
    resources: list[VersionReference]


class KeyRingResource(_Response):
    id: str
    creationDate: str | None = None
    createdBy: str | None = None


class KeyRingCollection(_Response):
    metadata: ListMetadata
    resources: list[KeyRingResource]


class WrapAnswer(_Response):
    plaintext: str | None = None
    ciphertext: str
    keyVersion: VersionReference


class UnwrapAnswer(_Response):
    plaintext: str
    keyVersion: VersionReference
    ciphertext: str | None = None
    rewrappedKeyVersion: VersionReference | None = None


class RewrapAnswer(_Response):
    ciphertext: str
    keyVersion: VersionReference
    rewrappedKeyVersion: VersionReference


class ErrorTarget(_Response):
    type: str
    name: str


class ErrorReason(_Response):
    code: str
    message: str
    status: int
    moreInfo: str
    target: ErrorTarget | None = None


class ErrorResource(_Response):
    errorMsg: str
    reasons: list[ErrorReason] | None = None


class ErrorCollection(_Response):
    metadata: ListMetadata
    resources: list[ErrorResource]


class AccessTokenAnswer(_Response):
    access_token: str
    refresh_token: str
    token_type: str
    expires_in: int
    expiration: int
    scope: str


class IamErrorContext(_Response):
    requestId: str


class IamError(_Response):
    errorCode: str
    errorMessage: str
    context: IamErrorContext


class PlatformErrorItem(_Response):
    code: str
    message: str


class PlatformError(_Response):
    trace: str
    status_code: int
    errors: list[PlatformErrorItem]


class JsonWebKey(_Response):
    kty: str
    crv: str
    x: str
    y: str
    kid: str
    use: str
    alg: str


class JsonWebKeySet(_Response):
    keys: list[JsonWebKey]


class Health(_Response):
    status: str


class Readiness(_Response):
    status: str
    token: bool
    database: bool


class Version(_Response):
    name: str
    version: str


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z`, to the second: Go's parser takes nothing with `+0000` (additions section 3.2)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def base64_text(secret: SecretBytes) -> str:
    """The only way of plaintext into a response."""
    return base64.b64encode(secret.reveal()).decode()


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
    if key.deleted_at is not None:
        resource.update(_deletion(key, key.deleted_at, waits, now))
    rotation = key.policy(KeyPolicyKind.ROTATION)
    if rotation is not None:
        resource["rotation"] = _rotation(rotation)
    if payload is not None:
        resource["payload"] = base64_text(payload)
    return resource


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
    return {
        "deletionDate": time_text(deleted_at),
        "deletedBy": key.deleted_by,
        "restoreAllowed": now < deleted_at + waits.restore and (key.expires_at is None or now < key.expires_at),
        "restoreExpirationDate": time_text(deleted_at + waits.restore),
        "purgeAllowed": now >= deleted_at + waits.purge_allowed,
        "purgeAllowedFrom": time_text(deleted_at + waits.purge_allowed),
        "purgeScheduledOn": time_text(deleted_at + waits.purge_scheduled),
    }


def key_ring_resource(ring: KeyRing) -> dict[str, Any]:
    """A key ring; `default` has only its id (contract section 1.5)."""
    if ring.created_at is None:
        return {"id": ring.id}
    return {"id": ring.id, "creationDate": time_text(ring.created_at), "createdBy": ring.created_by}
