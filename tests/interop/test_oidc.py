"""Access tokens of an outside OpenID Connect provider: Canaille, as its own process, over its own endpoints."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import jwt
import pytest

from hsmkms.domain.access import Role
from tests.api.refusals import require_refused
from tests.support.deployment import Service, State, create_key
from tests.support.iam import Iam, key_client, log_in
from tests.support.oidc_provider import OidcProvider
from tests.support.ports import free_port

AUDIENCE = "hsmkms"
KEYS_MAX_AGE_S = 6.0


@dataclass(frozen=True)
class Trusting:
    """A service that accepts tokens of `provider`, and of an issuer that never answers."""

    service: Service
    iam: Iam
    provider: OidcProvider
    silent: str

    def let_in(self, subject: str, *roles: Role) -> str:
        """Map the provider's subject to a fresh user with these roles; the user's iam_id."""
        token = self.provider.token(subject, AUDIENCE)
        claims = jwt.decode(token, options={"verify_signature": False})
        done = self.service.state.run("iam", "users", "create", subject, "--json", stdin=b"")
        iam_id = str(json.loads(done.stdout)[0]["iam_id"])
        added = self.service.state.run(
            "iam", "logins", "add", iam_id, "sub", claims["sub"], "--issuer", self.provider.issuer, stdin=b""
        )
        assert added.returncode == 0, added.stderr
        log_in(self.service, self.service.state.api_key)
        if roles:
            self.iam.grant(iam_id, *roles)
        return iam_id

    def status(self, token: str) -> int:
        """Of a wrap with a token."""
        with key_client(self.service, token) as http:
            return http.get("/keys").status_code


class SilentIssuer:
    """Accepts connections and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._held: list[socket.socket] = []
        self.issuer = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        """Hang up."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._held:
            connection.close()


@pytest.fixture(scope="module")
def trusting(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusting]:
    state = seed_state.copy_to(tmp_path_factory.mktemp("oidc") / "state")
    silent = SilentIssuer()
    with OidcProvider() as provider:
        settings = state.path / "hsmkms.toml"
        trusted = "".join(
            f'\n[[oidc_issuers]]\nissuer = "{issuer}"\naudience = "{AUDIENCE}"\nkeys_max_age_s = {KEYS_MAX_AGE_S}\n'
            for issuer in (provider.issuer, silent.issuer)
        )
        settings.write_text(settings.read_text() + trusted)
        with Service(state, workers=1) as service, Iam(service) as iam:
            yield Trusting(service, iam, provider, silent.issuer)
    silent.close()


def test_a_mapped_subject_comes_in_with_its_own_rights(trusting: Trusting) -> None:
    iam_id = trusting.let_in("alice", Role.WRITER)
    token = trusting.provider.token("alice", AUDIENCE)
    with key_client(trusting.service, token) as http:
        key = create_key(http)
        assert http.get(f"/keys/{key}/metadata").json()["resources"][0]["createdBy"] == iam_id
        for _ in range(2):
            wrapped = http.post(f"/keys/{key}/actions/wrap").json()
            opened = http.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
            assert opened.json()["plaintext"] == wrapped["plaintext"]
        assert http.delete(f"/keys/{key}").status_code == 401


def test_what_is_not_meant_for_us_is_refused(trusting: Trusting) -> None:
    """Another audience, a subject that nobody mapped, another issuer with its own keys, a changed character."""
    trusting.let_in("bob", Role.READER)
    good = trusting.provider.token("bob", AUDIENCE)
    assert trusting.status(good) == 200
    assert trusting.status(trusting.provider.token("bob", "somebody-else")) == 401
    assert trusting.status(trusting.provider.token("unmapped", AUDIENCE)) == 401
    head, body, signature = good.split(".")
    assert trusting.status(f"{head}.{body}.{signature[:-6]}AAAAAA") == 401
    assert trusting.status(f"{head}.{body}.") == 401
    claims = jwt.decode(good, options={"verify_signature": False})
    assert (
        trusting.status(jwt.encode(claims, "x" * 32, "HS256", {"kid": jwt.get_unverified_header(good)["kid"]})) == 401
    )
    with OidcProvider() as stranger:
        assert trusting.status(stranger.token("bob", AUDIENCE)) == 401


def test_a_locked_user_and_ended_tokens_are_refused(trusting: Trusting) -> None:
    iam_id = trusting.let_in("carol", Role.READER)
    token = trusting.provider.token("carol", AUDIENCE)
    assert trusting.status(token) == 200
    assert trusting.service.state.run("iam", "end-tokens", iam_id, stdin=b"").returncode == 0
    assert within_a_second(trusting, token, 401)
    ended_at = time.time()
    fresh = trusting.provider.token("carol", AUDIENCE)
    # The provider's times are whole seconds.
    while jwt.decode(fresh, options={"verify_signature": False})["iat"] <= ended_at:
        fresh = trusting.provider.token("carol", AUDIENCE)
    assert within_a_second(trusting, fresh, 200)
    assert trusting.service.state.run("iam", "users", "lock", iam_id, stdin=b"").returncode == 0
    assert within_a_second(trusting, fresh, 401)


def test_a_key_that_the_issuer_took_back_verifies_nothing(trusting: Trusting) -> None:
    """With the old key still published its tokens are good; without it they are refused, also those known by heart."""
    trusting.let_in("dave", Role.READER)
    first = trusting.provider.token("dave", AUDIENCE)
    assert trusting.status(first) == 200
    trusting.provider.rotate(keep_old=True)
    second = trusting.provider.token("dave", AUDIENCE)
    assert eventually(trusting, second, 200, KEYS_MAX_AGE_S)
    assert trusting.status(first) == 200
    trusting.provider.rotate(keep_old=False)
    rotated_at = time.monotonic()
    for token in (first, second):
        assert eventually(trusting, token, 401, KEYS_MAX_AGE_S + 1 - (time.monotonic() - rotated_at))
    assert eventually(trusting, trusting.provider.token("dave", AUDIENCE), 200, KEYS_MAX_AGE_S)


def test_a_silent_issuer_holds_up_nobody(trusting: Trusting) -> None:
    """Junk that names an issuer which never answers; our own tokens, new ones too, go on meanwhile."""
    junk = jwt.encode({"iss": trusting.silent, "aud": AUDIENCE}, "x" * 32, "HS256", {"kid": "nobody"})
    with ThreadPoolExecutor(24) as threads:
        waiting = [threads.submit(trusting.status, junk) for _ in range(24)]
        started = time.monotonic()
        for _ in range(5):
            somebody = trusting.iam.somebody()
            trusting.iam.grant(somebody.iam_id, Role.READER)
            assert trusting.status(log_in(trusting.service, somebody.api_key)) == 200
        assert time.monotonic() - started < 20
        assert {answer.result() for answer in waiting} <= {401, 503}
    with key_client(trusting.service, junk) as http:
        require_refused(http.get("/keys"), 503, None)


def test_an_issuer_in_clear_over_a_network_is_not_accepted(state: State) -> None:
    settings = state.path / "hsmkms.toml"
    settings.write_text(settings.read_text() + '[[oidc_issuers]]\nissuer = "http://idp.example"\naudience = "x"\n')
    done = state.run("serve", "--port", str(free_port()), stdin=b"")
    assert done.returncode == 1
    assert b"must be an https URL" in done.stderr


def eventually(trusting: Trusting, token: str, status: int, within_s: float) -> bool:
    """Whether a token gives a status within a time."""
    deadline = time.monotonic() + within_s
    while trusting.status(token) != status:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def within_a_second(trusting: Trusting, token: str, status: int) -> bool:
    return eventually(trusting, token, status, 1.0)


def test_the_discovery_of_the_provider_is_its_own(trusting: Trusting) -> None:
    """The provider is the real thing: it serves discovery, keys and tokens itself."""
    found = httpx.get(f"{trusting.provider.issuer}/.well-known/openid-configuration").json()
    assert found["issuer"] == trusting.provider.issuer
    keys = httpx.get(found["jwks_uri"]).json()["keys"]
    assert all("d" not in key for key in keys)
