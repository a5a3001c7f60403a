"""A token of its own for each test, an outside program to look at it, and a cable to pull."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretText
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
from tests.support.deployment import State

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
LABEL = "hsmkms"

OpenPool = Callable[..., SessionPool]


def pkcs11_tool(state: State, *arguments: str) -> str:
    """Run OpenSC's tool on this test's token in a process of its own, the PIN by environment."""
    environment = {**os.environ, "SOFTHSM2_CONF": str(state.path / "softhsm2.conf"), "TOKEN_PIN": state.pin}
    command = ["pkcs11-tool", "--module", MODULE, "--token-label", LABEL, "--login", "--pin", "env:TOKEN_PIN"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def object_id(version_id: str) -> str:
    """CKA_ID as pkcs11-tool writes it."""
    return uuid.UUID(version_id).hex


class Cable:
    """Between SoftHSM and its objects: pulled, their directory is away, or an empty one is in its place."""

    def __init__(self, tokens: Path) -> None:
        self._tokens = tokens
        self._away = tokens.with_name("away")

    def pull(self, *, leave_empty_directory: bool = True) -> None:
        """Take the objects away under the running process."""
        self._tokens.rename(self._away)
        if leave_empty_directory:
            self._tokens.mkdir()

    def plug(self) -> None:
        """Bring them back."""
        if self._tokens.exists():
            self._tokens.rmdir()
        self._away.rename(self._tokens)


@pytest.fixture
def open_pool(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPool]:
    """Open session pools on this test's token; they are closed at the end."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    opened: list[SessionPool] = []

    def open_pool(
        *,
        pin: str = state.pin,
        label: str | None = LABEL,
        serial: str | None = None,
        module: str = MODULE,
        size: int = 4,
        wait_s: float = 5,
        recycle_after: int = 100_000,
    ) -> SessionPool:
        address = TokenAddress(module, label, serial)
        pool = SessionPool(address, SecretText(pin), size=size, wait_s=wait_s, recycle_after=recycle_after)
        opened.append(pool)
        return pool

    yield open_pool
    for pool in opened:
        pool.close()


@pytest.fixture
def pool(open_pool: OpenPool) -> SessionPool:
    """A pool of four sessions."""
    return open_pool()


@pytest.fixture
def token(pool: SessionPool) -> Token:
    """An opened and proved token."""
    return Token(pool)


@pytest.fixture
def make_key(token: Token) -> Callable[[], KeyVersion]:
    """Generate root keys."""
    return lambda: token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))


@pytest.fixture
def key(make_key: Callable[[], KeyVersion]) -> KeyVersion:
    """A root key."""
    return make_key()


@pytest.fixture
def cable(state: State) -> Cable:
    """What connects this test's token."""
    return Cable(state.path / "tokens")
