"""The adopters' client against a running service: what it does, what it says when it is refused, when the service is
away, and that it logs in once for many calls."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import (
    UNAUTHORIZED,
    AdopterKeyState,
    CiphertextRefused,
    ConnectionInvalid,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
    KeyState,
    parse_key_crn,
)
from hsmkms.adopters.connection import Connection
from hsmkms.domain.secrets import SecretBytes
from hsmkms.store.engine import Database
from tests.api.backstage import age
from tests.support.adopter import Adopter
from tests.support.certificates import Authority
from tests.support.connections import write_connection
from tests.support.deployment import Service, State, create_key
from tests.support.front import Front
from tests.support.iam import Iam

AAD = ("volume", "db7")


@pytest.fixture(scope="module")
def database_of(service: Service) -> Iterator[Database]:
    database = Database(service.database_url)
    yield database
    database.close()


def act(admin: httpx.Client, key: str, action: str) -> None:
    answer = admin.post(f"/keys/{key}/actions/{action}")
    assert answer.status_code == 204, answer.text


def test_a_dek_comes_back_and_moves_to_the_newest_version(admin: httpx.Client, client: KeyServiceClient) -> None:
    key = create_key(admin)
    made, own = client.generate_and_wrap(key, AAD), client.wrap(key, SecretBytes(b"eighteen bytes of."))
    assert len(made.plaintext) == 32
    assert made.plaintext.reveal() not in made.ciphertext.encode()
    opened = client.unwrap(key, made.ciphertext, AAD)
    assert (opened.plaintext.reveal(), opened.key_version) == (made.plaintext.reveal(), made.key_version)
    assert opened.rewrapped is None
    assert client.unwrap(key, own.ciphertext).plaintext.reveal() == b"eighteen bytes of."
    act(admin, key, "rotate")
    newest = client.key(key).version
    assert newest != made.key_version
    opened, rewrapped = client.unwrap(key, made.ciphertext, AAD), client.rewrap(key, made.ciphertext, AAD)
    assert opened.rewrapped is not None
    assert (opened.key_version, opened.rewrapped.key_version) == (made.key_version, newest)
    for newer in (opened.rewrapped, rewrapped):
        assert newer.key_version == newest
        again = client.unwrap(key, newer.ciphertext, AAD)
        assert (again.plaintext.reveal(), again.rewrapped) == (made.plaintext.reveal(), None)


def test_a_key_is_shown_by_id_and_alias(admin: httpx.Client, client: KeyServiceClient) -> None:
    key = create_key(admin, "of the bank", aliases=["banks-key"])
    found = client.key("banks-key")
    assert (found.id, found.name, found.state, found.opens) == (key, "of the bank", KeyState.ACTIVE, True)
    assert parse_key_crn(found.crn) == (client.connection.instance_id, key)
    assert parse_key_crn(found.crn.replace(":key:", ":alias:")) is None


def test_refusals_say_what_is_refused(
    admin: httpx.Client, client: KeyServiceClient, database_of: Database, database: Adopter, iam: Iam
) -> None:
    key = create_key(admin)
    made = client.generate_and_wrap(key, AAD)
    for ciphertext, aad in ((made.ciphertext, ()), ("bm8=", AAD), ("!", AAD), (made.ciphertext[:-8], AAD), ("", AAD)):
        with pytest.raises(CiphertextRefused):
            client.unwrap(key, ciphertext, aad)
    other = create_key(admin)
    with pytest.raises(CiphertextRefused):
        client.unwrap(other, made.ciphertext, AAD)
    act(admin, key, "disable")
    assert client.key(key).state is KeyState.SUSPENDED
    with pytest.raises(KeyRefused) as refused:
        client.unwrap(key, made.ciphertext, AAD)
    assert refused.value.reason_code == "KEY_ACTION_INVALID_STATE_ERR"
    age(database_of, key, disabled_at=timedelta(minutes=1))
    act(admin, key, "enable")
    assert client.unwrap(key, made.ciphertext, AAD).plaintext.reveal() == made.plaintext.reveal()
    assert admin.delete(f"/keys/{key}").status_code == 204
    assert (client.key(key).state, client.key(key).opens) == (KeyState.DESTROYED, False)
    with pytest.raises(KeyRefused) as refused:
        client.unwrap(key, made.ciphertext, AAD)
    assert refused.value.reason_code == "KEY_DELETED_ERR"
    with pytest.raises(KeyRefused) as refused:
        client.key("00000000-0000-4000-8000-000000000000")
    assert refused.value.reason_code == "KEY_NOT_FOUND_ERR"
    iam.revoke(database.authorization)
    with pytest.raises(KeyRefused) as refused:
        _ask_for(client, other, 10)
    assert refused.value.reason_code == UNAUTHORIZED


def _ask_for(client: KeyServiceClient, key: str, longest_s: float) -> None:
    """Look at a key until that is refused."""
    deadline = time.monotonic() + longest_s
    while time.monotonic() < deadline:
        client.key(key)


def test_registrations_and_events(admin: httpx.Client, client: KeyServiceClient, database: Adopter) -> None:
    key, crn = create_key(admin), database.crn("a/b%c")
    cursor = client.events(0).cursor
    client.register(key, crn, description="first")
    client.register(key, crn, prevent_deletion=True)
    kept = admin.get(f"/keys/{key}/registrations").json()["resources"][0]
    assert (kept["resourceCrn"], kept["preventKeyDeletion"], kept["description"]) == (crn, True, "first")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.events, cursor, wait_s=20)
        act(admin, key, "rotate")
        page = waiting.result(15)
    (event,) = page.events
    assert (event.type, event.key_id, event.resource_crn, event.acknowledged) == ("rotate", key, crn, False)
    assert event.key_version == client.key(key).version
    client.registered_version(key, crn, event.key_version)
    client.acknowledge(event.id, AdopterKeyState.DEK_ENABLED, key_version=event.key_version)
    assert client.events(cursor).events[0].acknowledged
    assert client.events(page.cursor).events == ()
    client.deregister(key, crn)
    client.deregister(key, crn)
    assert admin.get(f"/keys/{key}/registrations").json()["resources"] == []
    with pytest.raises(KeyRefused) as refused:
        client.register(key, crn.replace(database.prefix, database.prefix + "0"))
    assert refused.value.reason_code == "RESOURCE_OWNER_ERR"


def test_many_threads_share_a_log_in_and_get_another_when_it_was_ended(
    admin: httpx.Client, client: KeyServiceClient, service: Service
) -> None:
    key = create_key(admin)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: client.generate_and_wrap(key), range(40)))
    assert len({one.ciphertext for one in made}) == 40
    # Ending the log-in ends the token; the client gets another by itself once the first is not brand new.
    token = client._transport._access
    assert token is not None
    ended = httpx.post(f"{service.url}/identity/revoke", data={"token": token.token.reveal()})
    assert ended.status_code in (200, 204), ended.text
    object.__setattr__(token, "got_at", token.got_at - 60)
    assert client.key(key).id == key
    assert client._transport._access is not token


def test_a_wrong_api_key_is_refused_in_words(service: Service, tmp_path: Path) -> None:
    connection = Connection.read(write_connection(tmp_path, service, "not-a-key"))
    with KeyServiceClient(connection) as client, pytest.raises(KeyRefused) as refused:
        client.key("any")
    assert refused.value.reason_code == "BXNIM0415E"
    assert "not-a-key" not in str(refused.value)


def test_a_service_that_is_away_is_told_within_the_deadline(
    seed_state: State, service: Service, tmp_path: Path, database: Adopter
) -> None:
    file = write_connection(tmp_path, service, database.who.api_key, timeout_s=0.5)
    away = file.read_text().replace(str(service.port), str(_closed_port()))
    file.write_text(away)
    started = time.monotonic()
    with KeyServiceClient(Connection.read(file)) as client, pytest.raises(KeyServiceAway) as told:
        client.key("any")
    assert time.monotonic() - started < 5
    assert "127.0.0.1" in told.value.message


def test_a_service_that_hangs_is_told_within_the_deadline(service: Service, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = write_connection(tmp_path, service, "some-key", timeout_s=0.5)
        file.write_text(file.read_text().replace(str(service.port), str(silent.getsockname()[1])))
        started = time.monotonic()
        with KeyServiceClient(Connection.read(file)) as client, pytest.raises(KeyServiceAway):
            client.key("any")
        assert time.monotonic() - started < 5


def test_retry_after_is_obeyed_and_a_short_outage_is_not_noticed(
    admin: httpx.Client, service: Service, tmp_path: Path, database: Adopter
) -> None:
    key = create_key(admin)
    file = write_connection(tmp_path, service, database.who.api_key, timeout_s=20)
    with Front(service.port, (b"503 Service Unavailable\r\nRetry-After: 1", b"", b"502 Bad Gateway")) as front:
        file.write_text(file.read_text().replace(str(service.port), str(front.port)))
        with KeyServiceClient(Connection.read(file)) as client:
            started = time.monotonic()
            assert client.key(key).id == key
        assert time.monotonic() - started >= 1
        assert front.refused == 3


def test_too_long_a_retry_after_is_not_waited_for(service: Service, tmp_path: Path) -> None:
    file = write_connection(tmp_path, service, "some-key", timeout_s=20)
    with Front(service.port, (b"429 Too Many Requests\r\nRetry-After: 600",)) as front:
        file.write_text(file.read_text().replace(str(service.port), str(front.port)))
        started = time.monotonic()
        with KeyServiceClient(Connection.read(file)) as client, pytest.raises(KeyServiceAway) as told:
            client.key("any")
        assert told.value.retry_after_s == 600
        assert time.monotonic() - started < 10


def test_over_tls_only_the_named_authority_counts(state: State, tmp_path: Path) -> None:
    ours, foreign = Authority(tmp_path, "ours"), Authority(tmp_path, "foreign")
    issued = ours.server()
    server = Service(
        state, tls_ca=str(ours.file), HSMKMS_TLS_CERT=str(issued.certificate), HSMKMS_TLS_KEY=str(issued.key)
    )
    with server as service:
        with service.client() as admin:
            key = create_key(admin)
        file = write_connection(tmp_path, service, state.api_key, timeout_s=5)
        with KeyServiceClient(Connection.read(file)) as client:
            assert len(client.generate_and_wrap(key).plaintext) == 32
        file.write_text(file.read_text().replace(str(ours.file), str(foreign.file)))
        with KeyServiceClient(Connection.read(file)) as client, pytest.raises(KeyServiceAway) as told:
            client.key(key)
        assert "certificate verify failed" in told.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('url = "http://127.0.0.1', 'url = "http://kms.example'), "plain http"),
        (("instance_id", "instance"), "instance"),
        (("timeout_s = 10", "timeout_s = 0"), "timeout_s"),
        (("timeout_s = 10", "timeout_s ="), "not valid TOML"),
    ],
    ids=["plain http", "unknown member", "no time", "no TOML"],
)
def test_connection_files_that_are_refused(
    service: Service, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    file = write_connection(tmp_path, service, "secret-api-key")
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ConnectionInvalid, match=words):
        Connection.read(file)


def test_api_key_files_that_are_refused(service: Service, tmp_path: Path) -> None:
    connection = Connection.read(write_connection(tmp_path, service, "secret-api-key"))
    connection.api_key_file.chmod(0o640)
    with pytest.raises(ConnectionInvalid, match="chmod 600"):
        connection.read_api_key()
    connection.api_key_file.write_text("")
    connection.api_key_file.chmod(0o600)
    with pytest.raises(ConnectionInvalid, match="does not hold"):
        connection.read_api_key()
    connection.api_key_file.unlink()
    with pytest.raises(ConnectionInvalid, match="cannot be read"):
        connection.read_api_key()


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
