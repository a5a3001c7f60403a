"""The key service as adopters use it: wrap and unwrap DEKs, look at the key, register what it protects, hear of events.

    client = KeyServiceClient(Connection.read(Path("/etc/hsmkms/storage.toml")))
    made = client.generate_and_wrap(key_id, aad=("volume", "db7"))     # keep made.ciphertext
    opened = client.unwrap(key_id, made.ciphertext, aad=("volume", "db7"))

Each call raises KeyServiceAway, KeyRefused, CiphertextRefused (`refusals`) or ConnectionInvalid, and nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx

from hsmkms.adopters.connection import Connection
from hsmkms.adopters.refusals import (
    AdopterError,
    CiphertextRefused,
    ConnectionInvalid,
    KeyRefused,
    KeyServiceAway,
)
from hsmkms.adopters.transport import UNAUTHORIZED, Transport
from hsmkms.adopters.values import (
    AdopterKeyState,
    Event,
    EventPage,
    Key,
    KeyState,
    Registration,
    Rewrapped,
    Unwrapped,
    WrappedDek,
    parse_key_crn,
)
from hsmkms.domain.secrets import SecretBytes

__all__ = [
    "MAX_WAIT_S",
    "UNAUTHORIZED",
    "AdopterError",
    "AdopterKeyState",
    "CiphertextRefused",
    "Connection",
    "ConnectionInvalid",
    "Event",
    "EventPage",
    "Key",
    "KeyRefused",
    "KeyServiceAway",
    "KeyServiceClient",
    "KeyState",
    "Registration",
    "Rewrapped",
    "Unwrapped",
    "WrappedDek",
    "parse_key_crn",
]

MAX_WAIT_S = 60
"""The longest that the service lets a reader of events wait, in seconds."""
_PAGE = 1000
_REGISTRATION_INPUT = "application/vnd.ibm.kms.registration_input+json"
_EVENT_ACKNOWLEDGE = "application/vnd.ibm.kms.event_acknowledge+json"


class KeyServiceClient:
    """Calls of one instance with one identity. Threads may share it; processes make one each, after a fork."""

    def __init__(
        self, connection: Connection, transport: Transport | None = None, correlation_id: str | None = None
    ) -> None:
        self.connection, self._correlation_id = connection, correlation_id
        self._transport = transport or Transport(connection)

    def __enter__(self) -> KeyServiceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, also those of the clients that `for_instance` gave."""
        self._transport.close()

    def for_instance(self, instance_id: str) -> KeyServiceClient:
        """A client of another instance of the same service with the same identity, token and connections."""
        connection = self.connection.model_copy(update={"instance_id": instance_id})
        return KeyServiceClient(connection, self._transport, self._correlation_id)

    def within(self, timeout_s: float, correlation_id: str | None = None) -> KeyServiceClient:
        """The same client for calls that take at most so long, tries included; the service's audit trail shows them
        under `correlation_id`, a UUID."""
        connection = self.connection.model_copy(update={"timeout_s": timeout_s})
        return KeyServiceClient(connection, self._transport, correlation_id)

    def at_key(self, key: str) -> tuple[KeyServiceClient, str]:
        """For a key's CRN: a client of its instance, and its id. An id or alias stays as it is, and so does the client.

        Raises ConnectionInvalid for the CRN of something else.
        """
        if not key.startswith("crn:"):
            return self, key
        place = parse_key_crn(key)
        if place is None:
            raise ConnectionInvalid(f"{key} is not the CRN of a key.")
        return self.for_instance(place[0]), place[1]

    def generate_and_wrap(self, key_id: str, aad: Sequence[str] = ()) -> WrappedDek:
        """A new DEK of 32 bytes, made in the HSM."""
        found = self._act(key_id, "wrap", {"aad": list(aad)})
        plaintext = _secret(found, "plaintext")
        return WrappedDek(plaintext, _text(found, "ciphertext"), _text(found, "keyVersion", "id"))

    def wrap(self, key_id: str, plaintext: SecretBytes, aad: Sequence[str] = ()) -> WrappedDek:
        """A DEK of the caller's, 1 to 4,096 bytes."""
        text = base64.b64encode(plaintext.reveal()).decode()
        found = self._act(key_id, "wrap", {"plaintext": text, "aad": list(aad)})
        return WrappedDek(plaintext, _text(found, "ciphertext"), _text(found, "keyVersion", "id"))

    def unwrap(self, key_id: str, ciphertext: str, aad: Sequence[str] = ()) -> Unwrapped:
        """Open a wrapped DEK with the AAD that it was wrapped with."""
        found = self._act(key_id, "unwrap", {"ciphertext": ciphertext, "aad": list(aad)})
        rewrapped = None
        if "rewrappedKeyVersion" in found:
            rewrapped = Rewrapped(_text(found, "ciphertext"), _text(found, "rewrappedKeyVersion", "id"))
        return Unwrapped(_secret(found, "plaintext"), _text(found, "keyVersion", "id"), rewrapped)

    def rewrap(self, key_id: str, ciphertext: str, aad: Sequence[str] = ()) -> Rewrapped:
        """The same DEK under the newest version of the key, without showing it."""
        found = self._act(key_id, "rewrap", {"ciphertext": ciphertext, "aad": list(aad)})
        return Rewrapped(_text(found, "ciphertext"), _text(found, "rewrappedKeyVersion", "id"))

    def key(self, key_id: str) -> Key:
        """A key's metadata, by id or alias. A purged key is KeyRefused, as is one without authorization."""
        found = _first(self._request("GET", f"{_key_path(key_id)}/metadata"))
        try:
            state = KeyState(int(found["state"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable() from error
        version = _text(found, "keyVersion", "id") if "keyVersion" in found else None
        return Key(_text(found, "id"), _text(found, "crn"), str(found.get("name", "")), state, version)

    def register(
        self, key_id: str, resource_crn: str, *, prevent_deletion: bool = False, description: str | None = None
    ) -> None:
        """Say that a key protects a resource; saying it again changes the wish."""
        members: dict[str, Any] = {"preventKeyDeletion": prevent_deletion}
        if description is not None:
            members["description"] = description
        try:
            self._registration("POST", key_id, resource_crn, members)
        except KeyRefused as refused:
            if refused.reason_code != "REGISTRATION_ALREADY_EXISTS_ERR":
                raise
            self._registration("PATCH", key_id, resource_crn, members)

    def registered_version(self, key_id: str, resource_crn: str, key_version: str) -> None:
        """Say under which version of the key a resource's DEK is wrapped now; it must not be older than what was said
        before."""
        self._registration("PATCH", key_id, resource_crn, {"keyVersionId": key_version})

    def deregister(self, key_id: str, resource_crn: str) -> None:
        """Say that a key protects a resource no more; saying it again is no error."""
        try:
            self._registration("DELETE", key_id, resource_crn, None)
        except KeyRefused as refused:
            if refused.reason_code != "REGISTRATION_NOT_FOUND_ERR":
                raise

    def registrations(self) -> Iterator[Registration]:
        """All registrations that this identity made in this instance."""
        offset = 0
        while True:
            found = _json(self._request("GET", "/keys/registrations", params={"limit": _PAGE, "offset": offset}))
            resources = found.get("resources") or []
            if not isinstance(resources, list):
                raise _unreadable()
            yield from map(_registration, resources)
            if len(resources) < _PAGE:
                return
            offset += _PAGE

    def events(self, after: int, *, wait_s: int = 0, limit: int = 100) -> EventPage:
        """Events of this identity's registrations behind a cursor, 0 at first; when there are none it waits up to
        `wait_s`, at most MAX_WAIT_S."""
        params = {"after": after, "limit": limit, **({"wait": wait_s} if wait_s else {})}
        found = _json(self._request("GET", "/events", params=params, wait_s=wait_s))
        try:
            cursor = int(found["metadata"]["cursor"])
            return EventPage(tuple(_event(resource) for resource in found["resources"]), cursor)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable() from error

    def acknowledge(
        self,
        event_id: str,
        state: AdopterKeyState,
        *,
        key_version: str | None = None,
        delete_registration: bool = False,
    ) -> None:
        """Say what was done about an event. DEK_ENABLED needs the version that the DEK is wrapped with now."""
        resource: dict[str, Any] = {
            "eventId": event_id,
            "adopterKeyState": state.value,
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if key_version is not None:
            resource["keyStateData"] = {"rewrappedKeyVersion": key_version}
        if delete_registration:
            resource["deleteRegistration"] = True
        self._request("POST", "/event_ack", json=_collection(_EVENT_ACKNOWLEDGE, resource))

    def _act(self, key_id: str, action: str, body: dict[str, Any]) -> dict[str, Any]:
        return _json(self._request("POST", f"{_key_path(key_id)}/actions/{action}", json=body))

    def _registration(self, method: str, key_id: str, crn: str, members: dict[str, Any] | None) -> None:
        body = None if members is None else _collection(_REGISTRATION_INPUT, members)
        self._request(method, f"{_key_path(key_id)}/registrations/{quote(crn, safe='')}", json=body)

    def _request(self, method: str, path: str, **parts: Any) -> httpx.Response:
        return self._transport.request(method, path, self.connection, correlation_id=self._correlation_id, **parts)


def _key_path(key_id: str) -> str:
    return f"/keys/{quote(key_id, safe='')}"


def _collection(kind: str, resource: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": {"collectionType": kind, "collectionTotal": 1}, "resources": [resource]}


def _event(found: Mapping[str, Any]) -> Event:
    return Event(
        id=_text(found, "eventId"),
        type=_text(found, "eventType"),
        key_id=_text(found, "keyId"),
        key_crn=_text(found, "keyCrn"),
        resource_crn=_text(found, "resourceCrn"),
        key_state=KeyState(int(found["keyState"])),
        key_version=_text(found, "keyVersion", "id"),
        correlation_id=_text(found, "correlationId"),
        acknowledged=found.get("status") == "acknowledged",
    )


def _registration(found: Mapping[str, Any]) -> Registration:
    try:
        created_at = datetime.fromisoformat(_text(found, "creationDate"))
    except ValueError as error:
        raise _unreadable() from error
    return Registration(
        key_id=_text(found, "keyId"),
        resource_crn=_text(found, "resourceCrn"),
        key_version=_text(found, "keyVersion", "id"),
        created_at=created_at,
        prevents_deletion=found.get("preventKeyDeletion") is True,
    )


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise _unreadable() from error
    if not isinstance(found, dict):
        raise _unreadable()
    return found


def _first(answer: httpx.Response) -> dict[str, Any]:
    resources = _json(answer).get("resources")
    if not isinstance(resources, list) or len(resources) != 1 or not isinstance(resources[0], dict):
        raise _unreadable()
    return resources[0]


def _text(found: Mapping[str, Any], *path: str) -> str:
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        raise _unreadable()
    return value


def _secret(found: Mapping[str, Any], name: str) -> SecretBytes:
    try:
        return SecretBytes(base64.b64decode(_text(found, name), validate=True))
    except ValueError:
        # Without its cause, which may quote the text.
        raise _unreadable() from None


def _unreadable() -> KeyServiceAway:
    return KeyServiceAway("What answered is not a key service that this program knows. Check `url`.")
