"""What is on the token: attributes as an outside program reads them, duplicates, impostors, vanished objects."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import KeyMaterialMissing, TokenRefused
from hsmkms.token import cryptoki as ck
from hsmkms.token import templates
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.token.conftest import object_id
from tests.token.conftest import pkcs11_tool as pkcs11_tool  # other tests import it from here

DEK = bytes(range(32))
KEPT = {"sensitive", "always sensitive", "never extractable", "local"}


def described(state: State, kind: str, wanted_id: str) -> dict[str, set[str]]:
    """Access and Usage of the one object of that id as pkcs11-tool lists them, word by word, and its first line."""
    # Some releases ignore --id when they list, so all objects are listed and one is picked here.
    listing = pkcs11_tool(state, "--list-objects", "--type", kind)
    (found,) = [part for part in re.split(r"^(?=\S)", listing, flags=re.MULTILINE) if object_id(wanted_id) in part]
    first, *members = found.splitlines()
    pairs = [member.split(":", 1) for member in members]
    words = {name.strip(): {word.strip() for word in value.split(",")} - {""} for name, value in pairs}
    return {"kind": {first}, "access": words["Access"], "usage": words["Usage"]}


def test_outside_program_sees_a_kept_root_key(state: State, key: KeyVersion) -> None:
    """Sensitive, never extractable, born in the token, for wrapping only (design, "Root keys")."""
    assert described(state, "secrkey", key.id) == {
        "kind": {"Secret Key Object; AES length 32"},
        "access": KEPT,
        "usage": {"wrap", "unwrap"},
    }


def test_outside_program_sees_a_kept_signing_key(state: State, token: Token) -> None:
    key_id = new_id()
    token.generate_signing_key(key_id)
    assert described(state, "privkey", key_id) == {
        "kind": {"Private Key Object; EC"},
        "access": KEPT,
        "usage": {"sign"},
    }


def test_two_objects_under_one_id_are_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    with pool.session() as session:
        session.generate_key(ck.CKM_AES_KEY_GEN, templates.wrapping_key(key.id, "hsmkms twin"))
    pool.reopen(pool.generation)
    generation, began = pool.generation, time.monotonic()
    for _ in range(5):
        with pytest.raises(TokenRefused, match="several keys"):
            token.seal(key, DEK, ())
    assert pool.generation - generation <= 2 * (time.monotonic() - began + 1)


def test_lost_keys_open_the_module_anew_at_a_rate(
    token: Token, pool: SessionPool, make_key: Callable[[], KeyVersion]
) -> None:
    """However many they are, and whoever asks for which."""
    lost = [make_key() for _ in range(5)]
    with pool.session() as session:
        for key in lost:
            for handle in session.find({ck.CKA_TOKEN: True, ck.CKA_ID: templates.object_id(key.id)}):
                session.destroy(handle)
    generation, began = pool.generation, time.monotonic()
    for _ in range(4):
        for key in lost:
            with pytest.raises(KeyMaterialMissing):
                token.seal(key, DEK, ())
    assert pool.generation - generation <= 3 * (time.monotonic() - began + 1)


def test_another_key_under_the_id_is_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    """Someone swapped the object: the check value tells."""
    assert token.destroy_key(key.id)
    with pool.session() as session:
        session.generate_key(ck.CKM_AES_KEY_GEN, templates.wrapping_key(key.id, "hsmkms impostor"))
    with pytest.raises(KeyMaterialMissing, match="another key"):
        token.seal(key, DEK, ())


def test_another_check_value_is_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    """A row of another token's backup, say: all 8 bytes have to agree, and nothing is sealed under a wrong key."""
    pool.reopen(pool.generation)
    wrong = replace(key, check_value=key.check_value[:-1] + bytes([key.check_value[-1] ^ 1]))
    with pytest.raises(KeyMaterialMissing, match="another key"):
        token.seal(wrong, DEK, ())
    assert len(token.seal(key, DEK, ())) == 80


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({ck.CKA_EXTRACTABLE: True}, "CKA_EXTRACTABLE"),
        ({ck.CKA_SENSITIVE: False}, "CKA_SENSITIVE"),
        ({ck.CKA_DECRYPT: True}, "CKA_DECRYPT"),
        ({ck.CKA_SIGN: True, ck.CKA_DERIVE: True}, "CKA_SIGN, CKA_DERIVE"),
    ],
)
def test_unsafe_key_is_refused(token: Token, pool: SessionPool, wrong: dict[int, ck.Value], name: str) -> None:
    """A key that someone planted under a row's id: whatever it is called, its attributes are read back."""
    version_id = new_id()
    with pool.session() as session:
        template = {**templates.wrapping_key(version_id, "hsmkms planted", fixed=False), **wrong}
        session.generate_key(ck.CKM_AES_KEY_GEN, template)
    with pytest.raises(TokenRefused, match=name):
        token.seal(KeyVersion(version_id, datetime.now(UTC), bytes(8), "instance key"), DEK, ())
    assert {found.version_id: found.unsafe for found in token.list_keys()}[version_id] == name


def test_key_planted_by_another_process_is_refused(state: State, token: Token) -> None:
    """An object that appears after the index was built is found by a search, and is trusted no more for it."""
    assert token.has_sentinel()
    version_id = new_id()
    made = ("--keygen", "--key-type", "aes:32", "--label", "hsmkms planted", "--extractable")
    pkcs11_tool(state, *made, "--id", object_id(version_id))
    with pytest.raises(TokenRefused, match="CKA_EXTRACTABLE"):
        token.seal(KeyVersion(version_id, datetime.now(UTC), bytes(8), "instance key"), DEK, ())


@pytest.mark.parametrize("use", ["seal", "open", "verify_key"])
def test_object_destroyed_by_another_process(
    state: State, token: Token, make_key: Callable[[], KeyVersion], use: str
) -> None:
    """Missing material is said to be missing, never blamed on the ciphertext, and other keys go on."""
    key, other = make_key(), make_key()
    sealed = token.seal(key, DEK, ())
    pkcs11_tool(state, "--delete-object", "--type", "secrkey", "--id", object_id(key.id))
    acts: dict[str, Callable[[], object]] = {
        "seal": lambda: token.seal(key, DEK, ()),
        "open": lambda: token.open(key, key.id, sealed, ()),
        "verify_key": lambda: token.verify_key(key),
    }
    for _ in range(2):
        with pytest.raises(KeyMaterialMissing):
            acts[use]()
    assert token.open(other, other.id, token.seal(other, DEK, ()), ()).reveal() == DEK
    token.check()


def test_destroy_is_verified(token: Token, make_key: Callable[[], KeyVersion]) -> None:
    key = make_key()
    sealed = token.seal(key, DEK, ())
    assert token.destroy_key(key.id)
    assert not token.destroy_key(key.id)
    assert key.id not in {found.version_id for found in token.list_keys()}
    with pytest.raises(KeyMaterialMissing):
        token.open(key, key.id, sealed, ())
