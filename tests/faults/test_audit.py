"""What cannot be recorded is not done. That what was answered was recorded, `test_kill` and the bench prove."""

from __future__ import annotations

import resource

import httpx
import pytest

from tests.support.deployment import Service, State, create_body, create_key


@pytest.mark.alone
def test_what_cannot_be_recorded_is_not_done(state: State) -> None:
    """A file system that takes no byte more: refused with 503, nothing changed; and served again when it takes some."""
    with Service(state) as service, service.client() as client:
        key = create_key(client)
        before = client.get("/keys").json()["metadata"]["collectionTotal"]
        process = service.process.pid
        limit = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0, limit[1]))
        refused = [
            client.post(f"/keys/{key}/actions/wrap", json={}),
            client.post("/keys", json=create_body("not to be")),
            client.delete(f"/keys/{key}"),
            client.get("/keys"),
        ]
        assert [answer.status_code for answer in refused] == [503] * 4
        assert all("cannot be recorded" in answer.text and "Retry-After" in answer.headers for answer in refused)
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        ready = httpx.get(f"{service.url}/readyz")
        assert (ready.status_code, ready.json()["audit"]) == (503, False)
        resource.prlimit(process, resource.RLIMIT_FSIZE, limit)
        # Nobody asks for a key meanwhile: the service finds out by itself.
        service.wait_until_ready()
        assert client.get("/keys").json()["metadata"]["collectionTotal"] == before
        assert client.get(f"/keys/{key}/metadata").json()["resources"][0]["state"] == 1
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
    done = state.run("audit", "verify")
    assert done.returncode == 0, done.stdout.decode()
