"""The one table of faults."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tests.faults.places import CALL_TIMEOUT_S, Place
from tests.support.caller import WITH_TOKEN, WRITE, Call
from tests.support.injector import Injector

CRYPTO: Final = ("C_WrapKey", "C_UnwrapKey")
IN_SESSION: Final = (*CRYPTO, "C_CreateObject")


class While(Enum):
    """What clients may expect while a fault lasts."""

    AWAY = "what needs the token is refused at once, /readyz is red, everything else goes on"
    REFUSED = "everything that is audited is refused"
    NEARLY_REFUSED = "the same, but for records that fit into what is left of a block"
    WRITES_FAIL = "what changes something is refused, if the fault meets it; everything else goes on"
    SOME = "some are answered, rightly"
    ANYTHING = "no promise but that nothing is wrong or lost"


@dataclass(frozen=True)
class Fault:
    """`begin` and `cure` are handed a service under load. `back_within_s` is from the cure to the first success,
    `doubt_s` for how long after it nobody is told that a ciphertext is bad (503 instead of 422), because the device
    gave a code that means either; until `known_after_s` after its beginning single calls find it out; `lines` are those
    of the log, one a worker and change of state. With `cure_stops` the service is stopped for
    the cure, so that nobody is answered from its beginning on."""

    name: str
    place: str
    begin: Callable[[Place], None]
    cure: Callable[[Place], None]
    meanwhile: While = While.SOME
    back_within_s: float = 2.0
    doubt_s: float = 0.0
    seconds: float = 1.5
    known_after_s: float = 0.3
    changes: int = 1
    lines: tuple[str, ...] = ()
    cure_stops: bool = False
    short: bool = False

    @property
    def stops_records(self) -> bool:
        """Whether 503 says that nothing can be recorded."""
        return self.meanwhile in (While.REFUSED, While.NEARLY_REFUSED)

    def stops(self, call: Call) -> bool:
        """Whether a call is one that the fault stops."""
        if self.meanwhile is While.WRITES_FAIL:
            return call.action in WRITE
        return call.action in WITH_TOKEN if self.meanwhile is While.AWAY else True


def _injector(place: Place) -> Injector:
    assert place.injector is not None
    return place.injector


def _well(place: Place) -> None:
    _injector(place).cure()


_TOKEN_LINES: Final = ("the token does not answer", "the token answers again")


SLOW_MS: Final = 1_500


def _slow_to_say(name: str, *, place: str, short: bool = False) -> Fault:
    """A token whose client waits for the network before each failure: the call that waits at the cure waits on."""

    def begin(here: Place) -> None:
        _injector(here).fail("*", code=0x30, wait_ms=SLOW_MS)

    return Fault(
        name,
        place,
        begin,
        _well,
        While.AWAY,
        back_within_s=2 + SLOW_MS / 1_000,
        seconds=7,
        known_after_s=4,
        lines=_TOKEN_LINES,
        short=short,
    )


def _token(name: str, functions: tuple[str, ...], code: int, *, short: bool = False) -> Fault:
    """A token whose functions all fail with a code."""

    def begin(place: Place) -> None:
        _injector(place).fail(*functions, code=code)

    return Fault(name, "token", begin, _well, While.AWAY, lines=_TOKEN_LINES, short=short)


GENERAL_ERROR: Final = 0x05
IN_DOUBT_S: Final = 10.0


def _now_and_then(name: str, functions: tuple[str, ...], code: int, every: int, *, short: bool = False) -> Fault:
    def begin(place: Place) -> None:
        _injector(place).fail(*functions, code=code, every=every)

    return Fault(name, "token", begin, _well, doubt_s=IN_DOUBT_S if code == GENERAL_ERROR else 0.0, short=short)


def _slow(name: str, wait_ms: int, *, place: str = "token", short: bool = False) -> Fault:
    def begin(here: Place) -> None:
        _injector(here).fail(*CRYPTO, wait_ms=wait_ms)

    return Fault(name, place, begin, _well, short=short)


def _flapping(place: Place) -> None:
    """Away and back, five times."""
    for _ in range(5):
        _injector(place).fail("*", code=0x30)
        threading.Event().wait(0.2)
        _well(place)
        threading.Event().wait(0.2)


def _one_hangs(place: Place) -> None:
    """One call never returns; those after it do."""
    injector = _injector(place)
    injector.forget_waits()
    injector.fail("C_UnwrapKey", wait_ms=600_000)
    injector.wait_for_one()
    injector.cure()


def _all_hang(place: Place) -> None:
    _injector(place).fail(*CRYPTO, wait_ms=600_000)


def _nothing(_: Place) -> None:
    """There is nothing to cure."""


def _kill_one(place: Place) -> None:
    os.kill(place.service.workers()[0], signal.SIGKILL)


def _stop_one(place: Place) -> None:
    """A worker that stands still, as one on a host that swaps."""
    os.kill(place.service.workers()[0], signal.SIGSTOP)


def _kill_all(place: Place) -> None:
    place.service.kill()


def _start(place: Place) -> None:
    place.service.start()


def _fill_audit(place: Place) -> None:
    assert place.audit_full is not None
    place.audit_full.fill()


def _empty_audit(place: Place) -> None:
    assert place.audit_full is not None
    place.audit_full.make_room()


def _fail_audit(place: Place) -> None:
    assert place.audit_fails is not None
    place.audit_fails.fail()


def _repair_audit(place: Place) -> None:
    assert place.audit_fails is not None
    place.audit_fails.repair()


def _fill_database(place: Place) -> None:
    assert place.database_full is not None
    place.database_full.fill()


def _empty_database(place: Place) -> None:
    assert place.database_full is not None
    place.database_full.make_room()


def _fail_database(place: Place) -> None:
    assert place.database_fails is not None
    place.database_fails.fail()


def _repair_database(place: Place) -> None:
    """SQLite's files stay open, so no disk can be checked under them: for this fault alone the service is stopped."""
    assert place.database_fails is not None
    place.service.stop()
    place.database_fails.repair()
    place.service.start()


