"""Seals over what grants rights, so that who writes into the database by hand grants nothing.

The MAC is HMAC-SHA-256 by a key in the token, over every member with its length in front, so that no two different
records give the same message. It cannot tell that an old record was put back (docs/threat-model.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import msgspec

from hsmkms.domain.identities import AccessGroup, ApiKey, Identity, Login, RevokedSession, SigningKey
from hsmkms.domain.importing import ImportToken
from hsmkms.domain.instance_policies import InstancePolicy
from hsmkms.domain.known_tokens import KnownToken
from hsmkms.domain.policies import Policy
from hsmkms.domain.records import Record
from hsmkms.domain.tenants import Instance, SealedInstance
from hsmkms.domain.webhooks import Webhook

Sealable: TypeAlias = (
    Identity
    | ApiKey
    | AccessGroup
    | Policy
    | Login
    | SigningKey
    | RevokedSession
    | InstancePolicy
    | Webhook
    | KnownToken
)
Mac = Callable[[bytes], bytes]
"""message → HMAC-SHA-256 of 32 bytes, made in the token. Raises Unavailable."""

KINDS: Final[dict[type[Sealable], str]] = {
    Identity: "identity",
    ApiKey: "api_key",
    AccessGroup: "access_group",
    Policy: "policy",
    Login: "login",
    SigningKey: "signing_key",
    RevokedSession: "revoked_session",
    InstancePolicy: "instance_policy",
    Webhook: "webhook",
    KnownToken: "token",
}
_TYPES: Final[dict[str, type[Sealable]]] = {kind: known for known, kind in KINDS.items()}
_PURPOSE: Final = b"hsmkms sealed record 1"


def document_of(value: Sealable) -> bytes:
    """The bytes of a record's document."""
    return msgspec.json.encode(value)


def value_of(record: Record) -> Sealable | None:
    """What a document says, believed or not; None if it is none of ours."""
    known = _TYPES.get(record.kind)
    if known is None:
        return None
    try:
        value: Sealable = msgspec.json.decode(record.document, type=known)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if value.id == record.id and _account_of(value) == record.account else None


def seal(mac: Mac, value: Sealable, revision: int) -> Record:
    """A record of `value`, ready to be written. Raises Unavailable."""
    kind, account, document = KINDS[type(value)], _account_of(value), document_of(value)
    return Record(
        kind, value.id, account, revision, document, mac(_message(kind, value.id, account, revision, document))
    )


def is_sealed(mac: Mac, record: Record) -> bool:
    """Whether the record is as this deployment wrote it. Raises Unavailable."""
    message = _message(record.kind, record.id, record.account, record.revision, record.document)
    return hmac.compare_digest(mac(message), record.mac)


def seal_instance(mac: Mac, instance: Instance) -> SealedInstance:
    """An instance with its MAC. Raises Unavailable."""
    return SealedInstance(instance, mac(_instance_message(instance)))


def is_sealed_instance(mac: Mac, sealed: SealedInstance) -> bool:
    """Whether the instance is as this deployment wrote it. Raises Unavailable."""
    return sealed.mac is not None and hmac.compare_digest(mac(_instance_message(sealed.instance)), sealed.mac)


def seal_import_token(mac: Mac, token: ImportToken) -> bytes:
    """The MAC of an import token, whatever is left of its retrievals. Raises Unavailable."""
    document = msgspec.json.encode(dataclasses.replace(token, remaining=0))
    return mac(_message("import_token", token.id, "", 0, document))


def is_sealed_import_token(mac: Mac, token: ImportToken, seal: bytes) -> bool:
    """Whether the import token is as this deployment made it. Raises Unavailable."""
    return hmac.compare_digest(seal_import_token(mac, token), seal)


def unsealed(mac: Mac, instances: Iterable[SealedInstance]) -> list[Instance]:
    """Those that this deployment did not write as they are. Raises Unavailable."""
    return [one.instance for one in instances if not is_sealed_instance(mac, one)]


def digest(record: Record) -> bytes:
    """What is remembered of a record that was checked: 32 bytes for record and MAC together."""
    message = _message(record.kind, record.id, record.account, record.revision, record.document)
    return hashlib.sha256(record.mac + message).digest()


def instance_digest(sealed: SealedInstance) -> bytes:
    """The same of an instance."""
    return hashlib.sha256((sealed.mac or b"") + _instance_message(sealed.instance)).digest()


def _account_of(value: Sealable) -> str:
    return "" if isinstance(value, SigningKey | RevokedSession | KnownToken) else value.account


def _instance_message(instance: Instance) -> bytes:
    return _message("instance", instance.id, instance.account, 0, msgspec.json.encode(instance))


def _message(kind: str, record_id: str, account: str, revision: int, document: bytes) -> bytes:
    parts = (_PURPOSE, kind.encode(), record_id.encode(), account.encode(), str(revision).encode(), document)
    return b"".join(len(part).to_bytes(8) + part for part in parts)
