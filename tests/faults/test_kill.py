"""kill -9 of the whole service during creates and rotates loses no key that a caller was told about.

The design's promise ("Database and token together"): the token object is made first, then the row is committed, and a
crash at any point in between leaves a pending row that `hsmkms doctor --repair` settles.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from tests.faults.ledger import KnownKey, Ledger
from tests.support.deployment import Service, State

CLIENTS = 4
STREAM_S = 60
LATEST_KILL_S = 0.05
"""A create or rotate takes a few milliseconds, so a kill within this time hits each of its steps alike."""


class Stream:
    """Client threads that create, rotate and wrap until the service is killed under them."""

    def __init__(self, service: Service, ledger: Ledger) -> None:
        self._service = service
        self._ledger = ledger
        self._killed = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._send) for _ in range(CLIENTS)]

    def kill_after(self, operations: int, delay_s: float) -> None:
        """Run until `operations` more were answered and `delay_s` passed, then kill in the middle of what follows."""
        wanted = self._ledger.confirmed + operations
        for thread in self._threads:
            thread.start()
        try:
            self._ledger.wait_for(wanted, lambda: not self._failures, STREAM_S)
            # Not a wait for anything: the random moment itself.
            time.sleep(delay_s)
        finally:
            self._killed.set()
            self._service.kill()
            for thread in self._threads:
                thread.join()
            for failure in self._failures:
                raise failure

    def _send(self) -> None:
        try:
            with self._service.client() as client:
                while True:
                    self._live(client)
        except httpx.TransportError as error:
            if not self._killed.is_set():
                self._fail(error)
        except BaseException as error:
            self._fail(error)

    def _live(self, client: httpx.Client) -> None:
        """One key's life: older ciphertexts have to be there when it is rotated, and newer ones when it is killed."""
        key: KnownKey = self._ledger.create(client)
        self._ledger.wrap(client, key)
        self._ledger.rotate(client, key)
        self._ledger.wrap(client, key)

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)
        self._ledger.wake()


@pytest.mark.parametrize(
    ("kills", "operations"),
    [(5, 125), pytest.param(20, 500, marks=pytest.mark.slow)],
    ids=["5 kills", "20 kills"],
)
def test_no_key_is_lost(state: State, run_service: Callable[..., Service], kills: int, operations: int) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger = Ledger()
    for _ in range(kills):
        service = run_service(state)
        ledger.check(service)
        Stream(service, ledger).kill_after(operations // kills, chance.uniform(0, LATEST_KILL_S))
    assert ledger.confirmed >= operations
    _settle(state)
    ledger.check(run_service(state))


def _settle(state: State) -> None:
    """What the kills left is pending at most, `--repair` settles all of it, and nothing is wrong afterwards."""
    left = _wrong(state, "doctor")
    assert {line.split()[1] for line in left} <= {"pending"}, left
    print(f"{len(left)} pending objects were left")
    repaired = state.run("doctor", "--repair", "--pending-older-than", "0")
    assert repaired.returncode == 0, repaired.stdout.decode()
    assert repaired.stdout.decode().count(" settled: ") == len(left)
    healthy = state.run("doctor")
    assert healthy.returncode == 0, healthy.stdout.decode()
    assert "WRONG" not in healthy.stdout.decode()


def _wrong(state: State, *arguments: str) -> list[str]:
    done = state.run(*arguments)
    assert done.stderr == b"", done.stderr.decode()
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("WRONG")]
    assert done.returncode == bool(lines)
    return lines
