"""A token of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

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


@pytest.fixture
def open_pool(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPool]:
    """Open session pools on this test's token; they are closed at the end."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    opened: list[SessionPool] = []

    def open_pool(
        *,
        pin: str = state.pin,
        label: str = LABEL,
        module: str = MODULE,
        size: int = 4,
        wait_s: float = 5,
        recycle_after: int = 100_000,
    ) -> SessionPool:
        address = TokenAddress(module, label, None)
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
