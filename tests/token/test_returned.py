"""Bad data, lost session, lost object, lost device: what each return value leads to."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import TokenBusy, TokenUnavailable, UnprocessableCiphertext
from hsmkms.token import breaker, templates
from hsmkms.token import cryptoki as ck
from hsmkms.token.returned import TABLE, CryptokiError, Meaning
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import ROOT
from tests.support.injector import Injector, compile_injector
from tests.token.conftest import OpenPool
from tests.token.test_token_away import eventually, lose_all_sessions

DEK = bytes(range(32))
ROW = re.compile(r"^\| `(CKR_\w+)` \| 0x([0-9A-F]+) \| ([\w ]+) \| ([^|]+) \|$", re.MULTILINE)


def test_bad_data_opens_nothing_anew_and_trips_nothing(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    """Whatever a client sends: other keys' ciphertexts, changed, cut and random ones of every size."""
    token.check()
    generation = pool.generation
    sealed = token.seal(key, DEK, ())
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(0, len(sealed), 7)]
    cut = [sealed[:length] for length in range(len(sealed))]
    random = [os.urandom(length) for length in (56, 64, 72, 256, 264, 1_024, 4_096, 7_680)]
    for rubbish in [*changed, *cut, *random]:
        with pytest.raises(UnprocessableCiphertext):
            token.open(key, key.id, rubbish, ())
        assert not token.breaker.is_open
    assert token.open(key, key.id, sealed, ()).reveal() == DEK
    assert pool.generation == generation


