"""IBM's own live tests, unmodified, as they ship inside the `keyprotect` wheel.

They run once, in their order, in a directory that holds the credentials file they look for; then each of them is one
test here. What later work serves is listed by name and must fail until then: an unexpected pass fails.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from types import MappingProxyType
from typing import Final

import pytest

from tests.support.deployment import Service

SUITE: Final = "test/integration/test_ibm_key_protect_api_v2.py"

SERVED: Final = tuple(
    (
        "get_key_collection_metadata create_key get_keys get_key get_key_metadata get_key_versions wrap_key unwrap_key "
        "rewrap_key rotate_key list_key_rings create_key_ring patch_key delete_key delete_key_ring cleanup_resources "
        "create_key_with_policies_overrides disable_key enable_key restore_key put_policy get_policy "
        "create_key_alias delete_key_alias put_instance_policy get_instance_policy "
        "sync_associated_resources get_registrations get_registrations_all_keys"
    ).split()
)
SKIPPED_BY_IBM: Final = tuple(
    (
        "get_allowed_ip_port purge_key set_key_for_deletion unset_key_for_deletion get_kmip_object delete_kmip_object"
    ).split()
)
NOT_SERVED: Final = MappingProxyType(
    {
        "post_import_token": "import",
        "get_import_token": "import",
        "get_kmip_adapters": "KMIP",
        "create_kmip_adapter": "KMIP",
        "get_kmip_adapter": "KMIP",
        "get_kmip_objects": "KMIP",
        "get_kmip_client_certificates": "KMIP",
        "add_kmip_client_certificate": "KMIP",
        "get_kmip_client_certificate": "KMIP",
        "delete_kmip_client_certificate": "KMIP",
        "delete_kmip_adapter": "KMIP",
    }
)
"""Served later: name → with which feature."""


@pytest.fixture(scope="module")
def outcomes(shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of each of IBM's tests → passed, skipped or failed with its message."""
    here = tmp_path_factory.mktemp("wheel-suite")
    credentials = shared_service.state.client_env | {"URL": shared_service.url, "AUTH_URL": shared_service.url}
    lines = [f"IBM_KEY_PROTECT_API_{name}={value}\n" for name, value in credentials.items()]
    (here / "ibm_key_protect_api_v2.env").write_text("".join(lines))
    report = here / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={here}", f"--junit-xml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(_suite().locate())],
        cwd=here,
        env=shared_service.state.environment(),
        stdout=subprocess.DEVNULL,
        timeout=180,
        check=False,
    )
    return {_name(case): _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def test_suite_is_as_ibm_published_it() -> None:
    """Its SHA-256 is that of the wheel's RECORD."""
    suite = _suite()
    assert suite.hash is not None
    digest = hashlib.sha256(suite.read_binary()).digest()
    assert (suite.hash.mode, suite.hash.value) == ("sha256", base64.urlsafe_b64encode(digest).decode().rstrip("="))


def test_every_test_is_listed(outcomes: dict[str, str]) -> None:
    """A new release of the wheel cannot bring a test that nobody decided about."""
    assert set(outcomes) == {*SERVED, *SKIPPED_BY_IBM, *NOT_SERVED}


@pytest.mark.parametrize("name", SERVED)
def test_served(outcomes: dict[str, str], name: str) -> None:
    """What this service serves passes."""
    assert outcomes[name] == "passed"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=why, strict=True, raises=AssertionError))
        for name, why in NOT_SERVED.items()
    ],
)
def test_not_served_yet(outcomes: dict[str, str], name: str) -> None:
    """What later work brings does not pass today; once it does, this fails until the name has moved to SERVED."""
    assert outcomes[name] == "passed"


@pytest.mark.parametrize("name", NOT_SERVED)
def test_not_served_is_said_with_404(outcomes: dict[str, str], name: str) -> None:
    """It fails because there is no such call, and for no other reason: no 500, no dropped connection, no retries."""
    assert outcomes[name].endswith("Status code: 404")


@pytest.mark.parametrize("name", SKIPPED_BY_IBM)
def test_skipped_by_ibm(outcomes: dict[str, str], name: str) -> None:
    """IBM's suite skips these itself."""
    assert outcomes[name] == "skipped"


@pytest.mark.usefixtures("outcomes")
def test_nothing_is_left_behind(shared_service: Service) -> None:
    """Its cleanup swallows every error, so that it passed proves nothing by itself."""
    with shared_service.client() as client:
        keys = client.get("/keys", params={"search": "exact:created-test-root-key"}).json()["resources"]
        rings = client.get("/key_rings").json()["resources"]
    assert keys == []
    assert "test-keyring" not in {ring["id"] for ring in rings}


def _suite() -> importlib.metadata.PackagePath:
    files = importlib.metadata.files("keyprotect") or []
    return next(file for file in files if str(file) == SUITE)


def _name(case: ElementTree.Element) -> str:
    return case.attrib["name"].removeprefix("test_")


def _outcome(case: ElementTree.Element) -> str:
    if case.find("skipped") is not None:
        return "skipped"
    bad = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
    return "passed" if bad is None else f"failed: {bad.attrib.get('message')}"
