"""How fast logs are verified, and that a sink that hangs slows nobody down: ratios of one run."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from hsmkms.audit import chain
from hsmkms.audit.event import encode
from hsmkms.audit.logfile import LogFile
from hsmkms.audit.verify import verify
from hsmkms.clock import system_clock
from tests.support.deployment import Service, State, create_key
from tests.support.journals import Deployment, event
from tests.support.receivers import Receiver

pytestmark = pytest.mark.alone

RECORDS = 200_000


def test_verify_keeps_up_with_hashing(tmp_path: Path) -> None:
    """One process, one log: at least a quarter as fast as a bare loop of SHA-256 over the lines of the same file, which
    is well over 100,000 records a second."""
    deployment = Deployment(tmp_path)
    log = "20260101T000000-node-00000000"
    opened = chain.Opened(log, "node", system_clock(), deployment.pem().decode())
    file = LogFile.create(tmp_path, log, msgspec.json.encode(opened))
    # As long as that of a wrap in a service.
    padded = encode(msgspec.structs.replace(event(0), message="x" * 700))
    for _ in range(RECORDS // 1_000):
        file.append([("event", padded)] * 1_000)
    file.close()
    # It closes the log that was left.
    journal = deployment.journal()
    journal.record_blocking(event(1))
    journal.close()
    ratios, rates = [], []
    for _ in range(3):
        began = time.perf_counter()
        with file.path.open("rb", buffering=1 << 20) as lines:
            for line in lines:
                hashlib.sha256(line).digest()
        bare_s = time.perf_counter() - began
        began = time.perf_counter()
        found, last = verify([tmp_path], deployment.public_key, {})
        verify_s = time.perf_counter() - began
        assert found.sound
        assert last.sound
        ratios.append(bare_s / verify_s)
        rates.append(found.records / verify_s)
    size = file.path.stat().st_size // found.records
    print(f"{max(rates):,.0f} records of {size} bytes a second, {max(ratios):.2f} of a bare loop of SHA-256")
    assert max(ratios) >= 0.25


def test_a_hanging_sink_slows_nobody(state: State) -> None:
    """Wraps of the same service before and while its sink hangs, in turns."""
    with Receiver() as receiver:
        sinks = json.dumps([{"kind": "http", "url": receiver.url}])
        with Service(state, HSMKMS_AUDIT_SINKS=sinks) as service, service.client() as client:
            key = create_key(client)
            wraps(client, key)
            taking, hanging = [], []
            for _ in range(5):
                receiver.mode = "take"
                taking.append(wraps(client, key))
                receiver.mode = "hang"
                hanging.append(wraps(client, key))
                receiver.release()
            ratio = statistics.median(taking) / statistics.median(hanging)
            print(f"{statistics.median(taking) * 1e3:.0f} ms with a sink that takes, ratio {ratio:.2f} when it hangs")
            assert ratio > 0.7


def wraps(client: httpx.Client, key: str) -> float:
    """Seconds for some."""
    began = time.perf_counter()
    for _ in range(200):
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
    return time.perf_counter() - began
