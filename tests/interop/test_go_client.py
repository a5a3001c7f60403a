"""IBM's Go client, unmodified, as the Go module proxy serves it: every method of it, by the program in `go/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.support.foreign_clients import run
from tests.support.golang import MODULE, go

KMIP: Final = frozenset(
    (
        "CreateKMIPAdapter GetKMIPAdapters GetKMIPAdapter DeleteKMIPAdapter CreateKMIPClientCertificate "
        "GetKMIPClientCertificates GetKMIPClientCertificate DeleteKMIPClientCertificate "
        "GetKMIPObjects GetKMIPObject DeleteKMIPObject"
    ).split()
)
NOT_CALLED: Final = KMIP | {"GetAllowedIPPrivateNetworkPort"}
"""What later work serves."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in `go/`."""
    built = tmp_path_factory.mktemp("go") / "conformance"
    go("build", "-o", built, ".")
    return built


def test_every_method_of_the_client(program: Path, place: dict[str, str]) -> None:
    methods = set(run([program], place)["methods"])
    source = "".join(file.read_text() for file in MODULE.glob("*.go"))
    called = methods & set(re.findall(r"\.(\w+)\(s\.ctx\b", source))
    assert methods - called == NOT_CALLED
