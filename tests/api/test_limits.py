"""Request limits over HTTP. The buckets fill so slowly that only what is in them counts in a test's time."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from hsmkms.domain.access import Role
from tests.api.refusals import require_refused
from tests.support.deployment import Service, State, create_body, create_key
from tests.support.iam import Iam, key_client

BURST = 12
Run = Callable[..., Service]


def limited(run_service: Run, state: State, whose: str) -> Service:
    """A service with BURST requests for each of one kind, and one more every 1,000 s."""
    name = whose.upper()
    return run_service(state, **{f"HSMKMS_{name}_REQUESTS_PER_S": "0.001", f"HSMKMS_{name}_BURST_REQUESTS": str(BURST)})


def exhaust(client: httpx.Client, key: str, left: int) -> None:
    """Hot and cold calls in turn, of which `left` are served and no more."""
    calls = [("POST", f"/keys/{key}/actions/wrap"), ("GET", "/keys"), ("POST", f"/keys/{key}?action=wrap")]
    for count in range(left):
        assert client.request(*calls[count % 3]).status_code == 200
    require_refused(client.request(*calls[left % 3]), 429, None)


def require_limited(client: httpx.Client, key: str, whose: str) -> None:
    """Every kind of call is refused, with what to do next."""
    for method, path in (
        ("POST", f"/keys/{key}/actions/wrap"),
        ("POST", f"/keys/{key}/actions/unwrap"),
        ("GET", "/keys"),
        ("POST", "/keys"),
        ("DELETE", f"/keys/{key}"),
        ("GET", "/instance/policies"),
    ):
        answer = client.request(method, path)
        require_refused(answer, 429, None)
        wait_s = int(answer.headers["Retry-After"])
        assert 1 <= wait_s <= 1_000
        said = answer.json()["resources"][0]["errorMsg"]
        assert said.startswith(f"Too Many Requests: This {whose} sends too many requests. Try again in {wait_s} s")
    assert client.head("/keys").status_code == 429


def test_one_identity_does_not_starve_another(state: State, run_service: Run) -> None:
    """Nor its own other instance; its limit is for the key API alone."""
    service = limited(run_service, state, "identity")
    with Iam(service) as iam, service.client() as admin:
        key = create_key(admin)
        loud, quiet = iam.somebody(), iam.somebody()
        for somebody in (loud, quiet):
            iam.grant(somebody.iam_id, Role.MANAGER)
        with iam.client(loud) as noise, iam.client(quiet) as other, iam.client(loud, iam.instance()) as elsewhere:
            exhaust(noise, key, BURST)
            require_limited(noise, key, "identity")
            assert elsewhere.get("/keys").status_code == 429
            assert other.post(f"/keys/{key}/actions/wrap").status_code == 200
            assert other.get("/keys").status_code == 200
            bearer = {"Authorization": noise.headers["Authorization"]}
            for path in ("/healthz", "/readyz", "/version", "/v2/resource_instances"):
                assert all(httpx.get(f"{service.url}{path}", headers=bearer).status_code != 429 for _ in range(BURST))


def test_one_instance_does_not_starve_another(state: State, run_service: Run) -> None:
    service = limited(run_service, state, "instance")
    with Iam(service) as iam, key_client(service, iam.token, iam.instance()) as other, service.client() as loud:
        key, elsewhere = create_key(loud), create_key(other)
        exhaust(loud, key, BURST - 1)
        require_limited(loud, key, "instance")
        somebody = iam.somebody()
        iam.grant(somebody.iam_id, Role.MANAGER)
        with iam.client(somebody) as neighbour:
            require_limited(neighbour, key, "instance")
        for _ in range(BURST - 1):
            assert other.post(f"/keys/{elsewhere}/actions/wrap").status_code == 200
        require_refused(other.get("/keys"), 429, None)


def test_nobody_spends_what_is_not_theirs(state: State, run_service: Run) -> None:
    """Without a token, a right or an instance that is there: the instance has its whole budget afterwards."""
    service = limited(run_service, state, "instance")
    with Iam(service) as iam, service.client() as admin:
        nobody, reader = iam.somebody(), iam.somebody()
        iam.grant(reader.iam_id, Role.READER)
        with iam.client(nobody) as without, iam.client(reader) as low, key_client(service, "a.b.c") as forger:
            for _ in range(BURST):
                require_refused(without.get("/keys"), 401, None)
                require_refused(without.post("/keys/x/actions/wrap"), 401, None)
                require_refused(low.post("/keys"), 401, None)
                require_refused(forger.get("/keys"), 400, "BEARER_SUB_EXTRACTION_ERR")
                made_up = admin.get("/keys", headers={"Bluemix-Instance": "00000000-0000-4000-8000-000000000000"})
                require_refused(made_up, 401, None)
        for _ in range(BURST):
            assert admin.get("/keys").status_code == 200
        require_refused(admin.get("/keys"), 429, None)


def test_who_has_no_right_is_limited_too(state: State, run_service: Run) -> None:
    service = limited(run_service, state, "identity")
    with Iam(service) as iam, iam.client(iam.somebody()) as without:
        for _ in range(BURST):
            require_refused(without.get("/keys"), 401, None)
        require_refused(without.get("/keys"), 429, None)


@pytest.mark.parametrize("path", ["/keys", "/keys/x/actions/wrap"])
def test_answered_before_the_body_comes(state: State, run_service: Run, path: str) -> None:
    """And a body that is slow counts once."""
    service = limited(run_service, state, "identity")
    with service.client() as client:
        key = create_key(client)
        slow = json.dumps(create_body()).encode() if path == "/keys" else b"{}"
        place = path.replace("x", key, 1) if path != "/keys" else path

        def body() -> Iterator[bytes]:
            yield slow[:1]
            # Longer than the hot path believes what it asked before the body.
            time.sleep(0.2)
            yield slow[1:]

        for _ in range(BURST - 1):
            assert client.post(place, content=body()).status_code in (200, 201)
        head = [f"POST /api/v2{place} HTTP/1.1", "Host: x", "Content-Length: 1000"]
        head += [f"{name}: {client.headers[name]}" for name in ("Authorization", "Bluemix-Instance")]
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode())
            assert connection.recv(4_096).startswith(b"HTTP/1.1 429 ")


def test_settings_that_cannot_be(state: State) -> None:
    for name, value in (("IDENTITY_REQUESTS_PER_S", "-1"), ("INSTANCE_BURST_REQUESTS", "0")):
        done = state.run("serve", stdin=b"", **{f"HSMKMS_{name}": value})
        assert done.returncode != 0
        assert name.lower().encode() in done.stderr
