"""The integration guide's whole path with IBM's unmodified SDKs: instance, service id, API key, authorization, use."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from ibm_cloud_sdk_core import ApiException, DetailedResponse
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from ibm_platform_services import IamIdentityV1, IamPolicyManagementV1, ResourceControllerV2
from keyprotect.ibm_key_protect_api_v2 import IbmKeyProtectApiV2

from tests.support.deployment import Service, State, create_body

READER = "crn:v1:bluemix:public:iam::::serviceRole:Reader"
PLAN = "eedd3585-90c6-4c8f-be3d-062069e99fc3"


class Platform:
    """IBM's clients, all of them with one API key and one URL."""

    def __init__(self, service: Service, api_key: str) -> None:
        self.url, self._api_key = service.url, api_key
        self.instances = self._client(ResourceControllerV2)
        self.identities = self._client(IamIdentityV1)
        self.policies = self._client(IamPolicyManagementV1)
        self.keys = self._client(IbmKeyProtectApiV2)

    def _client(self, kind: Any) -> Any:
        client = kind(authenticator=IAMAuthenticator(self._api_key, url=self.url))
        client.set_service_url(self.url)
        return client


@pytest.fixture(scope="module")
def service(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(seed_state.copy_to(tmp_path_factory.mktemp("guide") / "state")) as service:
        yield service


def refused(call: Any, *arguments: Any, **named: Any) -> None:
    """401 and Key Protect's body of one who may not, with nothing else in it."""
    with pytest.raises(ApiException) as caught:
        call(*arguments, **named)
    assert caught.value.status_code == 401
    body = json.loads(caught.value.http_response.text)
    assert body["resources"] == [{"errorMsg": "Unauthorized: The user does not have access to the specified resource"}]


def of(answer: DetailedResponse) -> Any:
    """The JSON of an answer with a vendor type."""
    return answer.get_result().json()


def stream(body: object) -> io.BytesIO:
    return io.BytesIO(json.dumps(body).encode())


@pytest.mark.parametrize("version", [1, 2])
def test_the_guide_from_the_first_step_to_the_last(service: Service, version: int) -> None:
    admin = Platform(service, service.state.api_key)
    made = admin.instances.create_resource_instance("payments", "eu-de", "default", PLAN).get_result()
    guid, account = made["guid"], made["account_id"]
    assert made["region_id"] == "eu-de"
    # What Terraform's provider reads without asking whether it is there.
    assert made["extensions"]["endpoints"]["public"] == service.url

    source = f"crn:v1:bluemix:public:cloud-object-storage:global:a/{account}:{uuid.uuid4()}::"
    identity = admin.identities.create_service_id(account, "storage", unique_instance_crns=[source]).get_result()
    api_key = admin.identities.create_api_key("storage key", identity["iam_id"]).get_result()
    storage = Platform(service, api_key["apikey"])

    root = of(admin.keys.create_key(guid, stream(create_body("root"))))["resources"][0]["id"]
    standard = of(admin.keys.create_key(guid, stream(create_body("standard", extractable=True))))["resources"][0]["id"]
    refused(storage.keys.wrap_key, root, guid, key_action_wrap_body=stream({}))
    refused(storage.keys.get_keys, guid)

    policy_id = authorize(admin, account, guid, version)
    wrapped = of(storage.keys.wrap_key(root, guid, key_action_wrap_body=stream({})))
    sealed = {"ciphertext": wrapped["ciphertext"]}
    opened = of(storage.keys.unwrap_key(root, guid, key_action_unwrap_body=stream(sealed)))
    assert opened["plaintext"] == wrapped["plaintext"]
    assert of(storage.keys.rewrap_key(root, guid, key_action_rewrap_body=stream(sealed)))["ciphertext"]
    assert of(storage.keys.get_key_metadata(root, guid))["resources"][0]["id"] == root
    assert {one["id"] for one in of(storage.keys.get_keys(guid))["resources"]} == {root, standard}

    refused(storage.keys.create_key, guid, stream(create_body("mine")))
    refused(storage.keys.get_key, standard, guid)
    refused(storage.keys.get_key, root, guid)
    refused(storage.keys.delete_key, root, guid)
    refused(storage.keys.rotate_key, root, guid)
    refused(storage.keys.create_key_ring, "mine", guid)
    refused(storage.keys.wrap_key, root, service.state.instance_id, key_action_wrap_body=stream({}))
    forbidden: list[tuple[Any, tuple[str, ...]]] = [
        (storage.identities.list_service_ids, ()),
        (storage.policies.list_policies, (account,)),
        (storage.instances.create_resource_instance, ("mine", "eu-de", "default", PLAN)),
    ]
    for call, arguments in forbidden:
        with pytest.raises(ApiException) as caught:
            call(*arguments)
        assert caught.value.status_code == 403

    delete = admin.policies.delete_policy if version == 1 else admin.policies.delete_v2_policy
    delete(policy_id)
    deleted_at = time.monotonic()
    refused(storage.keys.wrap_key, root, guid, key_action_wrap_body=stream({}))
    assert time.monotonic() - deleted_at < 1.0

    with pytest.raises(ApiException) as caught:
        admin.instances.delete_resource_instance(guid)
    assert caught.value.status_code == 409
    admin.instances.delete_resource_instance(guid, recursive=True, headers={"Hsmkms-Confirm": guid})
    refused(admin.keys.get_keys, guid)


def authorize(admin: Platform, account: str, guid: str, version: int) -> str:
    """Reader of object storage on an instance; the policy's id."""
    subject = {"serviceName": "cloud-object-storage", "accountId": account}
    resource = {"serviceName": "kms", "serviceInstance": guid, "accountId": account}
    if version == 1:
        made = admin.policies.create_policy(
            type="authorization",
            subjects=[{"attributes": [{"name": name, "value": value} for name, value in subject.items()]}],
            roles=[{"role_id": READER}],
            resources=[{"attributes": [{"name": name, "value": value} for name, value in resource.items()]}],
        )
        return str(made.get_result()["id"])
    # As Terraform does: the role by its display name, then version 2.
    roles = admin.policies.list_roles(
        account_id=account, service_name="kms", source_service_name="cloud-object-storage", policy_type="authorization"
    ).get_result()
    (reader,) = (role["crn"] for role in roles["service_roles"] if role["display_name"] == "Reader")
    made = admin.policies.create_v2_policy(
        control={"grant": {"roles": [{"role_id": reader}]}},
        type="authorization",
        subject={"attributes": [attribute(key, value) for key, value in subject.items()]},
        resource={"attributes": [attribute(key, value) for key, value in resource.items()]},
    )
    return str(made.get_result()["id"])


def attribute(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "stringEquals", "value": value}
