"""A ciphertext that was changed anywhere, cut anywhere or moved anywhere is refused: 422, or 400 if it is no base64."""

from __future__ import annotations

import base64

import httpx
import pytest

from tests.support.deployment import create_key

DEK = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def key(client: httpx.Client) -> str:
    return create_key(client)


@pytest.fixture(scope="module")
def ciphertext(client: httpx.Client, key: str) -> str:
    answer = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK, "aad": ["a", "b"]})
    return str(answer.json()["ciphertext"])


def refused(client: httpx.Client, key: str, ciphertext: str, aad: list[str] | None = None) -> str:
    body = {"ciphertext": ciphertext, "aad": ["a", "b"] if aad is None else aad}
    answers = [client.post(f"/keys/{key}/actions/{action}", json=body) for action in ("unwrap", "rewrap")]
    (code,) = {f"{a.status_code} {a.json()['resources'][0].get('reasons', [{}])[0].get('code')}" for a in answers}
    return code


UNPROCESSABLE = "422 UNPROCESSABLE_CIPHERTEXT_ERR"
INVALID = "400 INVALID_FIELD_ERR"


def test_it_opens_unchanged(client: httpx.Client, key: str, ciphertext: str) -> None:
    body = {"ciphertext": ciphertext, "aad": ["a", "b"]}
    assert client.post(f"/keys/{key}/actions/unwrap", json=body).json()["plaintext"] == DEK


def test_every_byte_flipped(client: httpx.Client, key: str, ciphertext: str) -> None:
    """Also those of the handle, which no key wrap covers by itself."""
    raw = base64.b64decode(ciphertext)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << (place % 8)
        assert refused(client, key, base64.b64encode(changed).decode()) == UNPROCESSABLE, place


def test_every_character_changed(client: httpx.Client, key: str, ciphertext: str) -> None:
    for place, character in enumerate(ciphertext):
        changed = ciphertext[:place] + ("A" if character != "A" else "B") + ciphertext[place + 1 :]
        assert refused(client, key, changed) in (UNPROCESSABLE, INVALID), place


def test_every_truncation(client: httpx.Client, key: str, ciphertext: str) -> None:
    for length in range(0, len(ciphertext), 3):
        assert refused(client, key, ciphertext[:length]) in (UNPROCESSABLE, INVALID), length


def test_white_space_and_order(client: httpx.Client, key: str, ciphertext: str) -> None:
    """The same JSON in another spelling is another text, and refused."""
    raw = base64.b64decode(ciphertext)
    members = raw[1:-1].split(b",")
    for changed in (raw + b" ", raw.replace(b":", b": "), b"{" + b",".join(reversed(members)) + b"}"):
        assert refused(client, key, base64.b64encode(changed).decode()) == UNPROCESSABLE


@pytest.mark.parametrize("aad", [[], ["a"], ["b", "a"], ["ab"], ["a", "b", ""], ["a", "B"]])
def test_other_aad(client: httpx.Client, key: str, ciphertext: str, aad: list[str]) -> None:
    assert refused(client, key, ciphertext, aad) == UNPROCESSABLE


def test_aad_too_long(client: httpx.Client, key: str, ciphertext: str) -> None:
    assert refused(client, key, ciphertext, ["a" * 300]) == INVALID


def test_other_key(client: httpx.Client, ciphertext: str) -> None:
    assert refused(client, create_key(client), ciphertext) == UNPROCESSABLE
    rotated = create_key(client)
    assert client.post(f"/keys/{rotated}/actions/rotate").status_code == 204
    assert refused(client, rotated, ciphertext) == UNPROCESSABLE


def test_things_that_never_were_ours(client: httpx.Client, key: str) -> None:
    for text in (
        "wdek",
        base64.b64encode(b"{}").decode(),
        base64.b64encode(b"[" * 3_000).decode(),
        DEK,
        "AAAA" * 9_000,
    ):
        assert refused(client, key, text) in (UNPROCESSABLE, INVALID)
