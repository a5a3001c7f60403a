"""Token and database are gone, and nothing is left but the key's bytes in a safe: what it sealed opens again."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ibm_cloud_sdk_core import ApiException
from ibm_cloud_sdk_core.authenticators import IAMAuthenticator
from keyprotect.ibm_key_protect_api_v2 import IbmKeyProtectApiV2

from tests.support.bringing import Fetched
from tests.support.deployment import Service, create_body, make_state

PLAINTEXT = base64.b64encode(b"what the customers of a bank may never lose").decode()
AAD = ["volume", "7"]


class Sdk:
    """IBM's Python SDK on a deployment's first instance."""

    def __init__(self, service: Service) -> None:
        authenticator = IAMAuthenticator(service.state.api_key, url=service.url)
        self._sdk = IbmKeyProtectApiV2(authenticator=authenticator)
        self._sdk.set_service_url(service.url)
        self._instance = service.state.instance_id

    def bring(self, material: bytes) -> str:
        """Import a root key under a fresh import token; its id."""
        body = create_body("brought", **self._wrapped(material))  # type: ignore[arg-type]
        answer = self._sdk.create_key(self._instance, _stream(body)).get_result().json()
        return str(answer["resources"][0]["id"])

    def rotate(self, key: str, material: bytes) -> None:
        self._sdk.rotate_key(key, self._instance, key_action_rotate_body=_stream(self._wrapped(material)))

    def wrap(self, key: str) -> str:
        body = _stream({"plaintext": PLAINTEXT, "aad": AAD})
        return str(self._sdk.wrap_key(key, self._instance, key_action_wrap_body=body).get_result().json()["ciphertext"])

    def unwrap(self, key: str, ciphertext: str, aad: list[str]) -> dict[str, Any]:
        body = _stream({"ciphertext": ciphertext, "aad": aad})
        return dict(self._sdk.unwrap_key(key, self._instance, key_action_unwrap_body=body).get_result().json())

    def _wrapped(self, material: bytes) -> dict[str, str]:
        self._sdk.post_import_token(self._instance)
        return Fetched.of(self._sdk.get_import_token(self._instance).get_result().json()).fields(material)


def _stream(body: object) -> io.BytesIO:
    return io.BytesIO(json.dumps(body).encode())


def test_total_loss(tmp_path: Path, run_service: Callable[..., Service]) -> None:
    """In another deployment, under another instance, key and version id; of two versions in their order."""
    oldest, newest = os.urandom(32), os.urandom(32)
    before = make_state(tmp_path / "before")
    with Service(before) as service:
        sdk = Sdk(service)
        key = sdk.bring(oldest)
        old = sdk.wrap(key)
        sdk.rotate(key, newest)
        new = sdk.wrap(key)
    shutil.rmtree(before.path)

    sdk = Sdk(run_service(make_state(tmp_path / "after")))
    again = sdk.bring(oldest)
    assert again != key
    assert sdk.unwrap(again, old, AAD)["plaintext"] == PLAINTEXT
    with pytest.raises(ApiException) as refused:
        sdk.unwrap(again, new, AAD)
    assert refused.value.status_code == 422
    sdk.rotate(again, newest)
    for ciphertext in (old, new):
        opened = sdk.unwrap(again, ciphertext, AAD)
        assert opened["plaintext"] == PLAINTEXT
        with pytest.raises(ApiException) as refused:
            sdk.unwrap(again, ciphertext, ["volume", "8"])
        assert refused.value.status_code == 422
    # And it is as good as new: what it seals from now on opens as well.
    assert sdk.unwrap(again, sdk.wrap(again), AAD)["plaintext"] == PLAINTEXT
    # Of other bytes it is another key.
    with pytest.raises(ApiException) as refused:
        sdk.unwrap(sdk.bring(os.urandom(32)), old, AAD)
    assert refused.value.status_code == 422
