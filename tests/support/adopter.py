"""A source service as the key service sees it: a service id with a Reader authorization, which registers resources."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

import httpx

from tests.support.iam import Iam

INPUT = "application/vnd.ibm.kms.registration_input+json"
ACKNOWLEDGE = "application/vnd.ibm.kms.event_acknowledge+json"
RESOURCE_CRN = "application/vnd.ibm.kms.resource_crn+json"
STORAGE, DATABASES = "cloud-object-storage", "databases-for-postgresql"


def body(**members: Any) -> dict[str, Any]:
    """A registration as a service writes it."""
    return {"metadata": {"collectionType": INPUT, "collectionTotal": 1}, "resources": [members]}


class Adopter:
    """An instance of a source service that may use the keys of an instance, the first one unless said otherwise.

    `prefix` are the first eight segments of the CRNs of its resources.
    """

    def __init__(
        self, iam: Iam, service: str = STORAGE, region: str = "global", key_instance_id: str | None = None
    ) -> None:
        source = iam.source(service, str(uuid.uuid4()), region)
        self.prefix = source.removesuffix("::")
        self.who = iam.somebody(source)
        key_instance_id = key_instance_id or iam.service.state.instance_id
        self.authorization = self._authorized(iam, service, key_instance_id)
        self.http = iam.client(self.who, key_instance_id)

    def crn(self, name: str) -> str:
        """A bucket of it."""
        return f"{self.prefix}:bucket:{name}"

    def write(
        self, method: str, key: str, crn: str, headers: dict[str, str] | None = None, **members: Any
    ) -> httpx.Response:
        """A call about one registration."""
        path = f"/keys/{key}/registrations/{quote(crn, safe='')}"
        return self.http.request(method, path, json=body(**members) if members else None, headers=headers)

    def register(self, key: str, name: str, **members: Any) -> dict[str, Any]:
        """Register a bucket; the answer."""
        answer = self.write("POST", key, self.crn(name), **members)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()["resources"][0]
        return found

    def events(self, after: int = 0, **params: int) -> tuple[list[dict[str, Any]], int]:
        """What is behind a cursor, and the next cursor."""
        answer = self.http.get("/events", params={"after": after, **params})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["resources"], found["metadata"]["cursor"]

    def acknowledge(self, event_id: str, state: str, version: str | None = None, **members: Any) -> httpx.Response:
        """Say what was done about an event."""
        resource = {
            "eventId": event_id,
            "adopterKeyState": state,
            "timestamp": "2030-01-01T00:00:00Z",
            **({} if version is None else {"keyStateData": {"rewrappedKeyVersion": version}}),
            **members,
        }
        metadata = {"collectionType": ACKNOWLEDGE, "collectionTotal": 1}
        return self.http.post("/event_ack", json={"metadata": metadata, "resources": [resource]})

    def _authorized(self, iam: Iam, service: str, key_instance_id: str) -> str:
        answer = iam.authorize(service, key_instance_id, serviceInstance=self.prefix.rsplit(":", 1)[1])
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])
