"""IBM's Go client, unmodified, as the Go module proxy serves it: every method of it, by the program in `go/`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support.foreign_clients import output_of, run

PROGRAM: Final = Path(__file__).with_name("go")
IMPORT: Final = frozenset(
    (
        "CreateImportToken GetImportTokenTransportKey CreateImportedKey CreateImportedKeyWithSHA1 "
        "CreateImportedRootKey CreateImportedStandardKey CreateImportedKeyWithAliases "
        "CreateImportedKeyWithPolicyOverrides CreateImportedKeyWithPolicyOverridesWithSHA1 "
        "CreateImportedRootKeyWithPolicyOverrides CreateImportedStandardKeyWithPolicyOverrides"
    ).split()
)
KMIP: Final = frozenset(
    (
        "CreateKMIPAdapter GetKMIPAdapters GetKMIPAdapter DeleteKMIPAdapter CreateKMIPClientCertificate "
        "GetKMIPClientCertificates GetKMIPClientCertificate DeleteKMIPClientCertificate "
        "GetKMIPObjects GetKMIPObject DeleteKMIPObject"
    ).split()
)
NOT_CALLED: Final = IMPORT | KMIP | {"GetAllowedIPPrivateNetworkPort"}
"""What later work serves."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built with exactly what go.sum names."""
    go = _go()
    built = tmp_path_factory.mktemp("go") / "conformance"
    flags = {"GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    output_of([go, "build", "-o", built, "."], flags, PROGRAM)
    return built


def test_every_method_of_the_client(program: Path, place: dict[str, str]) -> None:
    methods = set(run([program], place)["methods"])
    source = "".join(file.read_text() for file in PROGRAM.glob("*.go"))
    called = methods & set(re.findall(r"\.(\w+)\(s\.ctx\b", source))
    assert methods - called == NOT_CALLED


def _go() -> str:
    """Go, of the version that the client asks for or newer; skips where there is none."""
    needed = re.findall(r"^go ([\d.]+)$", (PROGRAM / "go.mod").read_text(), re.MULTILINE)[0]
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"no Go on the PATH; IBM's Go client needs {needed}")
    found = output_of([go, "env", "GOVERSION"], {"GOTOOLCHAIN": "local"}).strip().removeprefix("go")
    if _numbers(found) < _numbers(needed):
        pytest.skip(f"Go is {found}; IBM's Go client needs {needed}")
    return go


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
