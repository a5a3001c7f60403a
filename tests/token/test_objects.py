"""What is on the token: attributes as an outside program reads them, duplicates, impostors, vanished objects."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import KeyMaterialMissing, TokenRefused, TokenUnavailable
from hsmkms.token import cryptoki as ck
from hsmkms.token import templates
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.token.conftest import LABEL, MODULE

DEK = bytes(range(32))


def pkcs11_tool(state: State, *arguments: str) -> str:
    """Run OpenSC's tool on this test's token, the PIN by environment."""
    environment = {**os.environ, "SOFTHSM2_CONF": str(state.path / "softhsm2.conf"), "TOKEN_PIN": state.pin}
    command = ["pkcs11-tool", "--module", MODULE, "--token-label", LABEL, "--login", "--pin", "env:TOKEN_PIN"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def object_id(version: KeyVersion) -> str:
    return uuid.UUID(version.id).hex


def test_pkcs11_tool_shows_a_kept_key(state: State, key: KeyVersion) -> None:
    """Sensitive, never extractable, born in the token, for wrapping only."""
    listing = pkcs11_tool(state, "--list-objects", "--type", "secrkey", "--id", object_id(key))
    described = next(part for part in listing.split("Secret Key Object") if object_id(key) in part)
    assert "AES length 32" in described
    access = next(line for line in described.splitlines() if "Access:" in line)
    assert {word.strip(" ,") for word in access.split(":")[1].split(",")} == {
        "sensitive",
        "always sensitive",
        "never extractable",
        "local",
    }
    usage = next(line for line in described.splitlines() if "Usage:" in line)
    assert {word.strip() for word in usage.split(":")[1].split(",")} == {"wrap", "unwrap"}


def test_two_objects_under_one_id_are_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    with pool.session() as session:
        session.generate_key(ck.CKM_AES_KEY_GEN, templates.wrapping_key(key.id, "hsmkms twin"))
    pool.reopen(pool.generation)
    with pytest.raises(TokenRefused, match="several keys"):
        token.seal(key, DEK, ())


def test_another_key_under_the_id_is_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    """Someone swapped the object: the check value tells."""
    assert token.destroy_key(key.id)
    with pool.session() as session:
        session.generate_key(ck.CKM_AES_KEY_GEN, templates.wrapping_key(key.id, "hsmkms impostor"))
    with pytest.raises(KeyMaterialMissing, match="another key"):
        token.seal(key, DEK, ())


def test_extractable_key_is_refused(token: Token, pool: SessionPool) -> None:
    version_id = new_id()
    planted = {**templates.wrapping_key(version_id, "hsmkms planted", fixed=False), ck.CKA_EXTRACTABLE: True}
    with pool.session() as session:
        session.generate_key(ck.CKM_AES_KEY_GEN, planted)
    with pytest.raises(TokenRefused, match="CKA_EXTRACTABLE"):
        token.seal(KeyVersion(version_id, datetime.now(UTC), bytes(8)), DEK, ())


def test_object_destroyed_by_another_process(state: State, token: Token, key: KeyVersion) -> None:
    """Missing material is never blamed on the ciphertext, and other keys go on."""
    sealed = token.seal(key, DEK, ())
    pkcs11_tool(state, "--delete-object", "--type", "secrkey", "--id", object_id(key))
    with pytest.raises(KeyMaterialMissing):
        token.open(key, key.id, sealed, ())
    token.check()


def test_object_made_by_another_process(state: State, token: Token) -> None:
    """A key that appears after the index was built is found by a search."""
    assert token.has_sentinel()
    version_id = new_id()
    pkcs11_tool(state, "--keygen", "--key-type", "aes:32", "--id", uuid.UUID(version_id).hex, "--label", "foreign")
    with pytest.raises((TokenRefused, KeyMaterialMissing)):
        token.seal(KeyVersion(version_id, datetime.now(UTC), bytes(8)), DEK, ())


def test_token_away_and_back(state: State, token: Token, key: KeyVersion) -> None:
    """While the token is away nothing counts as destroyed; when it is back nothing has to be restarted."""
    sealed = token.seal(key, DEK, ())
    tokens = state.path / "tokens"
    tokens.rename(state.path / "gone")
    tokens.mkdir()
    with pytest.raises(TokenUnavailable):
        token.open(key, key.id, sealed, ())
    tokens.rmdir()
    (state.path / "gone").rename(tokens)

    def opened() -> bool:
        try:
            return token.open(key, key.id, sealed, ()).reveal() == DEK
        except TokenUnavailable:
            return False

    deadline = time.monotonic() + 10
    while not opened():
        assert time.monotonic() < deadline, "the token did not come back within 10 s"
        time.sleep(0.05)


def test_destroy_is_verified(token: Token, make_key: Callable[[], KeyVersion]) -> None:
    key = make_key()
    assert token.destroy_key(key.id)
    assert not token.destroy_key(key.id)
    assert key.id not in {found.version_id for found in token.list_keys()}
