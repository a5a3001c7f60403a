"""The unmodified official Python SDK, pointed at us by the credentials file, through the life of a key."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from keyprotect.ibm_key_protect_api_v2 import IbmKeyProtectApiV2

from tests.support.bringing import Fetched
from tests.support.deployment import Service, State, create_body

DEK = base64.b64encode(bytes(range(32))).decode()


class Sdk:
    """The SDK with its byte streams filled in; answers as parsed JSON."""

    def __init__(self, service: IbmKeyProtectApiV2, instance: str) -> None:
        self.service = service
        self.instance = instance

    def create(self, name: str, **members: object) -> dict[str, Any]:
        body = _stream(create_body(name, **members))  # type: ignore[arg-type]
        answer = self.service.create_key(self.instance, body, prefer="return=representation")
        assert answer.get_status_code() == 201
        return dict(answer.get_result().json()["resources"][0])

    def total(self, **filters: object) -> int:
        return int(self.service.get_key_collection_metadata(self.instance, **filters).get_headers()["Key-Total"])

    def rings(self) -> set[str]:
        answer = self.service.list_key_rings(self.instance, total_count=True).get_result().json()
        assert answer["metadata"]["totalCount"] == len(answer["resources"])
        return {ring["id"] for ring in answer["resources"]}

    def wrap(self, key: str, **members: object) -> dict[str, Any]:
        return dict(
            self.service.wrap_key(key, self.instance, key_action_wrap_body=_stream(members)).get_result().json()
        )

    def unwrap(self, key: str, **members: object) -> dict[str, Any]:
        answer = self.service.unwrap_key(key, self.instance, key_action_unwrap_body=_stream(members))
        return dict(answer.get_result().json())

    def rewrap(self, key: str, **members: object) -> dict[str, Any]:
        answer = self.service.rewrap_key(key, self.instance, key_action_rewrap_body=_stream(members))
        return dict(answer.get_result().json())

    def rotate(self, key: str, **members: object) -> None:
        answer = self.service.rotate_key(key, self.instance, key_action_rotate_body=_stream(members))
        assert answer.get_status_code() == 204

    def import_token(self) -> Fetched:
        made = self.service.post_import_token(self.instance, expiration=600, max_allowed_retrievals=1)
        found = self.service.get_import_token(self.instance).get_result().json()
        assert (made.get_result().json()["remainingRetrievals"], found["remainingRetrievals"]) == (1, 0)
        return Fetched.of(found)


def _stream(body: object) -> io.BytesIO:
    return io.BytesIO(json.dumps(body).encode())


def _code(error: ApiException) -> str:
    """The reason code; the SDK itself shows only the status."""
    return str(error.http_response.json()["resources"][0]["reasons"][0]["code"])


@pytest.fixture
def sdk(shared_service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sdk:
    """The SDK on a service that many tests share."""
    return _sdk(shared_service, monkeypatch, tmp_path)


def _sdk(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sdk:
    """`new_instance()` from a copy of client.env with this run's port."""
    credentials = service.state.client_env | {"URL": service.url, "AUTH_URL": service.url}
    file = tmp_path / "client.env"
    file.write_text("".join(f"IBM_KEY_PROTECT_API_{name}={value}\n" for name, value in credentials.items()))
    monkeypatch.setenv("IBM_CREDENTIALS_FILE", str(file))
    return Sdk(IbmKeyProtectApiV2.new_instance(), service.state.instance_id)


def test_wrap_and_unwrap_given_and_generated(sdk: Sdk) -> None:
    key = sdk.create("sdk wrap")["id"]
    given = sdk.wrap(key, plaintext=DEK, aad=["volume", "7"])
    assert "plaintext" not in given
    assert sdk.unwrap(key, ciphertext=given["ciphertext"], aad=["volume", "7"])["plaintext"] == DEK
    generated = sdk.wrap(key)
    assert len(base64.b64decode(generated["plaintext"])) == 32
    opened = sdk.unwrap(key, ciphertext=generated["ciphertext"])
    assert opened["plaintext"] == generated["plaintext"]
    assert opened["keyVersion"]["id"] == generated["keyVersion"]["id"]
    assert "rewrappedKeyVersion" not in opened


