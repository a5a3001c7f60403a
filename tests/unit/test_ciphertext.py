"""The ciphertext that callers keep: one exact text, held to a constant (contract section 2).

The constant was made with base64 and `cryptography`'s RFC 3394 in software, not by the code under test.
"""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.domain import frame
from hsmkms.domain.ciphertext import decode, encode
from hsmkms.errors import InvalidField, Refusal, UnprocessableCiphertext

VERSION_ID = "00112233-4455-4677-8899-aabbccddeeff"
KEK = bytes(range(32))
DEK = bytes(range(32))
AAD = ("volume-1", "région")
SEALED = bytes.fromhex(
    "10b7e1f530e68d20850763bfd0a4406cdb753893a4119f68d9572770559eaaf9c1cd164ff91062ee"
    "89d7c1e3459362d9e889216a5c5faba0012189be0a96b845b9a34a649da7f3e64dc3c1c9ed7c245b"
)
TEXT = (
    "eyJjaXBoZXJ0ZXh0IjoiRUxmaDlURG1qU0NGQjJPLzBLUkFiTnQxT0pPa0VaOW8yVmNuY0ZXZXF2bkJ6UlpQK1JCaTdvblh3ZU5GazJMWjZJ"
    "a2hhbHhmcTZBQklZbStDcGE0UmJtalNtU2RwL1BtVGNQQnllMThKRnM9IiwiaXYiOiJwcWFtcHFhbXBxWT0iLCJ2ZXJzaW9uIjoiNC4wLjAi"
    "LCJoYW5kbGUiOiIwMDExMjIzMy00NDU1LTQ2NzctODg5OS1hYWJiY2NkZGVlZmYifQ=="
)
MEMBERS = {
    "ciphertext": base64.b64encode(SEALED).decode(),
    "iv": "pqampqampqY=",
    "version": "4.0.0",
    "handle": VERSION_ID,
}


def in_base64(document: str | bytes) -> str:
    raw = document.encode() if isinstance(document, str) else document
    return base64.b64encode(raw).decode()


def compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def test_the_text_is_this() -> None:
    assert encode(VERSION_ID, SEALED) == TEXT
    assert decode(TEXT) == (VERSION_ID, SEALED)
    assert json.loads(base64.b64decode(TEXT)) == MEMBERS


def test_text_opens_without_this_service() -> None:
    """Who has the root key's bytes, such as somebody who imported them, can open a ciphertext by the documentation."""
    handle, sealed = decode(TEXT)
    framed = aes_key_unwrap(KEK, sealed)
    assert frame.unpack(framed, frame.context_digest(handle, AAD)) == DEK


@given(st.uuids(), st.binary(max_size=300))
def test_every_content_comes_back(handle: object, sealed: bytes) -> None:
    assert decode(encode(str(handle), sealed)) == (str(handle), sealed)


@given(st.integers(0, len(TEXT) - 1), st.characters())
def test_any_changed_character_is_refused_or_names_other_content(place: int, character: str) -> None:
    """No text but `encode`'s own is read: either it is refused, or it is the one text of something else."""
    changed = TEXT[:place] + character + TEXT[place + 1 :]
    try:
        handle, sealed = decode(changed)
    except (InvalidField, UnprocessableCiphertext):
        assert changed != TEXT
    else:
        assert encode(handle, sealed) == changed
        assert (changed == TEXT) == ((handle, sealed) == (VERSION_ID, SEALED))


def test_any_cut_is_refused() -> None:
    for length in range(len(TEXT)):
        with pytest.raises((InvalidField, UnprocessableCiphertext)):
            decode(TEXT[:length])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("no base64!", id="characters outside the alphabet"),
        pytest.param(TEXT.rstrip("="), id="no padding"),
        pytest.param(TEXT + "\n", id="line break at the end"),
        pytest.param(TEXT[:76] + "\n" + TEXT[76:], id="line break inside"),
        pytest.param(" " + TEXT, id="space in front"),
        pytest.param(TEXT[:-2] + "é==", id="not ASCII"),
        pytest.param("_-" * 20, id="URL-safe alphabet"),
        pytest.param("\0", id="NUL"),
    ],
)
def test_what_is_not_base64_is_an_invalid_field(text: str) -> None:
    """400 INVALID_FIELD_ERR with target `ciphertext` (contract section 2)."""
    with pytest.raises(InvalidField) as caught:
        decode(text)
    assert caught.value.target == "ciphertext"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(in_base64(bytes(range(256))), id="not UTF-8"),
        pytest.param(in_base64("wdek"), id="not JSON"),
        pytest.param(in_base64("null"), id="null"),
        pytest.param(in_base64("[]"), id="a list"),
        pytest.param(in_base64("[" * 100_000), id="deep nesting"),
        pytest.param(in_base64(json.dumps(MEMBERS)), id="spaces between members"),
        pytest.param(in_base64(compact(MEMBERS) + "\n"), id="line break after the object"),
        pytest.param(in_base64(compact(MEMBERS) + compact(MEMBERS)), id="two objects"),
        pytest.param(in_base64(compact(dict(reversed(MEMBERS.items())))), id="members in another order"),
        pytest.param(in_base64(compact({**MEMBERS, "hash": ""})), id="a member more"),
        pytest.param(in_base64(compact({**MEMBERS, "handle": None})), id="handle null"),
        pytest.param(in_base64(compact({**MEMBERS, "handle": VERSION_ID.upper()})), id="handle in capitals"),
        pytest.param(in_base64(compact({**MEMBERS, "handle": VERSION_ID.replace("-", "")})), id="handle bare"),
        pytest.param(in_base64(compact({**MEMBERS, "handle": "é"})), id="handle not a UUID"),
        pytest.param(in_base64(compact({**MEMBERS, "version": "3.0.0"})), id="older version"),
        pytest.param(in_base64(compact({**MEMBERS, "iv": ""})), id="another IV"),
        pytest.param(in_base64(compact({**MEMBERS, "ciphertext": "?"})), id="inner base64"),
        pytest.param(in_base64(compact({**MEMBERS, "ciphertext": 5})), id="inner number"),
        pytest.param(in_base64(compact(MEMBERS).replace("handle", "h\\u0061ndle")), id="escaped member name"),
        pytest.param(in_base64(compact(MEMBERS)[:-1] + ',"handle":"' + VERSION_ID + '"}'), id="member twice"),
        pytest.param(TEXT[:-3] + "R==", id="spare bits of the last base64 group set"),
    ],
)
def test_what_is_base64_and_not_ours_is_unprocessable(text: str) -> None:
    with pytest.raises(UnprocessableCiphertext):
        decode(text)


@pytest.mark.parametrize("missing", list(MEMBERS))
def test_every_member_is_needed(missing: str) -> None:
    rest = {name: value for name, value in MEMBERS.items() if name != missing}
    with pytest.raises(UnprocessableCiphertext):
        decode(in_base64(compact(rest)))


@given(st.text() | st.binary().map(in_base64) | st.text().map(compact).map(in_base64))
def test_foreign_text_raises_only_refusals(text: str) -> None:
    with pytest.raises(Refusal):
        decode(text)
