"""Every form of a list over HTTP with 100,000 keys in one instance and 20,000 in another, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hsmkms.domain.query import DATE_PROPS, SORT_PROPS
from scripts.benchmark.target import Deployment
from tests.support.postgresql import PostgresServer

MANY, FEW = 100_000, 20_000
LIMIT_MS: Final = 100.0
RUNS: Final = 7
ALL: Final = "state=0,1,2,3,5"
EVERYTHING: Final = "whole instance"
CALLERS: Final = ("one small ring", "one large ring", "49 rings")
SORTS: Final = (
    "-extractable,state,-lastUpdateDate",
    "imported,-creationDate",
    "lastRotateDate,-expirationDate,state",
    "-deletionDate,lastRotateDate,id",
)
_DAY: Final = timedelta(days=1)

Times = dict[str, list[float]]


@dataclass(frozen=True)
class Query:
    """A request: who asks, with which method, for what. `place` is the share of all that match before the page."""

    caller: str
    method: str
    path: str
    place: float = 0.0

    @property
    def name(self) -> str:
        """As the table shows it."""
        where = {0.0: "", 0.5: ", middle page", 1.0: ", last page"}[self.place]
        who = "" if self.caller == EVERYTHING else f"{self.caller}: "
        return f"{who}{self.method} {unquote(self.path)}{where}"


def measure(place: Path, runs: int) -> dict[str, Times]:
    """Fill one deployment for each database and ask each query `runs` times in turns; milliseconds, printed too."""
    now = datetime.now(UTC)
    with ExitStack() as stack:
        server = PostgresServer.start()
        stack.callback(server.stop)
        url = server.new_database("lists")
        services = {"SQLite": Deployment(place / "sqlite")}
        services["PostgreSQL"] = Deployment(place / "postgresql", HSMKMS_DATABASE_URL=url)
        found = {}
        for name, service in services.items():
            filled = json.loads(service.run_module("scripts.benchmark.many_keys", str(MANY), str(FEW)))
            if name == "PostgreSQL":
                _settle(url)
            with service:
                found[name] = _ask(service, filled, now, runs)
    _print(found)
    return found


def _settle(url: str) -> None:
    """What autovacuum does within a minute or two of so many inserts."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def _ask(service: Deployment, filled: dict[str, str], now: datetime, runs: int) -> Times:
    """The middle and last page are found by asking how many there are."""
    times: Times = {}
    with ExitStack() as stack:
        clients = {EVERYTHING: stack.enter_context(service.client())}
        clients |= {name: stack.enter_context(service.client(filled[name])) for name in CALLERS}
        requests = []
        for query in _queries(filled["rotated key"], now):
            path = query.path
            if query.place:
                probe = clients[query.caller].get(f"{path}&limit=1&totalCount=true").json()
                offset = max(0, int((probe["metadata"]["totalCount"] - 200) * query.place))
                path = f"{path}&offset={offset}"
            requests.append((query, path))
        for _ in range(runs):
            for query, path in requests:
                started = time.perf_counter()
                answer = clients[query.caller].request(query.method, path)
                spent_ms = (time.perf_counter() - started) * 1e3
                if answer.status_code not in (200, 400):
                    raise SystemExit(f"bench: {query.name} was refused\n{answer.text}")
                times.setdefault(query.name, []).append(spent_ms)
    return times