def test_a_key_is_imported_rotated_and_opens_old_data(sdk: Sdk) -> None:
    """Under one import token, then under another; the second also replaces the first."""
    first, second = os.urandom(32), os.urandom(24)
    token = sdk.import_token()
    made = sdk.create("sdk import", **token.fields(first))
    assert (made["imported"], made["extractable"]) == (True, False)
    old = sdk.wrap(made["id"], plaintext=DEK)
    sdk.rotate(made["id"], **sdk.import_token().fields(second))
    opened = sdk.unwrap(made["id"], ciphertext=old["ciphertext"])
    assert (opened["plaintext"], opened["keyVersion"]["id"]) == (DEK, old["keyVersion"]["id"])
    assert opened["rewrappedKeyVersion"]["id"] != old["keyVersion"]["id"]
    assert sdk.unwrap(made["id"], ciphertext=opened["ciphertext"])["plaintext"] == DEK
    with pytest.raises(ApiException) as refused:
        sdk.create("sdk late", **token.fields(first))
    assert (refused.value.status_code, _code(refused.value)) == (400, "INCORRECT_NONCE_IV_ERR")


def test_generated_with_aad(sdk: Sdk) -> None:
    key = sdk.create("sdk wrap aad")["id"]
    generated = sdk.wrap(key, aad=["only", "aad"])
    opened = sdk.unwrap(key, ciphertext=generated["ciphertext"], aad=["only", "aad"])
    assert opened["plaintext"] == generated["plaintext"]


@pytest.mark.parametrize("aad", [["b", "a"], ["ab"], ["a"], ["a", "b", ""], [], None])
def test_wrong_aad_is_422(sdk: Sdk, aad: list[str] | None) -> None:
    key = sdk.create("sdk aad")["id"]
    wrapped = sdk.wrap(key, plaintext=DEK, aad=["a", "b"])
    given = {} if aad is None else {"aad": aad}
    for call in (sdk.unwrap, sdk.rewrap):
        with pytest.raises(ApiException) as refused:
            call(key, ciphertext=wrapped["ciphertext"], **given)
        assert refused.value.status_code == 422
        assert _code(refused.value) == "UNPROCESSABLE_CIPHERTEXT_ERR"


def test_rotation_keeps_old_ciphertexts(sdk: Sdk) -> None:
    key = sdk.create("sdk rotate")["id"]
    old = sdk.wrap(key, plaintext=DEK)
    assert sdk.service.rotate_key(key, sdk.instance).get_status_code() == 204
    opened = sdk.unwrap(key, ciphertext=old["ciphertext"])
    assert opened["plaintext"] == DEK
    assert opened["keyVersion"]["id"] == old["keyVersion"]["id"]
    newest = opened["rewrappedKeyVersion"]["id"]
    assert newest != old["keyVersion"]["id"]
    again = sdk.unwrap(key, ciphertext=opened["ciphertext"])
    assert (again["plaintext"], again["keyVersion"]["id"]) == (DEK, newest)
    rewrapped = sdk.rewrap(key, ciphertext=old["ciphertext"])
    assert rewrapped["rewrappedKeyVersion"]["id"] == newest
    assert sdk.unwrap(key, ciphertext=rewrapped["ciphertext"])["plaintext"] == DEK
    versions = sdk.service.get_key_versions(key, sdk.instance, total_count=True).get_result().json()
    assert [version["id"] for version in versions["resources"]] == [newest, old["keyVersion"]["id"]]
    assert versions["metadata"]["totalCount"] == 2
    page = sdk.service.get_key_versions(key, sdk.instance, limit=1, offset=1, all_key_states=True).get_result().json()
    assert [version["id"] for version in page["resources"]] == [old["keyVersion"]["id"]]


def test_rotating_again_within_the_hour_is_409(sdk: Sdk) -> None:
    key = sdk.create("sdk rotate twice")["id"]
    sdk.service.rotate_key(key, sdk.instance)
    with pytest.raises(ApiException) as refused:
        sdk.service.rotate_key(key, sdk.instance)
    assert refused.value.status_code == 409
    assert _code(refused.value) == "KEY_ROTATION_NOT_PERMITTED"


