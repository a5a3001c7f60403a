"""What is asked for beside a journal's events, when it is late."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsmkms.audit import chain
from hsmkms.audit.signer import Signer
from hsmkms.clock import system_clock
from tests.support.journals import Deployment

HEAD = chain.Head("log", 7, "aa" * 32, closed=False)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


def test_what_is_signed_and_not_written_yet_is_not_asked_for_again(deployment: Deployment) -> None:
    """A log with two checkpoints of one record is taken for one that somebody changed."""
    signer = Signer(system_clock, lambda: None)
    signer.begin(HEAD.log)
    signer.witness = deployment.witness
    for _ in range(2):
        signer.ask(HEAD)
        signer.settle()
    assert len(list(signer.ready(HEAD.log))) == 1
    signer.ask(HEAD)
    signer.settle()
    assert len(list(signer.ready(HEAD.log))) == 1
    signer.close()