def _set_clock(hours: int) -> Callable[[Place], None]:
    def act(place: Place) -> None:
        assert place.clock is not None
        place.clock.write_text(f"{hours:+d}h")

    return act


def _halt(mode: str) -> Callable[[Place], None]:
    def act(place: Place) -> None:
        assert place.primary is not None
        place.primary.halt(mode)

    return act


def _start_database(place: Place) -> None:
    assert place.primary is not None
    place.primary.start_again()


def _restart_database(place: Place) -> None:
    _halt("fast")(place)
    _start_database(place)


def _freeze(place: Place) -> None:
    assert place.primary is not None
    place.primary.freeze()


def _thaw(place: Place) -> None:
    assert place.primary is not None
    place.primary.thaw()


def _halt_standby(place: Place) -> None:
    assert place.standby is not None
    place.standby.halt()


def _start_standby(place: Place) -> None:
    assert place.standby is not None
    place.standby.start_again()


def _promote(place: Place) -> None:
    assert place.standby is not None
    place.standby.promote()


def _fill_postgresql(place: Place) -> None:
    assert place.database_full is not None
    assert place.primary is not None
    place.database_full.fill()


def _empty_postgresql(place: Place) -> None:
    """Room is made; and a server that gave up is started again, as its supervisor does."""
    assert place.database_full is not None
    assert place.primary is not None
    place.database_full.make_room()
    if not place.primary.answers:
        place.primary.start_again()