def test_older_action_call(sdk: Sdk) -> None:
    """`action_on_key`, deprecated and in every SDK; what it wraps opens by the newer call."""
    key = sdk.create("sdk older")["id"]
    answer = sdk.service.action_on_key(key, sdk.instance, "wrap", key_action_body=_stream({"plaintext": DEK}))
    wrapped = answer.get_result().json()
    assert sdk.unwrap(key, ciphertext=wrapped["ciphertext"])["plaintext"] == DEK
    assert sdk.service.action_on_key(key, sdk.instance, "rotate", _stream({})).get_status_code() == 204
    body = _stream({"ciphertext": wrapped["ciphertext"]})
    opened = sdk.service.action_on_key(key, sdk.instance, "unwrap", key_action_body=body).get_result().json()
    assert opened["plaintext"] == DEK
    assert opened["rewrappedKeyVersion"]["id"] != wrapped["keyVersion"]["id"]


def test_created_read_and_described_alike(sdk: Sdk) -> None:
    """A root key has no payload anywhere; what create answered is what get and metadata say."""
    created = sdk.create("sdk root", description="what it is for", tags=["one", "two"], aliases=["sdk-root"])
    assert (created["state"], created["extractable"], created["keyRingID"]) == (1, False, "default")
    for call in (sdk.service.get_key, sdk.service.get_key_metadata):
        for reference in (created["id"], "sdk-root"):
            read = call(reference, sdk.instance).get_result().json()["resources"][0]
            assert "payload" not in read
            assert {name: read[name] for name in created} == created


def test_rewrap_without_rotation(sdk: Sdk) -> None:
    key = sdk.create("sdk rewrap")["id"]
    wrapped = sdk.wrap(key, plaintext=DEK)
    rewrapped = sdk.rewrap(key, ciphertext=wrapped["ciphertext"])
    assert rewrapped["keyVersion"] == rewrapped["rewrappedKeyVersion"] == wrapped["keyVersion"]


def test_standard_key_gives_its_payload(sdk: Sdk) -> None:
    created = sdk.create("sdk standard", extractable=True)
    read = sdk.service.get_key(created["id"], sdk.instance).get_result().json()["resources"][0]
    assert len(base64.b64decode(created["payload"])) == 32
    assert read["payload"] == created["payload"]
    metadata = sdk.service.get_key_metadata(created["id"], sdk.instance).get_result().json()["resources"][0]
    assert "payload" not in metadata


def test_list_search_and_count(sdk: Sdk) -> None:
    before = sdk.total(extractable=False)
    ids = {sdk.create(f"sdk needle {number}")["id"] for number in range(3)}
    found = sdk.service.get_keys(sdk.instance, search="name:SDK needle", sort="-creationDate").get_result().json()
    assert {key["id"] for key in found["resources"]} == ids
    assert sdk.total(extractable=False) == before + 3
    assert sdk.total(extractable=False, state=[1]) == before + 3
    page = sdk.service.get_keys(sdk.instance, search="name:SDK needle", limit=2, offset=2).get_result().json()
    assert len(page["resources"]) == 1


def test_rings_and_moving(sdk: Sdk) -> None:
    assert sdk.service.create_key_ring("sdk-ring", sdk.instance).get_status_code() == 201
    assert sdk.rings() >= {"default", "sdk-ring"}
    key = sdk.create("sdk in ring")["id"]
    moved = sdk.service.patch_key(key, sdk.instance, key_patch_body=_stream({"keyRingID": "sdk-ring"}))
    assert moved.get_result().json()["resources"][0]["keyRingID"] == "sdk-ring"
    there = sdk.service.get_keys(sdk.instance, x_kms_key_ring="sdk-ring").get_result().json()
    assert [found["id"] for found in there["resources"]] == [key]
    with pytest.raises(ApiException) as refused:
        sdk.service.delete_key_ring("sdk-ring", sdk.instance)
    assert refused.value.status_code == 409
    sdk.service.patch_key(key, sdk.instance, key_patch_body=_stream({"keyRingID": "default"}))
    assert sdk.service.delete_key_ring("sdk-ring", sdk.instance).get_status_code() == 204
    assert "sdk-ring" not in sdk.rings()


