"""The hot path in this process, from the bytes of requests to those of answers, without a socket; run in a deployment's
environment. Arguments: wrap or unwrap, how many turns of the loop, requests a turn.

Prints microseconds of processor time of one request, and of its parts room by room.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from hsmkms.api import hot
from hsmkms.api.app import create_app
from hsmkms.api.protocol import STOPPING, WARM, Protocol
from hsmkms.api.warm import WarmPath
from hsmkms.domain.access import Action
from hsmkms.domain.new_key import NewKey
from hsmkms.domain.secrets import SecretText
from hsmkms.service.acts import Act
from hsmkms.service.similar import Similar
from hsmkms.settings import load
from hsmkms.wiring import Rooms, open_rooms, pin_of
from scripts.benchmark.target import AAD, DEK

PART_CALLS: Final = 2_000
PART_ROUNDS: Final = 7


class _Socket(asyncio.Transport):
    """Counts what is written and wakes who waits for so many answers."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.last = b""
        self.answered = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.last = bytes(data)
        self.answered.set()

    def is_closing(self) -> bool:
        return False


@dataclass
class Path:
    """The rooms of one process, and a client that has shown its token before."""

    rooms: Rooms
    app: ASGIApp
    warm: WarmPath
    authorization: str
    instance_id: str
    key_id: str
    bodies: dict[str, bytes]

    def request(self, action: str) -> bytes:
        """One request as a client sends it."""
        body = self.bodies[action]
        head = (
            f"POST /api/v2/keys/{self.key_id}/actions/{action} HTTP/1.1\r\nHost: localhost:8800\r\n"
            f"Authorization: {self.authorization}\r\nBluemix-Instance: {self.instance_id}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def connection(self) -> tuple[Protocol, _Socket]:
        """A connection of the server, to a client that is not there."""
        config = uvicorn.Config(self.app, http=Protocol, access_log=False, log_level="warning", interface="asgi3")
        config.load()
        protocol, socket = Protocol(config, ServerState(), {STOPPING: asyncio.Event(), WARM: self.warm}), _Socket()
        protocol.connection_made(socket)
        return protocol, socket

    def connections(self, count: int) -> list[tuple[Protocol, _Socket]]:
        """So many, each for one request at a time. In a running loop."""
        return [self.connection() for _ in range(count)]

    async def turns(self, action: str, count: int, connections: Sequence[tuple[Protocol, _Socket]]) -> None:
        """A request on each connection, and their answers; again and again."""
        request = self.request(action)
        for _ in range(count):
            for protocol, socket in connections:
                socket.answered.clear()
                protocol.data_received(request)
            for _, socket in connections:
                await socket.answered.wait()
        if any(not socket.last.startswith(b"HTTP/1.1 200 ") for _, socket in connections):
            raise SystemExit("bench: a request was refused")


def open_path(rooms: Rooms) -> Path:
    """A key and a client in the deployment of the environment."""
    services = rooms.services
    lines = (load().state_dir / "client.env").read_text().splitlines()
    known = dict(line.removeprefix("IBM_KEY_PROTECT_API_").split("=", 1) for line in lines)
    instance_id = known["BLUEMIX_INSTANCE"]
    token = services.tokens.exchange_api_key(SecretText(known["APIKEY"]), "bench").access_token.reveal()
    authorization = f"Bearer {token}"
    caller = services.gate.callers.resolve(authorization, None)
    wish = NewKey("bench", None, (), (), extractable=False, expires_at=None)
    key = services.keys.create(caller, instance_id, None, wish).key
    # What the change feed says of the new key has to come before the key is remembered.
    services.snapshot.refresh()
    services.snapshot.load(instance_id, key.id)
    plain = {"plaintext": base64.b64encode(DEK).decode(), "aad": AAD}
    wrap = services.crypto.warm_wrap(caller, instance_id, key.id, None, DEK, AAD)
    assert wrap is not None, "the token answers too slowly to be called on the event loop"
    bodies = {"wrap": plain, "unwrap": {"ciphertext": wrap().ciphertext, "aad": AAD}}
    warm = WarmPath(services.crypto, services.tokens, services.gate, services.trail, services.clock)
    encoded = {action: json.dumps(body).encode() for action, body in bodies.items()}
    return Path(rooms, create_app(services), warm, authorization, instance_id, key.id, encoded)


def parts(path: Path, action: str) -> dict[str, float]:
    """Microseconds of the share of each room in a request, each alone, so with warmer caches than in the whole."""
    services = path.rooms.services
    headers = [(b"authorization", path.authorization.encode()), (b"bluemix-instance", path.instance_id.encode())]
    headers.append((b"content-length", b"%d" % len(path.bodies[action])))
    url = f"/api/v2/keys/{path.key_id}/actions/{action}".encode()
    caller = services.gate.callers.resolve(path.authorization, None)
    act = Act(hot.ACTIONS[action].value, path.key_id, url.decode(), "127.0.0.1", caller, instance_id=path.instance_id)
    key = services.snapshot.remembered(path.instance_id, path.key_id)
    assert key is not None
    act.key, act.version_id = key, key.current.id
    token, version = path.rooms.token, key.current
    sealed = token.seal(version, DEK, AAD)
    offer = json.loads(path.bodies["unwrap"])["ciphertext"]
    decide: dict[str, Callable[[], object]] = {
        "wrap": lambda: services.crypto.warm_wrap(caller, path.instance_id, path.key_id, None, DEK, AAD),
        "unwrap": lambda: services.crypto.warm_unwrap(caller, path.instance_id, path.key_id, None, offer, AAD),
    }
    on_token: dict[str, Callable[[], object]] = {
        "wrap": lambda: token.seal(version, DEK, AAD),
        "unwrap": lambda: token.open(version, version.id, sealed, AAD),
    }
    permit = Action.KEY_WRAP if action == "wrap" else Action.KEY_UNWRAP
    similar, request = Similar(), path.request(action)
    found = path.warm.prepare(url, headers, path.bodies[action], "127.0.0.1", None)
    opening = None if found is None else found[1]
    assert opening is not None, "the short way is not open"
    path.warm.remember(request, None, opening)
    return {
        "iam: token known": _each_us(lambda: services.gate.callers.known(path.authorization, None)),
        "iam: gate": _each_us(lambda: services.gate.admit(caller, permit, path.instance_id, "127.0.0.1")),
        "service: decide": _each_us(decide[action]),
        "token": _each_us(on_token[action]),
        "audit: event": _each_us(lambda: services.trail.outcome(act, 200)),
        "audit: event like the one before": _each_us(lambda: services.trail.outcome(act, 200, similar)),
        "api: the same head again": _each_us(lambda: path.warm.again(request, "127.0.0.1", None)),
        "api: all of prepare": _each_us(
            lambda: path.warm.prepare(url, headers, path.bodies[action], "127.0.0.1", None)
        ),
    }


def _each_us(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(PART_ROUNDS):
        started = time.process_time()
        for _ in range(PART_CALLS):
            call()
        best = min(best, (time.process_time() - started) / PART_CALLS * 1e6)
    return best


async def _whole_us(path: Path, action: str, count: int, at_once: int) -> float:
    connections = path.connections(at_once)
    await path.turns(action, 20, connections)
    started = time.process_time()
    await path.turns(action, count, connections)
    return (time.process_time() - started) / count / at_once * 1e6


def main() -> None:
    """Print a line of JSON."""
    action, count, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    with rooms.close:
        path = open_path(rooms)
        with asyncio.Runner() as runner:
            whole = runner.run(_whole_us(path, action, count, at_once))
        print(json.dumps({"whole": whole, **parts(path, action)}))


if __name__ == "__main__":
    main()
