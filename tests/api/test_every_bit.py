"""One flipped bit anywhere in a ciphertext, in its text or in the JSON inside, and it does not open."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import create_key

DEK = base64.b64encode(bytes(range(32))).decode()
AAD = ["volume 7", "zürich"]


@pytest.fixture(scope="module")
def key(client: httpx.Client) -> str:
    """A root key with two versions, so that the wrong one may be tried too."""
    key = create_key(client)
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    return key


@pytest.fixture(scope="module")
def ciphertext(client: httpx.Client, key: str) -> str:
    """A ciphertext that opens."""
    answer = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK, "aad": AAD})
    text = str(answer.json()["ciphertext"])
    opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": text, "aad": AAD})
    assert opened.json()["plaintext"] == DEK
    return text


def flips(raw: bytes) -> Iterator[bytes]:
    """`raw` with each of its bits flipped, one at a time."""
    for place in range(len(raw)):
        for bit in range(8):
            yield raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]


def test_bits_of_the_json(client: httpx.Client, key: str, ciphertext: str) -> None:
    """Base64 again after the flip, so it is a ciphertext by its looks: always 422."""
    for changed in flips(base64.b64decode(ciphertext)):
        body = {"ciphertext": base64.b64encode(changed).decode(), "aad": AAD}
        answer = client.post(f"/keys/{key}/actions/unwrap", json=body)
        require_refused(answer, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")


def test_bits_of_the_sealed_bytes(client: httpx.Client, key: str, ciphertext: str) -> None:
    """Inside the JSON's own base64: only the token can notice these."""
    envelope = json.loads(base64.b64decode(ciphertext))
    for changed in flips(base64.b64decode(envelope["ciphertext"])):
        inside = {**envelope, "ciphertext": base64.b64encode(changed).decode()}
        text = base64.b64encode(json.dumps(inside, separators=(",", ":")).encode()).decode()
        answer = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": text, "aad": AAD})
        require_refused(answer, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")


def test_bits_of_the_text(client: httpx.Client, key: str, ciphertext: str) -> None:
    """400 where it is no base64 any more, else 422; by JSON's rules where the flip gives no character."""
    seen = set()
    for changed in flips(ciphertext.encode()):
        body = json.dumps({"ciphertext": changed.decode("latin-1"), "aad": AAD})
        answer = client.post(f"/keys/{key}/actions/unwrap", content=body)
        if answer.status_code == 400:
            require_refused(answer, 400, "INVALID_FIELD_ERR", "ciphertext")
        else:
            require_refused(answer, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")
        seen.add(answer.status_code)
    assert seen == {400, 422}


def test_every_length(client: httpx.Client, key: str, ciphertext: str) -> None:
    """Cut or lengthened, text or sealed bytes, by both calls that open."""
    envelope = json.loads(base64.b64decode(ciphertext))
    sealed = base64.b64decode(envelope["ciphertext"])
    cut = [sealed[:length] for length in range(len(sealed))] + [sealed + bytes(more) for more in (1, 8, 16, 4_096)]
    for changed in cut:
        inside = {**envelope, "ciphertext": base64.b64encode(changed).decode()}
        text = base64.b64encode(json.dumps(inside, separators=(",", ":")).encode()).decode()
        for action in ("unwrap", "rewrap"):
            answer = client.post(f"/keys/{key}/actions/{action}", json={"ciphertext": text, "aad": AAD})
            require_refused(answer, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")


@pytest.mark.parametrize(
    "aad",
    [
        [],
        AAD[:1],
        AAD[1:],
        AAD[::-1],
        [*AAD, ""],
        ["", *AAD],
        ["".join(AAD)],
        ["volume 7z", "ürich"],
        ["volume 7", "zu\u0308rich"],
        ["Volume 7", "zürich"],
        ["volume 7", "zürich "],
    ],
)
def test_other_aad(client: httpx.Client, key: str, ciphertext: str, aad: list[str]) -> None:
    """Also where the strings joined are the same, and where Unicode says the same in other letters."""
    for action in ("unwrap", "rewrap"):
        answer = client.post(f"/keys/{key}/actions/{action}", json={"ciphertext": ciphertext, "aad": aad})
        require_refused(answer, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")


@pytest.mark.parametrize("aad", [["a" * 256], ["a" * 300], ["a"] * 256, ["é" * 256], ["\ud800"]])
@pytest.mark.parametrize("action", ["wrap", "unwrap", "rewrap"])
def test_aad_beyond_its_limits(client: httpx.Client, key: str, ciphertext: str, action: str, aad: list[str]) -> None:
    """A lone surrogate is no text, in JSON's escape."""
    body = {"aad": aad} if action == "wrap" else {"aad": aad, "ciphertext": ciphertext}
    answer = client.post(f"/keys/{key}/actions/{action}", content=json.dumps(body))
    if aad == ["\ud800"]:
        assert answer.status_code == 400
        return
    require_refused(answer, 400, "INVALID_FIELD_ERR", "aad")
