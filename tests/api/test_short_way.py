"""The short way of whole requests says what the long way says, whatever way the bytes come in.

The same request is sent whole (short way), byte by byte and in two parts (long way), and pipelined.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from tests.api.test_audit_events import records
from tests.support.deployment import Service, create_key

MINUTE_S = 60


class Raw:
    """A connection that sends bytes as they are and reads whole responses."""

    def __init__(self, service: Service, client: httpx.Client) -> None:
        url = httpx.URL(service.url)
        self.socket = socket.create_connection((url.host, url.port or 80), timeout=MINUTE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.authorization = client.headers["authorization"]
        self.instance = client.headers["bluemix-instance"]

    def request(self, path: str, body: object, *, version: str = "1.1", extra: str = "", length: bool = True) -> bytes:
        content = json.dumps(body).encode()
        head = f"POST /api/v2{path} HTTP/{version}\r\nHost: localhost\r\nAuthorization: {self.authorization}\r\n"
        head += f"Bluemix-Instance: {self.instance}\r\n{extra}"
        head += f"Content-Length: {len(content)}\r\n" if length else ""
        return head.encode() + b"\r\n" + content

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def read(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.file.read(int(headers["content-length"]))

    def is_closed(self) -> bool:
        return self.file.read(1) == b""


@pytest.fixture(scope="module")
def key(client: httpx.Client) -> str:
    key = create_key(client)
    assert client.post(f"/keys/{key}/actions/wrap").status_code == 200
    return key


@pytest.fixture
def raw(service: Service, client: httpx.Client) -> Iterator[Raw]:
    connection = Raw(service, client)
    yield connection
    connection.file.close()
    connection.socket.close()


def test_whole_in_parts_and_byte_by_byte_it_is_one_request(raw: Raw, key: str) -> None:
    """Same status, type, members; each with the correlation id that it came with."""
    found = []
    for cut in ([], [40], [300, 310], [-5]):
        correlation_id = str(uuid.uuid4())
        request = raw.request(
            f"/keys/{key}/actions/wrap", {"plaintext": "AAAA"}, extra=f"Correlation-Id: {correlation_id}\r\n"
        )
        edges = [0, *(place % len(request) for place in cut), len(request)]
        for start, end in pairwise(edges):
            raw.send(request[start:end])
        status, headers, body = raw.read()
        assert headers["correlation-id"] == correlation_id
        found.append((status, headers["content-type"], sorted(json.loads(body))))
    assert found == [(200, "application/vnd.ibm.kms.key_action+json", ["ciphertext", "keyVersion"])] * 4


def test_pipelined_requests_are_answered_in_their_order(raw: Raw, key: str) -> None:
    """Short and long ways mixed on one connection, all sent before anything is read."""
    ids = [str(uuid.uuid4()) for _ in range(40)]
    paths = [f"/keys/{key}/actions/wrap", f"/keys/{key}?action=wrap", f"/keys/{key}/actions/rewrap"]
    requests = [
        raw.request(paths[number % 3], {}, extra=f"Correlation-Id: {correlation_id}\r\n")
        for number, correlation_id in enumerate(ids)
    ]
    raw.send(b"".join(requests))
    answers = [raw.read() for _ in ids]
    assert [headers["correlation-id"] for _, headers, _ in answers] == ids
    assert [status for status, _, _ in answers] == [(200, 200, 400)[number % 3] for number in range(40)]


def test_close_is_obeyed(raw: Raw, key: str) -> None:
    raw.send(raw.request(f"/keys/{key}/actions/wrap", {}, extra="Connection: close\r\n"))
    status, headers, _ = raw.read()
    assert (status, headers["connection"], raw.is_closed()) == (200, "close", True)


def test_an_old_client_is_served(raw: Raw, key: str) -> None:
    raw.send(raw.request(f"/keys/{key}/actions/wrap", {}, version="1.0"))
    assert (raw.read()[0], raw.is_closed()) == (200, True)


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [("Authorization: Bearer x.y.z\r\n", 401), ("Bluemix-Instance: 00000000-0000-4000-8000-000000000000\r\n", 400)],
)
def test_a_second_decisive_header_refuses(raw: Raw, key: str, extra: str, wanted: int) -> None:
    raw.send(raw.request(f"/keys/{key}/actions/wrap", {}, extra=extra))
    assert raw.read()[0] in (wanted, 400)


def test_a_trailer_grants_nothing(raw: Raw, key: str) -> None:
    """Authorization behind the body of a request that had none in front."""
    head = f"POST /api/v2/keys/{key}/actions/wrap HTTP/1.1\r\nHost: localhost\r\nBluemix-Instance: {raw.instance}\r\n"
    body = (
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nAuthorization: " + raw.authorization.encode() + b"\r\n\r\n"
    )
    raw.send(head.encode() + body)
    assert raw.read()[0] == 401


@pytest.mark.parametrize("reference", ["%2e%2e", "a/b", "..", "x%00", "ä"])
def test_an_odd_reference_is_nobodys_key(raw: Raw, reference: str) -> None:
    raw.send(raw.request(f"/keys/{reference}/actions/wrap", {}))
    assert raw.read()[0] in (400, 401, 404)


def test_what_is_disabled_stops_at_once(raw: Raw, client: httpx.Client) -> None:
    """Also for the request that was remembered to be possible a moment ago, and with one event each."""
    key = create_key(client)
    raw.send(raw.request(f"/keys/{key}/actions/wrap", {"plaintext": "AAAA"}))
    sealed = json.loads(raw.read()[2])["ciphertext"]
    raw.send(raw.request(f"/keys/{key}/actions/unwrap", {"ciphertext": sealed}))
    assert raw.read()[0] == 200
    assert client.post(f"/keys/{key}/actions/disable").status_code == 204
    for action, body in (("wrap", {}), ("unwrap", {"ciphertext": sealed})):
        raw.send(raw.request(f"/keys/{key}/actions/{action}", body))
        assert raw.read()[0] == 409


def test_each_has_its_event(service: Service, raw: Raw, key: str) -> None:
    """Sent together, so done together."""
    ids = [str(uuid.uuid4()) for _ in range(50)]
    raw.send(b"".join(raw.request(f"/keys/{key}/actions/wrap", {}, extra=f"Correlation-Id: {one}\r\n") for one in ids))
    assert {raw.read()[0] for _ in ids} == {200}
    for one in ids:
        (event,) = records(service, one)
        assert (event["action"], event["outcome"], event["requestData"]["requestURI"]) == (
            "kms.secrets.wrap",
            "success",
            f"/api/v2/keys/{key}/actions/wrap",
        )


def test_a_log_in_on_the_short_way_is_as_the_first_one(service: Service) -> None:
    """The first notes that the key was used, those behind it do not."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": service.state.api_key}
    answers = [httpx.post(f"{service.url}/identity/token", data=form, timeout=MINUTE_S) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {tuple(answer.json()) for answer in answers} == {tuple(answers[0].json())}
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}
    assert len({answer.json()["access_token"] for answer in answers}) == 4
    headers = {"Bluemix-Instance": service.state.instance_id}
    for answer in answers:
        headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        assert httpx.get(f"{service.url}/api/v2/keys", headers=headers, timeout=MINUTE_S).status_code == 200
    wrong = {**form, "apikey": form["apikey"][:-1] + ("A" if form["apikey"][-1] != "A" else "B")}
    assert httpx.post(f"{service.url}/identity/token", data=wrong, timeout=MINUTE_S).status_code == 400


