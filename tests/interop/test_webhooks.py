"""Webhooks: events pushed to a receiver of their own, signed, in order, again after a failure, and never elsewhere."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509

from hsmkms.store.engine import Database
from hsmkms.store.events import EventStore
from hsmkms.store.webhooks import DeliveryStore
from tests.support.adopter import Adopter
from tests.support.certificates import Authority, Issued
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, key_client

EVENT = "urn:hsmkms:event:key"
WAIT_S = 40


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that did not like our certificate."""


class Receiver:
    """An HTTP server on this host. `answers` is asked for the status of each request, which then goes into `got`."""

    def __init__(self, certificate: Issued | None = None) -> None:
        self.got: Queue[tuple[dict[str, str], str]] = Queue()
        self.answers: Callable[[int], int] = lambda _: 202
        self.headers: dict[str, str] = {}
        self.asked = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                receiver.asked += 1
                self.send_response(receiver.answers(receiver.asked))
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                receiver.got.put((dict(self.headers), body))

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            # The handshake is made where a request is read, so that one that fails ends that request alone.
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.url = f"https://localhost:{self.server.server_port}/events"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self) -> tuple[dict[str, str], str]:
        return self.got.get(timeout=WAIT_S)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def service(shared_service: Service) -> Service:
    return shared_service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def iam(service: Service) -> Iterator[Iam]:
    with Iam(service) as iam:
        yield iam


@pytest.fixture
def database_of(service: Service) -> Iterator[Database]:
    database = Database(service.database_url)
    yield database
    database.close()


@pytest.fixture
def storage(iam: Iam) -> Iterator[Adopter]:
    adopter = Adopter(iam)
    yield adopter
    adopter.http.close()


Command = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def command(service: Service) -> Iterator[Command]:
    """`hsmkms webhooks` on the host; what was added is removed afterwards."""

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return service.state.run("webhooks", *arguments)

    yield run
    for webhook in json.loads(run("list", "--json").stdout):
        assert run("remove", webhook["id"]).returncode == 0


def add(command: Command, adopter: Adopter, url: str) -> str:
    done = command("add", f"{adopter.prefix}::", url, "--json")
    assert done.returncode == 0, done.stderr.decode()
    return str(json.loads(done.stdout)[0]["id"])


def disabled_key(client: httpx.Client, adopter: Adopter, name: str) -> str:
    key = create_key(client)
    adopter.register(key, name)
    assert client.post(f"/keys/{key}/actions/disable").status_code == 204
    return key


def test_an_event_is_pushed_signed(
    service: Service, client: httpx.Client, storage: Adopter, receiver: Receiver, command: Command
) -> None:
    before = disabled_key(client, storage, "before")
    add(command, storage, receiver.url)
    key = disabled_key(client, storage, "pushed")
    headers, token = receiver.next()
    assert headers["Content-Type"] == "application/secevent+jwt"
    published = httpx.get(f"{service.url}/identity/keys").json()
    signing = jwt.PyJWKSet.from_dict(published)[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, signing.key, algorithms=["ES256"], audience=storage.prefix)
    assert jwt.get_unverified_header(token)["typ"] == "secevent+jwt"
    event = next(event for event in storage.events()[0] if event["keyId"] == key)
    assert (claims["jti"], claims["txn"]) == (event["eventId"], event["correlationId"])
    assert headers["Correlation-Id"] == event["correlationId"]
    assert set(claims) == {"iss", "iat", "jti", "aud", "txn", "events"}
    pushed = claims["events"][EVENT]
    assert (pushed["eventType"], pushed["keyId"], pushed["keyState"]) == ("disable", key, 2)
    assert pushed["resourceCrn"] == storage.crn("pushed")
    # What was before the webhook is not pushed, and its token opens nothing here.
    assert before not in token
    with key_client(service, token) as http:
        assert http.get("/keys").status_code == 401


def test_a_failure_keeps_the_order_and_is_tried_again(
    client: httpx.Client, storage: Adopter, receiver: Receiver, command: Command
) -> None:
    receiver.answers = lambda asked: 503 if asked == 1 else 202
    add(command, storage, receiver.url)
    first = disabled_key(client, storage, "first")
    failed_try = receiver.next()[1]
    second = disabled_key(client, storage, "second")
    assert [_key(receiver.next()[1]) for _ in range(2)] == [first, second]
    assert _key(failed_try) == first
    (shown,) = json.loads(command("list", "--json").stdout)
    assert shown["failed tries"] == 0


