"""What nodes tell each other of audit logs, on both databases."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from hsmkms.audit.witness import HEADS_TOLD
from hsmkms.clock import system_clock
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.engine import Database

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)


@pytest.fixture
def heads(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AuditHeadStore]:
    url = f"sqlite:///{tmp_path / 'heads.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"heads{uuid.uuid4().hex}")
    opened = Database(url)
    opened.migrate()
    yield AuditHeadStore(opened)
    opened.close()


def test_a_head_gives_way_to_what_is_known_to_follow_only(heads: AuditHeadStore) -> None:
    now = system_clock()
    assert heads.put("one", 5, A, now, closed=False)
    assert heads.put("one", 5, A, now, closed=False)
    # Longer, and nobody says that it holds the record that was seen.
    for before in ({}, {4: A}, {5: B}):
        assert not heads.put("one", 9, C, now, closed=False, before=before)
    assert heads.known("one") == ("one", 5, A, False)
    assert heads.put("one", 9, C, now, closed=True, before={2: B, 5: A})
    # Nothing follows on one that is closed.
    assert not heads.put("one", 12, B, now, closed=True, before={9: C})
    assert heads.all() == [("one", 9, C, True)]
    assert heads.known("two") is None


def test_new_heads_are_told_though_a_clock_was_set_back(heads: AuditHeadStore) -> None:
    now = system_clock()
    for number in range(HEADS_TOLD):
        heads.put(f"old-{number}", 5, A, now + timedelta(hours=3), closed=True)
    heads.put("new", 1, B, now, closed=False)
    assert heads.newest(HEADS_TOLD)[0][0] == "new"
    heads.put("newer", 1, B, now, closed=False)
    heads.put("new", 2, C, now, closed=False, before={1: B})
    assert [log for log, *_ in heads.newest(2)] == ["new", "newer"]
