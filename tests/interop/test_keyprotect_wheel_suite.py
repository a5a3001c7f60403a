"""IBM's own live tests and runnable examples, unmodified, as they ship inside the `keyprotect` wheel.

Both files run once, in their order, in a directory that holds the credentials file they look for; then each of their
tests is one test here. They have the same tests, an example with `_example` behind its name. What later work serves is
listed by name and must fail until then: an unexpected pass fails.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.support.deployment import Service
from tests.support.iam import Iam, key_client

FILES: Final = MappingProxyType(
    {
        "live": "test/integration/test_ibm_key_protect_api_v2.py",
        "examples": "examples/test_ibm_key_protect_api_v2_examples.py",
    }
)
TIMEOUT_S: Final = 180

SERVED: Final = tuple(
    (
        "get_key_collection_metadata create_key get_keys get_key get_key_metadata get_key_versions wrap_key unwrap_key "
        "rewrap_key rotate_key list_key_rings create_key_ring patch_key delete_key delete_key_ring cleanup_resources "
        "create_key_with_policies_overrides disable_key enable_key restore_key put_policy get_policy "
        "create_key_alias delete_key_alias put_instance_policy get_instance_policy "
        "sync_associated_resources get_registrations get_registrations_all_keys "
        "post_import_token get_import_token"
    ).split()
)
SKIPPED_BY_IBM: Final = tuple(
    (
        "get_allowed_ip_port purge_key set_key_for_deletion unset_key_for_deletion get_kmip_object delete_kmip_object"
    ).split()
)
NOT_SERVED: Final = MappingProxyType(
    {
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


@dataclass(frozen=True)
class Run:
    """One of IBM's files under way, in a directory and an instance of its own."""

    directory: Path
    instance_id: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, service: Service, file: str, instance_id: str, directory: Path) -> Run:
        """Start pytest on a file of the wheel."""
        known = {"URL": service.url, "AUTH_URL": service.url, "BLUEMIX_INSTANCE": instance_id}
        credentials = service.state.client_env | known
        lines = [f"IBM_KEY_PROTECT_API_{name}={value}\n" for name, value in credentials.items()]
        (directory / "ibm_key_protect_api_v2.env").write_text("".join(lines))
        report = f"--junit-xml={directory / 'report.xml'}"
        options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={directory}", report]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(_in_wheel(file).locate())],
            cwd=directory,
            env=service.state.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        return cls(directory, instance_id, process)

    def outcomes(self) -> dict[str, str]:
        """Wait for its end. Name of each of IBM's tests → passed, skipped or failed with its message."""
        self.process.wait(TIMEOUT_S)
        return {
            _name(case): _outcome(case) for case in ElementTree.parse(self.directory / "report.xml").iter("testcase")
        }


@pytest.fixture(scope="module")
def runs(shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Both side by side: each of them waits for more than a minute, because IBM's service would make it."""
    with Iam(shared_service) as iam:
        instances = {name: iam.instance() for name in FILES}
    started = {
        name: Run.start(shared_service, FILES[name], instance_id, tmp_path_factory.mktemp(name))
        for name, instance_id in instances.items()
    }
    yield started
    for run in started.values():
        run.process.kill()
        run.process.wait()


@pytest.fixture(scope="module", params=FILES)
def run(runs: dict[str, Run], request: pytest.FixtureRequest) -> Run:
    """One of the two."""
    return runs[str(request.param)]


@pytest.fixture(scope="module")
def outcomes(run: Run) -> dict[str, str]:
    """How each of IBM's tests ended."""
    return run.outcomes()


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_file_is_as_ibm_published_it(file: str) -> None:
    """Its SHA-256 is that of the wheel's RECORD."""
    found = _in_wheel(file)
    assert found.hash is not None
    digest = hashlib.sha256(found.read_binary()).digest()
    assert (found.hash.mode, found.hash.value) == ("sha256", base64.urlsafe_b64encode(digest).decode().rstrip("="))


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
    """IBM skips these itself."""
    assert outcomes[name] == "skipped"


@pytest.mark.usefixtures("outcomes")
def test_nothing_is_left_behind(run: Run, shared_service: Service) -> None:
    """Their cleanup swallows every error, so that it passed proves nothing by itself."""
    with key_client(shared_service, shared_service.token(), run.instance_id) as client:
        keys = client.get("/keys").json()["resources"]
        rings = client.get("/key_rings").json()["resources"]
    assert keys == []
    assert [ring["id"] for ring in rings] == ["default"]


def _in_wheel(name: str) -> importlib.metadata.PackagePath:
    files = importlib.metadata.files("keyprotect") or []
    return next(file for file in files if str(file) == name)


def _name(case: ElementTree.Element) -> str:
    return case.attrib["name"].removeprefix("test_").removesuffix("_example")


def _outcome(case: ElementTree.Element) -> str:
    if case.find("skipped") is not None:
        return "skipped"
    bad = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
    return "passed" if bad is None else f"failed: {bad.attrib.get('message')}"
