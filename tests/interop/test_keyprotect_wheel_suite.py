"""IBM's own live tests, unmodified, as they ship inside the `keyprotect` wheel.

They run once, in their order, in a directory that holds the credentials file they look for; then each of them is one
test here. What later work serves is listed by name and must fail until then: an unexpected pass fails.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support.deployment import Service

SUITE = "test/integration/test_ibm_key_protect_api_v2.py"

SERVED = (
    "get_key_collection_metadata create_key get_keys get_key get_key_metadata get_key_versions wrap_key unwrap_key "
    "rewrap_key rotate_key list_key_rings create_key_ring patch_key delete_key delete_key_ring cleanup_resources"
).split()
SKIPPED_BY_IBM = "get_allowed_ip_port purge_key set_key_for_deletion unset_key_for_deletion get_kmip_object".split()
SKIPPED_BY_IBM += ["delete_kmip_object"]
NOT_SERVED = {
    "create_key_with_policies_overrides": "key policies",
    "put_policy": "key policies; skipped by its own suite without the key above",
    "get_policy": "key policies; skipped by its own suite without the key above",
    "sync_associated_resources": "registrations; skipped by its own suite without the key above",
    "disable_key": "lifecycle",
    "enable_key": "lifecycle",
    "restore_key": "lifecycle",
    "put_instance_policy": "instance policies",
    "get_instance_policy": "instance policies",
    "post_import_token": "import",
    "get_import_token": "import",
    "get_registrations": "registrations",
    "get_registrations_all_keys": "registrations",
    "create_key_alias": "aliases",
    "delete_key_alias": "aliases",
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


@pytest.fixture(scope="module")
def outcomes(shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of each of IBM's tests → passed, skipped or failed with its message."""
    here = tmp_path_factory.mktemp("wheel-suite")
    (here / "ibm_key_protect_api_v2.env").write_text(
        f"IBM_KEY_PROTECT_API_URL={shared_service.url}\n"
        f"IBM_KEY_PROTECT_API_AUTH_URL={shared_service.url}\n"
        "IBM_KEY_PROTECT_API_AUTH_TYPE=iam\n"
        f"IBM_KEY_PROTECT_API_APIKEY={shared_service.state.api_key}\n"
        f"IBM_KEY_PROTECT_API_BLUEMIX_INSTANCE={shared_service.state.instance_id}\n"
    )
    report = here / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={here}", f"--junit-xml={report}"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(_suite())],
        cwd=here,
        env=shared_service.state.environment(),
        stdout=subprocess.DEVNULL,
        timeout=400,
        check=False,
    )
    return {_name(case): _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def test_every_test_is_listed(outcomes: dict[str, str]) -> None:
    """A new release of the wheel cannot bring a test that nobody decided about."""
    assert set(outcomes) == {*SERVED, *SKIPPED_BY_IBM, *NOT_SERVED}


@pytest.mark.parametrize("name", SERVED)
def test_served(outcomes: dict[str, str], name: str) -> None:
    """What this service serves passes."""
    assert outcomes[name] == "passed"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xfail(reason=why, strict=True)) for name, why in NOT_SERVED.items()]
)
def test_not_served_yet(outcomes: dict[str, str], name: str) -> None:
    """What later work brings fails today."""
    assert outcomes[name] == "passed"


@pytest.mark.parametrize("name", SKIPPED_BY_IBM)
def test_skipped_by_ibm(outcomes: dict[str, str], name: str) -> None:
    """IBM skips these itself."""
    assert outcomes[name] == "skipped"


def _suite() -> Path:
    files = importlib.metadata.files("keyprotect") or []
    return next(Path(str(file.locate())) for file in files if str(file) == SUITE)


def _name(case: ElementTree.Element) -> str:
    return case.attrib["name"].removeprefix("test_")


def _outcome(case: ElementTree.Element) -> str:
    if case.find("skipped") is not None:
        return "skipped"
    bad = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
    return "passed" if bad is None else f"failed: {bad.attrib.get('message')}"
