"""Which token is opened: by label, by serial, and what is refused (design: slot numbers move and are not used)."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from hsmkms.domain.importing import Oaep, Passage
from hsmkms.errors import TokenRefused, TokenUnavailable
from hsmkms.token import selftest
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.support.injector import Injector
from tests.token.conftest import LABEL, Implementation, OpenPool
from tests.token.test_token_away import eventually

OTHER_PIN = "other-pin"


def init_other(state: State, label: str) -> None:
    """Make a second token beside the first one, by SoftHSM's own tool."""
    environment = {**os.environ, "SOFTHSM2_CONF": str(state.path / "softhsm2.conf")}
    command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "other-so-pin"]
    subprocess.run([*command, "--pin", OTHER_PIN], env=environment, check=True, capture_output=True)


def serial_of(pool: SessionPool) -> str:
    """The serial number, with the pool closed: one process opens a module once."""
    pool.close()
    return pool.info.serial


def test_label_chooses(state: State, open_pool: OpenPool) -> None:
    init_other(state, "other")
    first, second = serial_of(open_pool()), serial_of(open_pool(label="other", pin=OTHER_PIN))
    assert first != second
    assert serial_of(open_pool(label=None, serial=first)) == first
    assert serial_of(open_pool(label="other", serial=second, pin=OTHER_PIN)) == second


def test_two_of_one_label_are_refused(state: State, open_pool: OpenPool) -> None:
    """And the PIN is tried on neither; the serial number tells them apart."""
    first = serial_of(open_pool())
    init_other(state, LABEL)
    with pytest.raises(TokenRefused, match=r"Several tokens have the label 'hsmkms'\. Set token_serial"):
        open_pool()
    assert serial_of(open_pool(serial=first)) == first


def test_label_and_serial_must_both_fit(state: State, open_pool: OpenPool) -> None:
    init_other(state, "other")
    first = serial_of(open_pool())
    with pytest.raises(TokenRefused, match=f"No token with the label 'other' and serial '{first}' is present"):
        open_pool(label="other", serial=first)


@pytest.mark.parametrize("label", ["nobody", "hsmkm", "hsmkms2", "HSMKMS", ""])
def test_no_such_label(open_pool: OpenPool, label: str) -> None:
    with pytest.raises(TokenRefused, match=f"No token with the label '{label}' is present"):
        open_pool(label=label)


@pytest.mark.parametrize("module", ["/nonexistent.so", "/usr/lib/x86_64-linux-gnu/libz.so.1", "/etc/hostname"])
def test_not_a_pkcs11_library(open_pool: OpenPool, module: str) -> None:
    with pytest.raises(TokenRefused, match="cannot be loaded"):
        open_pool(module=module)


def test_missing_mechanisms_are_named(pool: SessionPool) -> None:
    """opencryptoki's soft token, for one, has no CKM_AES_KEY_WRAP."""
    offered = pool.mechanisms()
    selftest.require_mechanisms(offered, "good")
    with pytest.raises(TokenRefused, match="lacks CKM_AES_KEY_WRAP, CKM_ECDSA"):
        selftest.require_mechanisms(offered - {0x2109, 0x1041}, "poor")


@pytest.mark.parametrize("code", [0x30, 0x05])
def test_a_fault_in_the_self_test_is_not_what_the_token_can_do(
    open_pool: OpenPool, injector_on_token: Injector, code: int
) -> None:
    """One failed call would have all root keys of this process made copyable."""
    pool = open_pool(module=str(injector_on_token.library))
    injector_on_token.forget_waits()
    injector_on_token.fail("C_GenerateKey", code=code, wait_ms=500)
    with ThreadPoolExecutor(1) as threads:
        proving = threads.submit(Token, pool)
        injector_on_token.wait_for_one()
        injector_on_token.cure()
        try:
            token = proving.result()
        except TokenUnavailable:
            # Told, and tried again.
            token = Token(pool)
    assert token.capabilities.fixed_attributes


@pytest.mark.parametrize("function", ["C_WrapKey", "C_CopyObject"])
def test_a_key_is_not_kept_because_the_device_failed(
    open_pool: OpenPool, injector_on_token: Injector, function: str
) -> None:
    pool = open_pool(module=str(injector_on_token.library))
    injector_on_token.fail(function, code=0x30)
    with pytest.raises(TokenUnavailable):
        Token(pool)
    injector_on_token.cure()
    Token(pool)


def test_a_fault_is_not_how_keys_come_in(open_pool: OpenPool, injector_on_token: Injector) -> None:
    """Else they would come by way of the process for as long as it lives."""
    token = Token(open_pool(module=str(injector_on_token.library)))
    # What the token can do at all was asked before, and is no other call that may fail or hang.
    injector_on_token.fail("C_UnwrapKey", "C_GetMechanismList", code=0x30)
    with pytest.raises(TokenUnavailable):
        token.passage(Oaep.SHA_1)
    injector_on_token.fail("C_GetMechanismList", code=0x30)
    eventually(lambda: token.passage(Oaep.SHA_1))
    assert token.passage(Oaep.SHA_1) is Passage.TOKEN


def test_a_token_that_can_be_robbed_is_refused(open_pool: OpenPool, implementation: Implementation) -> None:
    """NSS keeps CKA_EXTRACTABLE=False and lets the key be wrapped out all the same; SoftHSM does not."""
    pool = open_pool()
    if implementation.label == LABEL:
        Token(pool)
        return
    with pytest.raises(TokenRefused, match="must not hold root keys"):
        Token(pool)
