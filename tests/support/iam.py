"""Identities and grants over HTTP, for tests that need somebody with certain rights and no more."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import httpx

from hsmkms.domain.access import Role
from hsmkms.domain.crn import role_id
from tests.support.deployment import Service

GRANT = "urn:ibm:params:oauth:grant-type:apikey"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Somebody:
    """A service id with an API key."""

    iam_id: str
    id: str
    api_key_id: str
    api_key: str


class Iam:
    """The administrator of an account, who grants."""

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        self.service = service
        self.token = log_in(service, api_key or service.state.api_key)
        self.http = httpx.Client(
            base_url=service.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=60, verify=service.verify
        )
        details = self.http.get("/v1/apikeys/details", headers={"IAM-ApiKey": api_key or service.state.api_key}).json()
        self.account, self.iam_id = str(details["account_id"]), str(details["iam_id"])

    def __enter__(self) -> Iam:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def somebody(self, *sources: str) -> Somebody:
        """A fresh service id without rights; `sources` are CRNs of instances of source services."""
        body = {"account_id": self.account, "name": f"somebody {next(_numbers)}", "unique_instance_crns": sources}
        made = self._post("/v1/serviceids/", {**body, "apikey": {"name": "key"}})
        return Somebody(made["iam_id"], made["id"], made["apikey"]["id"], made["apikey"]["apikey"])

    def source(self, service: str, instance_id: str, region: str = "global") -> str:
        """CRN of an instance of a source service in this account."""
        return f"crn:v1:bluemix:public:{service}:{region}:a/{self.account}:{instance_id}::"

    def grant(self, iam_id: str, *roles: Role, **scope: str) -> str:
        """An access policy; `scope` are resource attributes such as serviceInstance, keyRing, resource. Its id."""
        return str(self._post("/v1/policies", self.policy(iam_id, *roles, **scope))["id"])

    def policy(self, iam_id: str, *roles: Role, **scope: str) -> dict[str, Any]:
        """The body of an access policy, version 1."""
        subject = "access_group_id" if iam_id.startswith("AccessGroupId-") else "iam_id"
        if "resource" in scope:
            scope["resourceType"] = "key"
        attributes = {"accountId": self.account, "serviceName": "kms", **scope}
        return {
            "type": "access",
            "subjects": [{"attributes": [{"name": subject, "value": iam_id}]}],
            "roles": [{"role_id": role_id(role)} for role in roles],
            "resources": [{"attributes": [{"name": name, "value": value} for name, value in attributes.items()]}],
        }

    def authorize(self, source: str, target: str | None, role: Role = Role.READER, **subject: str) -> httpx.Response:
        """Ask for an authorization, version 2, of a source service on a key instance."""
        subject = {"serviceName": source, "accountId": self.account, **subject}
        resource = {"serviceName": "kms", "accountId": self.account}
        if target is not None:
            resource["serviceInstance"] = target

        def attributes(values: dict[str, str]) -> dict[str, Any]:
            listed = [{"key": key, "operator": "stringEquals", "value": value} for key, value in values.items()]
            return {"attributes": listed}

        body = {
            "type": "authorization",
            "subject": attributes(subject),
            "resource": attributes(resource),
            "control": {"grant": {"roles": [{"role_id": role_id(role)}]}},
        }
        return self.http.post("/v2/policies", json=body)

    def revoke(self, policy_id: str) -> None:
        """Delete a policy."""
        answer = self.http.delete(f"/v1/policies/{policy_id}")
        assert answer.status_code == 204, answer.text

    def instance(self, region: str = "local") -> str:
        """A further instance of the account; its GUID."""
        body = {"name": "more", "target": region, "resource_group": "default", "resource_plan_id": "tiered"}
        return str(self._post("/v2/resource_instances", body)["guid"])

    def client(self, somebody: Somebody, instance_id: str | None = None) -> httpx.Client:
        """Their client of the key API."""
        return key_client(self.service, log_in(self.service, somebody.api_key), instance_id)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


def log_in(service: Service, api_key: str) -> str:
    """An access token."""
    form = {"grant_type": GRANT, "apikey": api_key}
    answer = httpx.post(f"{service.url}/identity/token", data=form, verify=service.verify)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def key_client(service: Service, token: str, instance_id: str | None = None) -> httpx.Client:
    """A client of the key API with a token."""
    headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": instance_id or service.state.instance_id}
    return httpx.Client(base_url=f"{service.url}/api/v2", headers=headers, timeout=60, verify=service.verify)
