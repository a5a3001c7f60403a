"""A token for each test, a plan for it, and people with answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.ceremony import plan as plans
from hsmkms.ceremony import run
from hsmkms.ceremony.bundle import Destination
from hsmkms.ceremony.making import Means
from hsmkms.ceremony.record import Step
from hsmkms.ceremony.screen import Console
from hsmkms.domain.secrets import SecretText
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
from tests.ceremony.plans import CUSTODIANS, plan_text
from tests.support.deployment import State
from tests.support.injector import MODULE

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LEADER = "Lea Lindqvist"
WITNESSES = ("Wim Weber", "Wanda Wójcik")


@dataclass
class Table:
    """A ceremony of one plan on one token, which can be held again and again as after power cuts."""

    state: State
    pool: SessionPool
    token: Token
    plan: Path
    record: Path

    def hold(
        self,
        console: Console,
        *,
        rehearsal: bool = False,
        sheets: Path | None = None,
        destination: Destination | None = None,
    ) -> Step:
        """Hold it, or go on."""
        means = Means(self.record, sheets, destination, locked=True)
        return run.hold(plans.read(self.plan), self.token, means, console, lambda: NOW, rehearsal=rehearsal)

    def write_plan(self, **members: object) -> None:
        """Another plan for this token."""
        self.plan.write_text(plan_text(serial=self.token.info.serial, **members))  # type: ignore[arg-type]

    def answers(
        self, custodians: dict[str, list[str]], *, leader: list[str] | None = None, absent: tuple[str, ...] = ()
    ) -> dict[str, list[str]]:
        """What everybody answers: `custodians` and `leader` beside what is asked in every ceremony."""
        digits = hashlib.sha256(self.plan.read_bytes()).hexdigest()[:8]
        people = plans.read(self.plan).plan.people.custodians
        return {
            LEADER: [digits, LEADER, *(["yes"] if leader is None else leader)],
            **{witness: [witness, witness] for witness in WITNESSES},
            **{who: ["" if who in absent else who, *custodians.get(who, [])] for who in people},
        }

    def key_ids(self) -> list[str]:
        """Version ids of the root keys on the token."""
        return [key.version_id for key in self.token.list_keys()]


@pytest.fixture
def table(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """A SoftHSM token and a 3-of-5 plan for it."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    address = TokenAddress(MODULE, "hsmkms", None)
    pool = SessionPool(address, SecretText(state.pin), size=2, wait_s=5, recycle_after=100_000)
    token = Token(pool)
    made = Table(state, pool, token, tmp_path / "plan.toml", tmp_path / "record.jsonl")
    made.write_plan()
    for version_id in made.key_ids():
        token.destroy_key(version_id)
    yield made
    pool.close()


__all__ = ["CUSTODIANS", "LEADER", "NOW", "WITNESSES", "Table"]