def test_deleted_key_is_gone_for_use(sdk: Sdk) -> None:
    key = sdk.create("sdk delete")["id"]
    wrapped = sdk.wrap(key, plaintext=DEK)
    deleted = sdk.service.delete_key(key, sdk.instance, prefer="return=representation").get_result().json()
    resource = deleted["resources"][0]
    assert (resource["state"], resource["deleted"], resource["restoreAllowed"]) == (5, True, True)
    for use in (
        lambda: sdk.wrap(key),
        lambda: sdk.unwrap(key, ciphertext=wrapped["ciphertext"]),
        lambda: sdk.rewrap(key, ciphertext=wrapped["ciphertext"]),
        lambda: sdk.service.rotate_key(key, sdk.instance),
        lambda: sdk.service.delete_key(key, sdk.instance),
    ):
        with pytest.raises(ApiException) as refused:
            use()
        assert refused.value.status_code == 410
        assert _code(refused.value) == "KEY_DELETED_ERR"
    assert sdk.service.get_key_metadata(key, sdk.instance).get_result().json()["resources"][0]["state"] == 5
    listed = sdk.service.get_keys(sdk.instance, search=key).get_result().json()["resources"]
    assert listed == []


def test_delete_without_an_answer(sdk: Sdk) -> None:
    key = sdk.create("sdk delete minimal")["id"]
    assert sdk.service.delete_key(key, sdk.instance, prefer="return=minimal").get_status_code() == 204


def test_authenticator_given_in_code(shared_service: Service) -> None:
    """`IAMAuthenticator(url=)` and `set_service_url`, without any file."""
    service = IbmKeyProtectApiV2(authenticator=IAMAuthenticator(shared_service.state.api_key, url=shared_service.url))
    service.set_service_url(shared_service.url)
    assert service.get_keys(shared_service.state.instance_id).get_status_code() == 200


def test_wrong_api_key_is_refused(shared_service: Service) -> None:
    service = IbmKeyProtectApiV2(authenticator=IAMAuthenticator("not an API key", url=shared_service.url))
    service.set_service_url(shared_service.url)
    with pytest.raises(ApiException) as refused:
        service.get_keys(shared_service.state.instance_id)
    assert refused.value.status_code == 400


@pytest.mark.parametrize("whose", ["IDENTITY", "INSTANCE"])
def test_retries_bring_a_burst_over_the_limit_to_its_end(
    state: State,
    run_service: Callable[..., Service],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whose: str,
) -> None:
    """Without retries the SDK hands 429 on; with them it waits as long as Retry-After says, for hot calls and cold."""
    limits = {f"HSMKMS_{whose}_REQUESTS_PER_S": "2", f"HSMKMS_{whose}_BURST_REQUESTS": "3"}
    sdk = _sdk(run_service(state, **limits), monkeypatch, tmp_path)
    key = sdk.create("sdk limit")["id"]

    def burst() -> None:
        while True:
            sdk.wrap(key)

    with pytest.raises(ApiException) as refused:
        burst()
    assert refused.value.status_code == 429
    assert refused.value.http_response.headers["Retry-After"] == "1"
    sdk.service.enable_retries()
    repeated = 0
    for _ in range(4):
        for answer in (sdk.service.wrap_key(key, sdk.instance), sdk.service.get_keys(sdk.instance)):
            assert answer.get_status_code() == 200
            repeated += [attempt.status for attempt in answer.get_result().raw.retries.history].count(429)
    assert repeated > 0


def test_port_of_the_private_endpoint(
    state: State, run_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """IBM's own suite leaves this call out."""
    service = run_service(state)
    sdk = _sdk(service, monkeypatch, tmp_path)

    def resources() -> list[dict[str, int]]:
        body = sdk.service.get_allowed_ip_port(sdk.instance).get_result().json()
        assert body["metadata"]["collectionType"] == "application/vnd.ibm.kms.allowed_ip_metadata+json"
        return list(body["resources"])

    assert resources() == []
    attributes = {"enabled": True, "attributes": {"allowed_ip": ["127.0.0.1"]}}
    policy = {
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1},
        "resources": [{"policy_type": "allowedIP", "policy_data": attributes}],
    }
    sdk.service.put_instance_policy(sdk.instance, policy)
    assert resources() == [{"private_endpoint_port": service.port}]