def test_what_the_receiver_refuses_for_good_is_passed_over(
    client: httpx.Client, storage: Adopter, receiver: Receiver, command: Command
) -> None:
    receiver.answers = lambda asked: 400 if asked == 1 else 202
    add(command, storage, receiver.url)
    keys = [disabled_key(client, storage, name) for name in ("refused", "taken")]
    assert [_key(receiver.next()[1]) for _ in keys] == keys
    assert [event["status"] for event in storage.events()[0]] == ["pending", "pending"]


def test_a_redirect_leads_nowhere(client: httpx.Client, storage: Adopter, receiver: Receiver, command: Command) -> None:
    elsewhere = Receiver()
    receiver.answers, receiver.headers = (lambda _: 307), {"Location": elsewhere.url}
    webhook = add(command, storage, receiver.url)
    disabled_key(client, storage, "redirected")
    receiver.next()
    # Tried again, so the first answer did not count as taken.
    receiver.next()
    assert elsewhere.got.empty()
    (shown,) = json.loads(command("list", "--json").stdout)
    assert (shown["id"], shown["last error"]) == (webhook, "status 307")
    elsewhere.close()


def test_a_source_that_lost_its_authorization_hears_nothing_more(
    client: httpx.Client,
    iam: Iam,
    storage: Adopter,
    receiver: Receiver,
    command: Command,
    database_of: Database,
) -> None:
    other = Adopter(iam)
    webhook = add(command, storage, receiver.url)
    key = create_key(client)
    storage.register(key, "secret")
    other.register(key, "own")
    iam.revoke(storage.authorization)
    assert client.post(f"/keys/{key}/actions/disable").status_code == 204
    (newest,) = EventStore(database_of).of_key(key, 1)
    deadline = time.monotonic() + WAIT_S
    while True:
        delivery = DeliveryStore(database_of).get(webhook)
        assert delivery is not None
        if delivery.cursor >= newest.sequence - 1:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert receiver.got.empty()
    other.http.close()


def test_over_tls_with_a_certificate_of_its_own_authority(
    client: httpx.Client, storage: Adopter, command: Command, tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path, "own"), Authority(tmp_path, "stranger")
    receiver = Receiver(authority.issue("localhost", [x509.DNSName("localhost")]))
    for trusted, taken in ((stranger, False), (authority, True)):
        done = command("add", f"{storage.prefix}::", receiver.url, "--ca-file", str(trusted.file), "--json")
        webhook = json.loads(done.stdout)[0]["id"]
        key = disabled_key(client, storage, trusted.file.stem)
        if taken:
            assert _key(receiver.next()[1]) == key
        else:
            deadline = time.monotonic() + WAIT_S
            while not json.loads(command("list", "--json").stdout)[0]["last error"]:
                assert time.monotonic() < deadline
            assert receiver.got.empty()
        assert command("remove", webhook).returncode == 0
    receiver.close()


def test_one_that_hangs_does_not_keep_another_waiting(
    client: httpx.Client, iam: Iam, storage: Adopter, receiver: Receiver, command: Command
) -> None:
    other, silent = Adopter(iam), socket.create_server(("127.0.0.1", 0))
    add(command, other, f"http://127.0.0.1:{silent.getsockname()[1]}/")
    add(command, storage, receiver.url)
    disabled_key(client, other, "hangs")
    key = disabled_key(client, storage, "goes-on")
    assert _key(receiver.next()[1]) == key
    silent.close()
    other.http.close()


def test_what_is_no_webhook(storage: Adopter, command: Command) -> None:
    foreign = "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y::"
    for source, url, words in (
        (foreign, "https://h/", "of this account"),
        (f"{storage.prefix}::", "http://h/", "https"),
    ):
        done = command("add", source, url)
        assert done.returncode == 1
        assert words in done.stderr.decode()
    assert command("remove", "nothing").returncode == 1


def test_one_webhook_a_source(storage: Adopter, command: Command, receiver: Receiver) -> None:
    add(command, storage, receiver.url)
    done = command("add", f"{storage.prefix}::", receiver.url)
    assert (done.returncode, b"already" in done.stderr) == (1, True)


def _key(token: str) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    return str(claims["events"][EVENT]["keyId"])