def _queries(rotated: str, now: datetime) -> Iterator[Query]:
    for path in ("/keys", "/keys?totalCount=true", f"/keys?{ALL}", f"/keys?{ALL}&totalCount=true"):
        yield Query(EVERYTHING, "GET", path)
    for path in ("/keys?totalCount=false", "/keys?totalCount=true", f"/keys?{ALL}&totalCount=true"):
        yield from _pages(EVERYTHING, path)
    for states in ("state=1", "state=2", "state=3", "state=5", "state=0", "state=1,5&extractable=true"):
        yield Query(EVERYTHING, "GET", f"/keys?{states}&totalCount=true", 1.0)
    for prop in (*SORT_PROPS, *(f"-{prop}" for prop in SORT_PROPS)):
        yield from _pages(EVERYTHING, f"/keys?{ALL}&sort={prop}")
    for sort in SORTS:
        yield from _pages(EVERYTHING, f"/keys?{ALL}&sort={sort}")
        yield Query(EVERYTHING, "GET", f"/keys?totalCount=true&sort={sort}", 0.5)
    for terms in _filters(now):
        yield Query(EVERYTHING, "GET", f"/keys?{terms}&totalCount=true")
        yield Query(EVERYTHING, "GET", f"/keys?{terms}&totalCount=true&sort=-lastUpdateDate", 0.5)
        yield Query(EVERYTHING, "HEAD", f"/keys?{terms}")
    for path in ("/keys", f"/keys?{ALL}", "/keys?extractable=false"):
        yield Query(EVERYTHING, "HEAD", path)
    yield from _searches()
    for caller in CALLERS:
        yield Query(caller, "GET", "/keys")
        yield from _pages(caller, f"/keys?{ALL}&totalCount=true")
        yield from _pages(caller, f"/keys?{ALL}&totalCount=true&sort=-lastRotateDate,state")
        yield Query(caller, "GET", f"/keys?{next(_filters(now))}&totalCount=true", 0.5)
        yield Query(caller, "HEAD", "/keys")
    yield Query(EVERYTHING, "GET", f"/keys/{rotated}/versions?totalCount=true")
    yield Query(EVERYTHING, "GET", f"/keys/{rotated}/versions?offset=200")
    yield Query(EVERYTHING, "GET", "/key_rings?totalCount=true")
    yield Query("49 rings", "GET", f"/keys/{rotated}/versions")
    for path in ("/keys?limit=5000", f"/keys?{ALL}&limit=5000&sort=-lastUpdateDate&totalCount=true"):
        yield Query(EVERYTHING, "GET", path)


def _pages(caller: str, path: str) -> Iterator[Query]:
    for place in (0.0, 0.5, 1.0):
        yield Query(caller, "GET", path, place)


def _filters(now: datetime) -> Iterator[str]:
    """The whole grammar over every date: half of the keys, few, those without, and terms together."""

    def day(days: int) -> str:
        return f'"{(now + days * _DAY).strftime("%Y-%m-%dT%H:%M:%SZ")}"'

    half = {"creationDate": -590, "deletionDate": -40, "expirationDate": 200, "lastRotateDate": -10}
    for prop in DATE_PROPS:
        middle = half.get(prop, -200)
        terms = [f"{prop}=lt:{day(middle)}", f"{prop}=gte:{day(middle)}", f"{prop}={day(middle)}", f"{prop}=none"]
        terms += [f"{prop}=gt:{day(middle)} {prop}=lte:{day(middle + 1)}"]
        for term in terms:
            yield f"{ALL}&filter={quote(term)}"
    yield f"filter={quote(f'creationDate=lt:{day(-300)} extractable=false state=1,3')}"
    yield f"filter={quote(f'creationDate=lt:{day(-300)} lastRotateDate=none expirationDate=gt:{day(30)} state=1,2')}"
    yield f"filter={quote('extractable=true state=1,2,3,5')}"


def _searches() -> Iterator[Query]:
    """Among few thousand candidates, over everything, and what is found whatever the number of candidates."""
    few = "state=2&"
    texts = (
        "ledger",
        "name:ledger",
        "alias:alias-1",
        "exact:alias-1000-0",
        "not:ledger",
        "not:exact:alias:x",
        "ångström",
    )
    for text in texts:
        yield Query(EVERYTHING, "GET", f"/keys?{few}search={quote(text)}&totalCount=true")
        yield Query(EVERYTHING, "HEAD", f"/keys?{ALL}&search={quote(text)}")
        yield Query("one small ring", "GET", f"/keys?{ALL}&search={quote(text)}&totalCount=true&sort=-lastUpdateDate")
    yield Query(EVERYTHING, "GET", "/keys?search=ledger")
    yield Query(EVERYTHING, "GET", f"/keys?{ALL}&search=Alias-1000-0")


def _print(found: dict[str, Times]) -> None:
    table = Table(f"milliseconds; * over {LIMIT_MS:.0f}", box=None)
    for database in found:
        table.add_column(database, justify="right")
        table.add_column("max", justify="right")
    table.add_column("query", no_wrap=True)
    for name in next(iter(found.values())):
        cells = []
        for times in found.values():
            median, slowest = statistics.median(times[name]), max(times[name])
            cells += [f"{'* ' if median > LIMIT_MS else ''}{median:.0f}", f"{slowest:.0f}"]
        table.add_row(*cells, escape(name))
    Console(width=220).print(table)