def test_what_each_value_leads_to(
    open_pool: OpenPool, injector_on_token: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While C_UnwrapKey alone answers with it: 422 only if nothing but bad data explains it, 503 for all else."""
    monkeypatch.setattr(breaker, "_PROBE_EVERY_S", 0.01)
    pool, injector = open_pool(module=str(injector_on_token.library)), injector_on_token
    token = Token(pool)
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    sealed = token.seal(key, DEK, ())
    for returned, row in TABLE.items():
        token.check()
        generation = pool.generation
        injector.fail("C_UnwrapKey", code=returned)
        bad_data = row.meaning is Meaning.DATA
        with pytest.raises(UnprocessableCiphertext if bad_data else TokenUnavailable):
            token.open(key, key.id, sealed, ())
        # A stale handle is looked up anew first; that it is the whole token is for the canary to find.
        anew = row.meaning not in (Meaning.DATA, Meaning.OBJECT)
        assert (row.name, token.breaker.is_open, pool.generation > generation) == (row.name, not bad_data, anew)
        injector.cure()
        eventually(token.check)
        assert token.open(key, key.id, sealed, ()).reveal() == DEK


def test_back_between_failure_and_canary(open_pool: OpenPool, injector_on_token: Injector) -> None:
    """The device fails two calls, comes back, and the canary sings: the ciphertext is good all the same."""
    pool, injector = open_pool(module=str(injector_on_token.library)), injector_on_token
    token = Token(pool)
    token.check()
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    sealed = token.seal(key, DEK, ())
    injector.fail("C_UnwrapKey", code=0x05)
    sings = token._key_sings

    def cured_first(version: KeyVersion) -> bool:
        injector.cure()
        return sings(version)

    token._key_sings = cured_first  # type: ignore[method-assign]
    assert token.open(key, key.id, sealed, ()).reveal() == DEK


def test_what_the_token_does_not_take_opens_nothing_anew(open_pool: OpenPool, injector_on_token: Injector) -> None:
    """Bad data in what this service itself made of a request, such as a plaintext that is too long for the token."""
    pool, injector = open_pool(module=str(injector_on_token.library)), injector_on_token
    token = Token(pool)
    token.check()
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    generation = pool.generation
    # Each second one: those of the canaries between succeed.
    injector.fail("C_WrapKey", code=0x21, every=2)
    refused = 0
    for _ in range(4):
        try:
            token.seal(key, DEK, ())
        except TokenUnavailable:
            refused += 1
    assert refused >= 3
    assert (pool.generation, token.breaker.is_open) == (generation, False)


def test_a_key_that_may_not_unwrap_is_no_bad_data(token: Token, pool: SessionPool) -> None:
    """The token refuses this one key, to which the ciphertext belongs; the sentinel sings all the time."""
    token.check()
    value, now = os.urandom(32), datetime.now(UTC)
    good = token.create_key(new_id(), "hsmkms test", now, SecretBytes(value))
    sealed = token.seal(good, DEK, ())
    version = KeyVersion(new_id(), now, good.check_value, good.owner)
    template = templates.brought_key(version.id, templates.label_of(version.owner), fixed=False)
    with pool.session() as session:
        handle = session.create_from({**template, ck.CKA_UNWRAP: False}, bytearray(value))
    generation = pool.generation
    token._index.learn(generation, version, handle)
    with pytest.raises(TokenUnavailable):
        token.open(version, good.id, sealed, ())
    assert (pool.generation, token.breaker.is_open) == (generation, False)


def test_a_library_that_cannot_be_finalised_is_opened_anew(open_pool: OpenPool, injector_on_token: Injector) -> None:
    """Its sessions, and with them the login, are lost then as by a C_Finalize."""
    pool, injector = open_pool(module=str(injector_on_token.library)), injector_on_token
    token = Token(pool)
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    sealed = token.seal(key, DEK, ())
    generation = pool.generation
    lose_all_sessions(pool)
    injector.fail("C_Finalize", code=0x30)
    assert token.open(key, key.id, sealed, ()).reveal() == DEK
    with pool.session() as session, pytest.raises(CryptokiError, match="LOGGED_IN"):
        ck.check("C_Login", session.login(b"not needed"))
    assert pool.generation == generation + 1
    injector.cure()


def test_a_key_that_takes_long_to_fail_stops_nobody_else(open_pool: OpenPool, injector_on_token: Injector) -> None:
    pool, injector = open_pool(module=str(injector_on_token.library)), injector_on_token
    token = Token(pool)
    token.check()
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    injector.fail("C_GenerateKey", code=0x30, wait_ms=1_200)
    with pytest.raises(TokenUnavailable):
        token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    assert not token.breaker.is_open
    assert len(token.seal(key, DEK, ())) == 80
    injector.cure()


def test_who_waits_for_his_turn_is_told_too(open_pool: OpenPool, injector_on_token: Injector, tmp_path: Path) -> None:
    """Keys are made one at a time: of eight who want one, not each finds out in his turn that the token is away."""
    injector = injector_on_token
    injector.count_calls()
    # A file of its own: a module finds its counters when it is loaded.
    pool = open_pool(module=str(compile_injector(tmp_path)), size=8)
    token = Token(pool)
    token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    before = injector.calls()["C_GenerateKey"]
    injector.fail("*", code=0x30, wait_ms=600)

    def make(_: int) -> None:
        with pytest.raises((TokenUnavailable, TokenBusy)):
            token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(8)))
    injector.cure()
    assert 0 < injector.calls()["C_GenerateKey"] - before < 8


def test_values_of_vendors_count_as_a_lost_device() -> None:
    assert CryptokiError("C_WrapKey", 0x80000001).meaning is Meaning.DEVICE
    assert str(CryptokiError("C_WrapKey", 0x80000001)) == "C_WrapKey: 0x80000001"


def test_the_page_has_the_same_rows() -> None:
    """docs/hsms.md is what an operator reads."""
    page = (ROOT / "docs" / "hsms.md").read_text()
    rows = {int(code, 16): (name, meaning, evidence) for name, code, meaning, evidence in ROW.findall(page)}
    assert rows == {code: (row.name, words_of(row.meaning), row.evidence) for code, row in TABLE.items()}


def words_of(meaning: Meaning) -> str:
    """How the page calls it."""
    return meaning.name.lower()
