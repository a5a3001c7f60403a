"""What really goes to the device, as OpenSC's pkcs11-spy notes it between this service and SoftHSM.

Each test runs in a fresh process: the spy reads its settings once, when it is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import PinRefused, TokenUnavailable, UnprocessableCiphertext
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
from tests.support.deployment import State
from tests.support.injector import MODULE
from tests.token.conftest import LABEL

SPY = next(Path("/usr/lib").glob("*-linux-gnu/pkcs11-spy.so"))
DEK = bytes(range(32))


@pytest.fixture
def spied(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessPoolExecutor]:
    """A new process whose calls to the module SPY are noted."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    monkeypatch.setenv("PKCS11SPY", MODULE)
    monkeypatch.setenv("PKCS11SPY_OUTPUT", str(tmp_path / "calls"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


def calls(act: Callable[[], object]) -> list[str]:
    """Names of the Cryptoki functions that `act` called."""
    log = Path(os.environ["PKCS11SPY_OUTPUT"])
    before = log.stat().st_size if log.exists() else 0
    act()
    return re.findall(r"^\d+: (C_\w+)$", log.read_bytes()[before:].decode(), re.MULTILINE)


def open_pool(pin: str) -> SessionPool:
    """Four sessions with the token, through the spy."""
    return SessionPool(TokenAddress(str(SPY), LABEL, None), SecretText(pin), size=4, wait_s=5, recycle_after=100_000)


def use_warm_token(pin: str) -> dict[str, list[str]]:
    """Every hot call once to warm up and once more to count."""
    pool = open_pool(pin)
    token = Token(pool)
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    signing_id = new_id()
    token.generate_signing_key(signing_id)
    sealed = token.seal(key, DEK, ())
    corrupt = sealed[:-1] + bytes([sealed[-1] ^ 1])

    def refuse(blob: bytes) -> None:
        with pytest.raises(UnprocessableCiphertext):
            token.open(key, key.id, blob, ())

    acts: dict[str, Callable[[], object]] = {
        "seal": lambda: token.seal(key, DEK, ("a",)),
        "open": lambda: token.open(key, key.id, sealed, ()),
        "corrupt": lambda: refuse(corrupt),
        "sign": lambda: token.sign(signing_id, b"message"),
        "random": lambda: token.random(32),
        "odd length": lambda: refuse(sealed[:-1]),
    }
    for act in acts.values():
        act()
    counted = {name: calls(act) for name, act in acts.items()}
    pool.close()
    return counted


def open_and_close(pin: str) -> list[str]:
    return calls(lambda: open_pool(pin).close())


def open_with_wrong_pin(pin: str) -> list[str]:
    def open_it() -> None:
        with pytest.raises(PinRefused) as caught:
            open_pool(pin)
        assert pin not in str(caught.value)

    return calls(open_it)


def change_pin_while_running(pin: str) -> list[str]:
    """All calls after an outside program changed the PIN, with four requests that want a session."""
    pool = open_pool(pin)
    command = ["pkcs11-tool", "--module", MODULE, "--token-label", LABEL, "--login", "--pin", "env:OLD"]
    environment = {**os.environ, "OLD": pin, "NEW": "another-pin"}
    subprocess.run([*command, "--new-pin", "env:NEW", "--change-pin"], env=environment, check=True, capture_output=True)

    def use() -> None:
        with pytest.raises(TokenUnavailable, match="PIN"):
            pool.reopen(pool.generation)
        for _ in range(4):
            with pytest.raises(TokenUnavailable, match="PIN"):
                pool.take()

    return calls(use)


def test_warm_calls_are_the_least_there_can_be(spied: ProcessPoolExecutor, state: State) -> None:
    """No search, no login, no session is opened on the hot path (design, "How a wrap request travels")."""
    counted = spied.submit(use_warm_token, state.pin).result()
    corrupt = counted.pop("corrupt")
    assert counted == {
        "seal": ["C_CreateObject", "C_WrapKey", "C_DestroyObject"],
        "open": ["C_UnwrapKey", "C_GetAttributeValue", "C_DestroyObject"],
        "sign": ["C_SignInit", "C_Sign"],
        "random": ["C_GenerateRandom"],
        "odd length": [],
    }
    # Bad input costs two attempts before a canary under its key and two after it, because a device may fail now and
    # then or come back in between; never a fresh start.
    tries = ["C_UnwrapKey"] * 2
    assert corrupt == [*tries, *counted["seal"], *counted["open"], *tries]


def test_four_sessions_and_one_login(spied: ProcessPoolExecutor, state: State) -> None:
    made = spied.submit(open_and_close, state.pin).result()
    assert (made.count("C_Login"), made.count("C_OpenSession")) == (1, 4)
    assert made[-1] == "C_Finalize"


def test_wrong_pin_is_tried_once(spied: ProcessPoolExecutor) -> None:
    assert spied.submit(open_with_wrong_pin, "00000000").result().count("C_Login") == 1


def test_pin_changed_while_running_is_tried_once(spied: ProcessPoolExecutor, state: State) -> None:
    """However many requests come afterwards: more tries could lock the token."""
    assert spied.submit(change_pin_while_running, state.pin).result().count("C_Login") == 1