def test_a_head_that_comes_again_is_a_request_like_the_first(service: Service, raw: Raw, key: str) -> None:
    """Whole, in parts and pipelined; the events differ in nothing but who they are."""
    bodies = [{"plaintext": text} for text in ("AAAA", "BBBB", "CCCC", "DDDD", "EEEE", "AAAA")]
    requests = [raw.request(f"/keys/{key}/actions/wrap", body) for body in bodies]
    for request in requests[:3]:
        raw.send(request)
    raw.send(requests[3][:50], requests[3][50:])
    raw.send(requests[4] + requests[5])
    answers = [raw.read() for _ in requests]
    assert [status for status, _, _ in answers] == [200] * 6
    ids = [headers["correlation-id"] for _, headers, _ in answers]
    sealed = [json.loads(body)["ciphertext"] for _, _, body in answers]
    assert (len(set(ids)), len(set(sealed))) == (6, 5)
    assert sealed[0] == sealed[5]
    events = [event for one in ids for event in records(service, one)]
    assert len({event.pop("id") for event in events}) == 6
    assert {event.pop("correlationId") for event in events} == set(ids)
    assert all(event.pop("eventTime") for event in events)
    assert all(event == events[0] for event in events)


def test_the_same_head_is_refused_when_something_changed(service: Service, raw: Raw, client: httpx.Client) -> None:
    """Another length of the body, a body that is none, a revoked log-in, a disabled key."""
    key = create_key(client)
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": service.state.api_key}
    token = httpx.post(f"{service.url}/identity/token", data=form, timeout=MINUTE_S).json()["access_token"]
    request = raw.request(f"/keys/{key}/actions/wrap", {"plaintext": "AAAA"})
    raw.authorization = f"Bearer {token}"
    revocable = raw.request(f"/keys/{key}/actions/wrap", {"plaintext": "AAAA"})

    def status_of(sent: bytes) -> int:
        raw.send(sent)
        return raw.read()[0]

    assert [status_of(one) for one in (request, revocable) * 2] == [200] * 4
    raw.send(request[:-1])
    raw.send(request[-1:])
    assert raw.read()[0] == 200
    assert status_of(request.replace(b"AAAA", b"A*AA")) == 400
    assert httpx.post(f"{service.url}/identity/revoke", data={"token": token}, timeout=MINUTE_S).is_success
    assert status_of(revocable) == 401
    assert status_of(request) == 200
    assert client.post(f"/keys/{key}/actions/disable").status_code == 204
    assert status_of(request) == 409
