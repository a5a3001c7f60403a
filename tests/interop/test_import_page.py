"""The commands of docs/import.md as they stand there, in one shell, against a real service."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from tests.support.deployment import PROGRAM, ROOT, Service, State

PAGE = ROOT / "docs" / "import.md"


@pytest.fixture(scope="module")
def service(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that takes RSAES_OAEP_SHA_1 as well, as the page's last way wants it."""
    state = seed_state.copy_to(tmp_path_factory.mktemp("page") / "state")
    with Service(state, HSMKMS_IMPORT_OAEP_SHA1="true") as service:
        yield service


@pytest.fixture(scope="module")
def run(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the commands ran, and what they printed."""
    directory = tmp_path_factory.mktemp("reader")
    credentials = service.state.client_env | {"URL": service.url, "AUTH_URL": service.url}
    (directory / "client.env").write_text("".join(f"IBM_KEY_PROTECT_API_{k}={v}\n" for k, v in credentials.items()))
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    # The deployment's Python is one with `cryptography`.
    environment = {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "HOME": str(directory)}
    done = subprocess.run(
        ["sh", "-eu"],
        input="".join(blocks),
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return directory, done.stdout


def opens(key: Path, ciphertext: str) -> bool:
    """Whether the bytes in that file sealed it."""
    aes_key_unwrap(key.read_bytes(), base64.b64decode(json.loads(base64.b64decode(ciphertext))["ciphertext"]))
    return True


def test_every_way_brings_the_key_that_it_says(run: tuple[Path, str], service: Service) -> None:
    directory, _ = run
    with service.client() as client:
        keys = {key["name"]: key for key in client.get("/keys").json()["resources"]}
        wrapped = {name: client.post(f"/keys/{key['id']}/actions/wrap").json() for name, key in keys.items()}
    assert {name: key["importedBy"] for name, key in keys.items()} == {
        "brought": "process",
        "brought with SHA-1": "token",
        "brought in clear": "process",
    }
    for name, file in {"brought": "second", "brought with SHA-1": "third", "brought in clear": "root"}.items():
        assert opens(directory / f"{file}.key", wrapped[name]["ciphertext"])


def test_what_the_reader_sees(run: tuple[Path, str], service: Service) -> None:
    """The old text opened after the rotation, and no secret on the screen or in a file that others can read."""
    directory, printed = run
    assert "hello, token" in printed
    secrets = [base64.b64encode(key.read_bytes()).decode() for key in directory.glob("*.key")]
    assert len(secrets) == 3
    for secret in (*secrets, service.state.api_key):
        assert secret not in printed
    made = [path for path in directory.iterdir() if path.name != "client.env"]
    assert not [path.name for path in made if path.stat().st_mode & 0o077]
