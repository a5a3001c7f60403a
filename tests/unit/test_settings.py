"""What a backup keeps of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsmkms.settings import load
from hsmkms.store.postgresql import make_url


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of whoever runs the tests."""
    monkeypatch.setenv("HSMKMS_STATE_DIR", str(tmp_path))


def kept_of(url: str) -> str:
    """`url` as it is in a backup."""
    return str(load(database_url=url).without_secrets()["database_url"])


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////srv/kms.db",
        "sqlite:///kms.db",
        "sqlite:////srv/a:b@c#d.db",
        "sqlite:///file:/srv/kms.db?uri=true&mode=rwc",
        "postgresql:///kms?host=/run/postgresql",
        "postgresql:///kms?host=%2Frun%2Fpostgresql&user=a@b",
        "postgresql://kms@[fd00::1]:5432/kms?options=-c%20search_path%3Dkms",
        "postgresql://kms@one:5432,two:5432/kms?target_session_attrs=read-write&user=a@b",
        "postgresql://one:5432,two:5432/kms?application_name=a@b",
    ],
)
def test_a_database_url_without_password_is_kept_as_it_is(url: str) -> None:
    assert kept_of(url) == url


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://kms:secret@db:5432/kms", "postgresql://kms@db:5432/kms"),
        ("postgresql://:secret@db/kms", "postgresql://db/kms"),
        ("postgresql://kms:sec/r:et?#@db/kms", "postgresql://kms@db/kms"),
        ("postgresql://kms@server:sec/ret@db/kms", "postgresql://kms@server@db/kms"),
        ("postgresql://kms:sec:ret@one,two:5432/kms?user=a@b", "postgresql://kms@one,two:5432/kms?user=a@b"),
        ("postgresql:///kms?host=/run&password=secret", "postgresql:///kms?host=/run"),
        ("postgresql://db/kms?p%61ssword=secret", "postgresql://db/kms"),
        ("postgresql://db/kms?sslpassword=secret&sslkey=/a.key", "postgresql://db/kms?sslkey=/a.key"),
    ],
)
def test_a_backup_holds_no_password_of_the_database(url: str, kept: str) -> None:
    assert kept_of(url) == kept
    # Where the service finds the database with a password, it finds it without.
    before, after = make_url(url), make_url(kept)
    assert (before.host, before.port, before.database) == (after.host, after.port, after.database)
