"""Which token is opened: by label, by serial, and what is refused (design: slot numbers move and are not used)."""

from __future__ import annotations

import os
import subprocess

import pytest

from hsmkms.errors import TokenRefused
from hsmkms.token import selftest
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.token.conftest import LABEL, Implementation, OpenPool

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


def test_a_token_that_can_be_robbed_is_refused(open_pool: OpenPool, implementation: Implementation) -> None:
    """NSS keeps CKA_EXTRACTABLE=False and lets the key be wrapped out all the same; SoftHSM does not."""
    pool = open_pool()
    if implementation.label == LABEL:
        Token(pool)
        return
    with pytest.raises(TokenRefused, match="must not hold root keys"):
        Token(pool)