FAULTS: Final = (
    _token("device error", ("*",), 0x30, short=True),
    _token("device removed", ("*",), 0x32),
    _token("token not present", ("*",), 0xE0),
    _token("general error", ("*",), 0x05, short=True),
    _token("function failed", ("*",), 0x06),
    _token("out of device memory", ("*",), 0x31),
    _token("cryptoki not initialised", ("*",), 0x190, short=True),
    _token("sessions invalid", IN_SESSION, 0xB3, short=True),
    _token("no session can be opened", (*IN_SESSION, "C_OpenSession"), 0xB1),
    _token("login lost", IN_SESSION, 0x101, short=True),
    _token("log-in fails", (*IN_SESSION, "C_Login"), 0x30),
    _token("handles stale", CRYPTO, 0x60, short=True),
    _token("handles stale (SoftHSM's codes)", CRYPTO, 0x113),
    _token("crypto alone: device error", CRYPTO, 0x30),
    _token("crypto alone: general error", CRYPTO, 0x05),
    _slow_to_say("device error after 1.5 s", place="token", short=True),
    _now_and_then("each 7th crypto call: device error", CRYPTO, 0x30, 7),
    _now_and_then("each 7th crypto call: general error", CRYPTO, GENERAL_ERROR, 7, short=True),
    _now_and_then("each 7th crypto call: session invalid", CRYPTO, 0xB3, 7),
    _now_and_then("each 7th crypto call: handle stale", CRYPTO, 0x60, 7),
    _now_and_then("each 3rd call of any function: device error", ("*",), 0x30, 3),
    Fault("flapping: away and back 5 times in 2 s", "token", _flapping, _nothing, changes=5, seconds=0, short=True),
    _slow("each crypto call takes 20 ms", 20),
    _slow("each crypto call takes 300 ms", 300, short=True),
    Fault(
        "one call never returns",
        "token",
        _one_hangs,
        _nothing,
        back_within_s=15,
        seconds=2 * CALL_TIMEOUT_S,
        lines=("the token hangs",),
        short=True,
    ),
    Fault("no call returns", "token", _all_hang, _well, While.ANYTHING, back_within_s=30, seconds=3),
    Fault("a worker is killed", "token", _kill_one, _nothing, back_within_s=5, seconds=0, short=True),
    Fault("a worker stands still", "token", _stop_one, _nothing, back_within_s=90, seconds=0),
    Fault("all are killed, and started again", "token", _kill_all, _start, While.ANYTHING, 30, seconds=0.2, short=True),
    _slow("network HSM: each crypto call takes 300 ms", 300, place="network token"),
    _slow_to_say("network HSM: device error after 1.5 s", place="network token"),
    Fault(
        "network HSM: one call never returns",
        "network token",
        _one_hangs,
        _nothing,
        back_within_s=15,
        seconds=3,
        lines=("the token hangs",),
    ),
    Fault(
        "audit disk full",
        "audit full",
        _fill_audit,
        _empty_audit,
        While.NEARLY_REFUSED,
        changes=5,
        lines=("audit events cannot be written", "audit events are written again"),
        short=True,
    ),
    Fault(
        "audit disk fails: read-only",
        "audit fails",
        _fail_audit,
        _repair_audit,
        While.REFUSED,
        lines=("audit events cannot be written", "audit events are written again"),
        short=True,
    ),
    Fault("SQLite's disk full", "sqlite full", _fill_database, _empty_database, While.WRITES_FAIL, short=True),
    Fault(
        "SQLite's disk fails: read-only",
        "sqlite fails",
        _fail_database,
        _repair_database,
        While.WRITES_FAIL,
        back_within_s=30,
        cure_stops=True,
    ),
    Fault("clock 3 h ahead", "clock", _set_clock(3), _set_clock(0), short=True),
    Fault("clock 3 h behind", "clock", _set_clock(-3), _set_clock(0)),
    Fault("PostgreSQL crashes, and is started", "postgresql", _halt("immediate"), _start_database, While.ANYTHING),
    Fault("PostgreSQL is restarted", "postgresql", _restart_database, _nothing, While.ANYTHING, seconds=0, short=True),
    Fault("PostgreSQL hangs", "postgresql", _freeze, _thaw, While.ANYTHING, seconds=3, short=True),
    Fault("PostgreSQL hangs for 20 s", "postgresql", _freeze, _thaw, While.ANYTHING, seconds=20),
    Fault("PostgreSQL's standby is away", "postgresql", _halt_standby, _start_standby, While.WRITES_FAIL, seconds=3),
    Fault(
        "PostgreSQL fails over to another port",
        "postgresql",
        _halt("immediate"),
        _promote,
        While.ANYTHING,
        short=True,
    ),
    Fault("PostgreSQL's disk full", "postgresql full", _fill_postgresql, _empty_postgresql, While.ANYTHING, 5),
)
"""In the order in which they are tried: a place that a failover changed for good is used by none after it."""
