"""One Swift for all these tests, whose account `bank` may use the keys of the first instance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.deployment import Service, create_key
from tests.support.iam import Iam
from tests.support.swift import Swift


def crn_of(admin: httpx.Client, key: str) -> str:
    """The CRN of a key."""
    return str(admin.get(f"/keys/{key}").json()["resources"][0]["crn"])


@pytest.fixture(scope="session")
def default_key(admin: httpx.Client) -> str:
    """The root key of AUTH_other's buckets."""
    return crn_of(admin, create_key(admin, "default"))


@pytest.fixture(scope="session")
def swift(service: Service, iam: Iam, default_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    with Swift(tmp_path_factory.mktemp("swift") / "cluster", service, iam, default_key=default_key) as swift:
        yield swift


@pytest.fixture(scope="session")
def bank(swift: Swift) -> Any:
    """IBM's SDK with HMAC keys."""
    return swift.client()
