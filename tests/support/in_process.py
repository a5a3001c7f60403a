"""The service inside the test's own process, with a clock that the test moves: real token, database and ASGI stack."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from hsmkms.api.app import create_app
from hsmkms.api.services import Services
from hsmkms.settings import load
from hsmkms.token.room import Token
from hsmkms.wiring import Rooms, open_rooms, pin_of
from tests.support.deployment import State
from tests.support.iam import GRANT

_TOKENS_LAST = timedelta(minutes=55)


class MovedClock:
    """Stands still until it is moved, and then moves forward only."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def move(self, to: datetime) -> None:
        """Let time pass until then."""
        assert to >= self.now
        self.now = to


class InProcess:
    """One service on a state directory that nobody else has open. PKCS#11 allows one at a time in a process."""

    def __init__(self, state: State, clock: MovedClock) -> None:
        self.state, self.clock = state, clock
        self._environment = pytest.MonkeyPatch()
        self._loop = asyncio.Runner()
        self._access: dict[str, tuple[str, datetime]] = {}
        self._rooms: Rooms
        self._http: httpx.AsyncClient
        self._open()

    def restart(self) -> None:
        """New objects on the same token and database, as after a new process began."""
        self._close()
        self._open()

    def end(self) -> None:
        """Close everything."""
        self._close()
        self._loop.close()

    @property
    def services(self) -> Services:
        """What HTTP calls. The thread that would run the jobs does not run here."""
        return self._rooms.services

    @property
    def token(self) -> Token:
        """The token room."""
        return self._rooms.token

    def call(self, api_key: str, method: str, path: str, json: Any = None, **headers: str) -> httpx.Response:
        """A call of the key API by the owner of an API key, who logs in again when his token has ended."""
        headers = {
            "Authorization": f"Bearer {self._token_of(api_key)}",
            "Bluemix-Instance": self.state.instance_id,
            **headers,
        }
        return self._send(method, f"/api/v2{path}", headers=headers, **({} if json is None else {"json": json}))

    def _open(self) -> None:
        self._environment.setenv("HSMKMS_STATE_DIR", str(self.state.path))
        # `load` names the token's configuration in the environment; afterwards it is as it was before.
        self._environment.setenv("SOFTHSM2_CONF", os.environ.get("SOFTHSM2_CONF", ""))
        settings = load()
        self._rooms = open_rooms(settings, pin_of(settings), clock=self.clock)
        self._rooms.deployment.require_founded()
        app = create_app(self._rooms.services)
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    def _close(self) -> None:
        self._loop.run(self._http.aclose())
        self._rooms.close.close()
        self._environment.undo()

    def _token_of(self, api_key: str) -> str:
        known = self._access.get(api_key)
        if known is None or self.clock() >= known[1] + _TOKENS_LAST:
            answer = self._send("POST", "/identity/token", data={"grant_type": GRANT, "apikey": api_key})
            assert answer.status_code == 200, answer.text
            known = self._access[api_key] = (str(answer.json()["access_token"]), self.clock())
        return known[0]

    def _send(self, method: str, path: str, **parts: Any) -> httpx.Response:
        return self._loop.run(self._http.request(method, path, **parts))


START = datetime(2040, 2, 28, 23, 59, 59, 250_000, tzinfo=UTC)
"""Where tests begin: not on a whole second, and before the end of a leap year's February."""
