"""The live tests that IBM ships with its Go client, unmodified; only the client's two default URLs point here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support.deployment import Service
from tests.support.foreign_clients import finished, place_for
from tests.support.golang import CLIENT, MODULE, go

LIVE_TESTS: Final = tuple(
    (
        "TestWrapUnwrap TestWrapDEKV2UnWrap TestWrapV2Unwrap TestWrapUnwrapWithAlias "
        "TestRotatedKeyHasLastUpdatedAndRotated TestExtractableKey TestRotationInstancePolicy TestKeyRotationPolicy "
        "TestCreateKeyWithPolicyOverrides TestListKeysWithFilter"
    ).split()
)
URLS: Final = ('"https://us-south.kms.cloud.ibm.com"', "iam.IAMTokenURL")


@pytest.fixture(scope="module")
def original() -> Path:
    """Where Go has unpacked the client."""
    go("mod", "download", CLIENT)
    return Path(go("list", "-m", "-f", "{{.Dir}}", CLIENT).strip())


@pytest.fixture(scope="module")
def output(original: Path, tls_service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the tests printed."""
    directory = tmp_path_factory.mktemp("go-live")
    program = directory / "live.test"
    go("test", "-c", "-o", program, "-tags=integration", CLIENT, where=_module(directory, original, tls_service.url))
    place = place_for(tls_service)
    extra = {**place, "KP_INSTANCE_ID": place["KP_INSTANCE"], "IBMCLOUD_API_KEY": place["KP_API_KEY"]}
    return finished([program, "-test.v", f"-test.run=^({'|'.join(LIVE_TESTS)})$"], extra, directory).stdout


def test_every_live_test_is_listed(original: Path) -> None:
    source = (original / "integration_test.go").read_text()
    assert re.findall(r"^func (Test\w+)", source, re.MULTILINE) == list(LIVE_TESTS)


@pytest.mark.parametrize("name", LIVE_TESTS)
def test_passes(output: str, name: str) -> None:
    assert re.search(rf"^--- PASS: {name} ", output, re.MULTILINE), output


def _module(directory: Path, original: Path, url: str) -> Path:
    """Our module with a copy of the client that has these default URLs."""
    copy = directory / "client"
    for source in [*original.glob("*.go"), original / "go.mod", *original.glob("iam/*.go")]:
        target = copy / source.relative_to(original)
        target.parent.mkdir(exist_ok=True)
        # The original is read-only, and so would be its copy.
        shutil.copyfile(source, target)
    text = (copy / "kp.go").read_text()
    for known, ours in zip(URLS, (f'"{url}"', f'"{url}/oidc/token"'), strict=True):
        assert text.count(known) == 1
        text = text.replace(known, ours)
    (copy / "kp.go").write_text(text)
    module = directory / "module"
    shutil.copytree(MODULE, module)
    go("mod", "edit", f"-replace={CLIENT}={copy}", where=module)
    return module
