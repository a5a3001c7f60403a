"""Large bodies are refused as soon as they are known to be large: nothing is read that nobody will use."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from hsmkms.api.bodies import COLD_LIMIT, HOT_LIMIT
from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_body, create_key

HUNDRED_MB = 100_000_000
CHUNK = 65_536
# What was sent when the answer comes: the limit, and what the sockets of both ends hold on the way.
SOON = HOT_LIMIT + 12 * 1_048_576

CALLS = {
    "POST /keys": COLD_LIMIT,
    "PATCH /keys/{}": COLD_LIMIT,
    "POST /keys/{}/actions/rotate": COLD_LIMIT,
    "POST /keys/{}/actions/wrap": HOT_LIMIT,
    "POST /keys/{}/actions/unwrap": HOT_LIMIT,
    "POST /keys/{}/actions/rewrap": HOT_LIMIT,
    "POST /keys/{}?action=wrap": HOT_LIMIT,
}


@pytest.fixture(scope="module")
def key(client: httpx.Client) -> str:
    """A root key."""
    return create_key(client)


class RawCall:
    """A request whose body is sent by hand."""

    def __init__(self, service: Service, client: httpx.Client, call: str, **headers: str) -> None:
        method, path = call.split(" ")
        prefix = "" if path.startswith("/identity") else "/api/v2"
        known = {name: client.headers[name] for name in ("Authorization", "Bluemix-Instance")}
        lines = [f"{method} {prefix}{path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in {**known, **headers}.items()]
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def answer(self) -> httpx.Response:
        """Everything that the service says until it hangs up."""
        said = b""
        # Hanging up on bytes that were not read is a reset; what was said before it still arrives.
        with self.socket, contextlib.suppress(ConnectionResetError):
            while received := self.socket.recv(CHUNK):
                said += received
        head, _, body = said.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body)

    def send_chunks(self, most: int) -> int:
        """Send chunks until the service has said something or hung up, or `most` bytes went; how many bytes went."""
        self.socket.settimeout(10)
        chunk = f"{CHUNK:x}\r\n".encode() + bytes(CHUNK) + b"\r\n"
        sent = 0
        while sent < most and not self._answered():
            try:
                self.socket.sendall(chunk)
            except (BrokenPipeError, ConnectionResetError):
                break
            sent += CHUNK
        return sent

    def _answered(self) -> bool:
        self.socket.setblocking(False)
        try:
            return len(self.socket.recv(1, socket.MSG_PEEK)) >= 0
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(10)


def peak_bytes(service: Service) -> int:
    """The most memory that the service ever held."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("expect", [False, True])
def test_refused_before_the_first_byte(
    service: Service, client: httpx.Client, key: str, call: str, expect: bool
) -> None:
    """Content-Length says enough; a client that asks first (Expect) is not told to go on."""
    headers = {"Expect": "100-continue"} if expect else {}
    raw = RawCall(service, client, call.format(key), **{"Content-Length": str(HUNDRED_MB)}, **headers)
    answer = raw.answer()
    require_refused(answer, 400, "BAD_BODY_ERR")
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize("call", CALLS)
def test_refused_while_it_is_sent(service: Service, client: httpx.Client, key: str, call: str) -> None:
    """Without a length the service stops at its limit, not at the end."""
    raw = RawCall(service, client, call.format(key), **{"Transfer-Encoding": "chunked"})
    sent = raw.send_chunks(HUNDRED_MB)
    assert CALLS[call] < sent <= SOON
    require_refused(raw.answer(), 400, "BAD_BODY_ERR")


def test_token_endpoint(service: Service, client: httpx.Client) -> None:
    """In IAM's shape."""
    answer = RawCall(service, client, "POST /identity/token", **{"Content-Length": str(HUNDRED_MB)}).answer()
    assert answer.status_code == 400
    assert set(answer.json()) == {"errorCode", "errorMessage", "context"}


def test_strangers_are_refused_before_their_body(service: Service, client: httpx.Client, key: str) -> None:
    for call in CALLS:
        headers = {"Authorization": "", "Content-Length": "10", "Connection": "close"}
        require_refused(RawCall(service, client, call.format(key), **headers).answer(), 401, None)


def test_memory_does_not_follow(service: Service, client: httpx.Client, key: str) -> None:
    """Four clients push 100 MB each at the same time; the peak hardly moves."""
    before = peak_bytes(service)

    def push(call: str) -> int:
        raw = RawCall(service, client, call.format(key), **{"Transfer-Encoding": "chunked"})
        sent = raw.send_chunks(HUNDRED_MB)
        raw.socket.close()
        return sent

    with ThreadPoolExecutor(4) as threads:
        sent = list(threads.map(push, ["POST /keys", "POST /keys/{}/actions/wrap"] * 2))
    assert max(sent) <= SOON
    assert peak_bytes(service) - before < 40_000_000
    assert client.get("/keys?limit=1").status_code == 200


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "limit"), [("/keys", COLD_LIMIT), ("/keys/{}/actions/wrap", HOT_LIMIT)])
def test_exact_limit(client: httpx.Client, key: str, path: str, limit: int, chunked: bool, over: bool) -> None:
    """A body of the limit itself is read."""
    text = json.dumps(create_body("x") if path == "/keys" else {}).encode()
    body = text.ljust(limit + over)
    answer = client.post(path.format(key), content=iter([body[:1_000], body[1_000:]]) if chunked else body)
    if over:
        require_refused(answer, 400, "BAD_BODY_ERR")
    elif path == "/keys":
        require_refused(answer, 400, "INVALID_FIELD_ERR", "name")
    else:
        assert answer.status_code == 200


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "+5", "9" * 40, ""])
def test_nonsense_length(service: Service, client: httpx.Client, key: str, length: str) -> None:
    """The HTTP parser may answer this one itself; it is a refusal, and the service goes on."""
    headers = {"Content-Length": length, "Connection": "close"}
    answer = RawCall(service, client, f"POST /keys/{key}/actions/wrap", **headers).answer()
    assert answer.status_code == 400
    assert client.get("/keys?limit=1").status_code == 200
