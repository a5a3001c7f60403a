"""The fault bench: every fault of the catalogue, under load. Nothing is wrong, nothing is lost, nothing is restarted.

Wrong is a plaintext that differs, a refusal of something good that is no 503 with Retry-After, and an answer to what
has to be refused. Lost is a key, rotation or deletion that a caller was told of and that is gone afterwards, and an
answer without its audit record. `make test-faults` runs all; without it those marked as short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.faults import places
from tests.faults.catalogue import FAULTS, Fault, While
from tests.faults.conftest import ROWS
from tests.faults.places import Place
from tests.faults.rows import Row
from tests.support.audited import unrecorded
from tests.support.caller import Call
from tests.support.deployment import State
from tests.support.injector import Injector

pytestmark = pytest.mark.alone

REFUSED_WITHIN_S = 0.05
ALL_WELL_S = 1.0
"""From the first success to the last client that is served."""


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, seed_state: State, injector_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place | str]:
    """A service under load, or why there can be none here."""
    name = str(request.param)
    directory = tmp_path_factory.mktemp(name.replace(" ", "-"))
    state = seed_state.copy_to(directory / "state")
    injector = Injector(injector_library, directory / "faults")
    injector.cure()
    made: dict[str, AbstractContextManager[Place]] = {
        "token": places.token_place(state, injector),
        "network token": places.network_token_place(state, injector),
        "audit full": places.audit_place(state, directory, fails=False),
        "audit fails": places.audit_place(state, directory, fails=True),
        "sqlite full": places.sqlite_place(state, directory, fails=False),
        "sqlite fails": places.sqlite_place(state, directory, fails=True),
        "clock": places.clock_place(state, directory),
        "postgresql": places.postgresql_place(state),
        "postgresql full": places.postgresql_disk_place(state),
    }
    try:
        here = made[name].__enter__()
    except pytest.skip.Exception as why:
        yield str(why)
        return
    yield here
    made[name].__exit__(None, None, None)


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        pytest.param(fault.place, fault, id=fault.name, marks=[] if fault.short else [pytest.mark.slow])
        for fault in FAULTS
    ],
    indirect=["place"],
    scope="module",
)
def test_fault(place: Place | str, fault: Fault, request: pytest.FixtureRequest) -> None:
    row = Row(fault.name)
    request.config.stash[ROWS].append(row)
    if isinstance(place, str):
        row.skipped = place
        pytest.skip(place)
    load, log = place.load, place.service.log
    bound_s = fault.back_within_s + fault.doubt_s + ALL_WELL_S
    load.go_on()
    load.wait_until_well(time.monotonic(), 60)
    known, wrong, logged = len(load.calls), len(load.wrong), log.stat().st_size
    began, until, cured = time.monotonic(), math.inf, math.inf
    try:
        fault.begin(place)
        watch(place, fault, began)
        until = time.monotonic()
        fault.cure(place)
        cured = time.monotonic()
        if not fault.cure_stops:
            until = cured
        first = load.first(lambda call: call.good and fault.stops(call), cured, fault.back_within_s + 10)
        row.back_s = first.ended - cured
        well = load.wait_until_well(cured, fault.back_within_s + fault.doubt_s + 10)
    finally:
        load.stop()
        calls = [call for call in load.calls[known:] if call.ended >= began]
        row.count(calls)
        row.describe([call for call in calls if fault.stops(call) and call.began <= until])
        row.wrong = load.wrong[wrong:]
    place.service.wait_until_all_serve(max(0.0, cured + bound_s - time.monotonic()))
    row.lost = [*load.lost(), *unrecorded(calls, [place.audit], refusals_too=not fault.stops_records)]
    assert row.wrong == []
    assert row.lost == []
    assert row.back_s < fault.back_within_s
    assert well - cured < bound_s
    judge(fault, [call for call in calls if began + fault.known_after_s <= call.began and call.ended <= until])
    said = log.read_bytes()[logged:].decode()
    for line in fault.lines:
        assert 1 <= said.count(line) <= fault.changes * places.WORKERS, said
    assert "internal error" not in said
    assert "Traceback" not in said


def watch(place: Place, fault: Fault, began: float) -> None:
    """While the fault lasts, look at what a supervisor and a load balancer look at."""
    url, until = place.service.url, began + fault.seconds
    asked = fault.meanwhile in (While.AWAY, While.REFUSED)
    while (left := until - time.monotonic()) > 0:
        if asked and time.monotonic() > began + fault.known_after_s:
            assert httpx.get(f"{url}/healthz").status_code == 200
            ready = httpx.get(f"{url}/readyz")
            part = "token" if fault.meanwhile is While.AWAY else "audit"
            assert (ready.status_code, ready.json()[part]) == (503, False)
        time.sleep(min(left, 0.2))


def judge(fault: Fault, calls: list[Call]) -> None:
    """Calls that began when the fault was known and ended before it was cured."""
    stopped = [call for call in calls if fault.stops(call)]
    if fault.meanwhile in (While.AWAY, While.REFUSED):
        assert stopped
        assert not any(call.good for call in stopped)
        # None of them tries the token; of a busy machine some are late.
        waits = sorted(call.took for call in stopped)
        assert waits[int(0.8 * len(waits))] < REFUSED_WITHIN_S
    if fault.meanwhile is While.NEARLY_REFUSED:
        assert sum(call.status == 503 for call in stopped) > 4 * sum(call.good for call in stopped)
    if fault.meanwhile in (While.AWAY, While.WRITES_FAIL):
        others = [call for call in calls if not fault.stops(call)]
        assert others
        assert all(call.good for call in others)
    if fault.meanwhile is While.SOME:
        assert any(call.good for call in stopped) or not stopped
