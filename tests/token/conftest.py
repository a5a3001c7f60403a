"""A token of its own for each test, an outside program to look at it, and a cable to pull."""

from __future__ import annotations

import inspect
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretText
from hsmkms.token import selftest
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
from hsmkms.wiring import AUDIT_KEY_ID
from tests.support import nss
from tests.support.deployment import State
from tests.support.injector import MODULE, Injector, compile_injector

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


def lose_audit_key(state: State) -> None:
    """Destroy it, as on a token that was restored from something else than its own backup."""
    for kind in ("privkey", "pubkey"):
        pkcs11_tool(state, "--delete-object", "--type", kind, "--id", object_id(AUDIT_KEY_ID))


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


@dataclass(frozen=True)
class Implementation:
    """A token of one PKCS#11 implementation."""

    module: str
    label: str
    pin: str


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test runs with every implementation, unless it looks at SoftHSM's own files."""
    if "implementation" not in metafunc.fixturenames:
        return
    wanted = inspect.signature(metafunc.function).parameters
    of_softhsm = any(
        name in wanted for name in ("state", "cable", "group", "standby", "pair", "injector_on_token", "foreign")
    )
    metafunc.parametrize("implementation", ["softhsm"] if of_softhsm else ["softhsm", "nss"], indirect=True)


@pytest.fixture(scope="session")
def module_in_front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passes NSS its initialisation string."""
    return compile_injector(tmp_path_factory.mktemp("front"))


@pytest.fixture
def implementation(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Implementation:
    """A token of this test's own."""
    if request.param == "softhsm":
        state: State = request.getfixturevalue("state")
        monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
        return Implementation(MODULE, LABEL, state.pin)
    for name in (request.node.originalname, request.node.name.replace("[nss-", "[")):
        if name in nss.LACKS:
            pytest.skip(f"NSS softoken {nss.LACKS[name]}")
    module = str(request.getfixturevalue("module_in_front"))
    (tmp_path / "nss").mkdir()
    for name, value in nss.environment_of(tmp_path / "nss").items():
        monkeypatch.setenv(name, value)
    nss.make_database(module)
    if request.node.originalname != "test_a_token_that_can_be_robbed_is_refused":
        monkeypatch.setattr(selftest, "_require_kept", lambda *_: None)
    # Its session objects take CKA_COPYABLE, for which the database of its token objects has no column.
    monkeypatch.setattr(selftest, "_takes_fixed_attributes", lambda _: False)
    return Implementation(module, nss.LABEL, nss.PIN)


@pytest.fixture(scope="session")
def injecting_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of its own: a module in front keeps the one behind it for as long as the process lives."""
    return compile_injector(tmp_path_factory.mktemp("injecting"))


@pytest.fixture
def injector_on_token(
    injecting_module: Path, state: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Injector:
    """Faults for this test's SoftHSM token, in this process."""
    injector = Injector(injecting_module, tmp_path / "faults")
    injector.cure()
    for name, value in injector.environment.items():
        monkeypatch.setenv(name, value)
    return injector


@pytest.fixture
def open_pool(implementation: Implementation) -> Iterator[OpenPool]:
    """Open session pools on this test's token; they are closed at the end."""
    pools: list[SessionPool] = []

    def open_pool(
        *,
        pin: str = implementation.pin,
        label: str | None = implementation.label,
        serial: str | None = None,
        module: str = implementation.module,
        size: int = 4,
        wait_s: float = 5,
        recycle_after: int = 100_000,
        guard: PinGuard | None = None,
        opened: bool = True,
    ) -> SessionPool:
        address = TokenAddress(module, label, serial)
        pool = SessionPool(
            address,
            SecretText(pin),
            size=size,
            wait_s=wait_s,
            recycle_after=recycle_after,
            guard=guard,
            opened=opened,
        )
        pools.append(pool)
        return pool

    yield open_pool
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(open_pool: OpenPool) -> SessionPool:
    """A pool of four sessions."""
    return open_pool()


@pytest.fixture
def token(pool: SessionPool) -> Token:
    """An opened and proved token of a deployment."""
    token = Token(pool)
    if not token.has_sentinel():
        token.make_sentinel()
    return token


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
