"""Where the database is: SQLAlchemy's form, and libpq's with several hosts."""

from __future__ import annotations

import pytest

from hsmkms.errors import StoreRefused
from hsmkms.store.postgresql import make_engine, make_url


def connection_of(url: str) -> dict[str, object]:
    """What libpq is told."""
    made = make_url(url)
    arguments, named = make_engine(made).dialect.create_connect_args(made.set(drivername="postgresql+psycopg"))
    assert arguments == []
    return {name: named[name] for name in ("user", "password", "host", "port", "dbname") if name in named}


def test_several_hosts() -> None:
    url = "postgresql://kms:p%40ss@one:5433,[fd00::1]:6000,three/name?target_session_attrs=read-write"
    assert make_url(url).query["target_session_attrs"] == "read-write"
    assert connection_of(url) == {
        "user": "kms",
        "password": "p@ss",
        "host": "one,fd00::1,three",
        "port": "5433,6000,5432",
        "dbname": "name",
    }


def test_one_host() -> None:
    assert connection_of("postgresql://kms@one:5433/name") == {
        "user": "kms",
        "host": "one",
        "port": 5433,
        "dbname": "name",
    }


@pytest.mark.parametrize("url", ["nonsense", "postgresql://u:secret@h:x/n", "postgresql://u:secret@h:1,h:x/n"])
def test_what_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(StoreRefused) as refused:
        make_url(url)
    assert "secret" not in str(refused.value)
