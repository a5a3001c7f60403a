"""`hsmkms audit`: prove that the audit logs are whole, and read them."""

from __future__ import annotations

import contextlib
import csv
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hsmkms.audit.chain import SUFFIX
from hsmkms.audit.event import Event
from hsmkms.audit.reader import Unproved, Verified, load_public_key, node_of
from hsmkms.audit.search import Filter, Follower, last, search
from hsmkms.audit.search import unfinished as pending_without_outcome
from hsmkms.audit.shipping import shipped_whole
from hsmkms.audit.verify import last_records, verify
from hsmkms.cli.local import rooms
from hsmkms.cli.output import plain
from hsmkms.errors import AuditKeyInvalid, AuditTampered, OperatorError, SettingsInvalid
from hsmkms.settings import load
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.engine import Database
from hsmkms.wiring import AUDIT_KEY_ID, Rooms, configure_logs, node_name, open_rooms, pin_of

app = typer.Typer(help="Prove that audit logs are whole, and read them.", no_args_is_help=True)

_COLUMNS = ("time", "action", "outcome", "status", "initiator", "address", "target", "correlation id")

Directories = Annotated[
    list[Path] | None, typer.Argument(help="Directories of logs; the one in the settings unless given.")
]
Key = Annotated[str | None, typer.Option("--key", help="Events of this key's id.")]
Actor = Annotated[str | None, typer.Option("--actor", help="Events of this IAM id.")]
ActionOption = Annotated[str | None, typer.Option("--action", help="An action, or a group as `kms.secrets.`.")]
OutcomeOption = Annotated[str | None, typer.Option("--outcome", help="success, failure or pending.")]
CorrelationOption = Annotated[
    str | None, typer.Option("--correlation-id", help="What an answer's header Correlation-Id said.")
]
Since = Annotated[datetime | None, typer.Option("--since", help="From this time on, UTC.")]
Until = Annotated[datetime | None, typer.Option("--until", help="Before this time, UTC.")]

_FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
_LOOK_S = 0.5
_RETIRED_AT_ONCE = 32
"""Logs in one record: syslog servers cut what is much longer."""


@app.command("verify")
def verify_logs(
    directories: Directories = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="PEM; with it neither token nor database is asked.")
    ] = None,
) -> None:
    """Prove that no record was changed, moved, put in or cut off. The exit code is 1 if anything is wrong.

    Without --public-key the token's key is used and the database tells which logs there have to be. Without directories
    other hosts' logs are not looked for; with them, those of all hosts have to be there.
    """
    heads: dict[str, tuple[int, str]] | None = None
    if public_key is None:
        with _rooms() as opened:
            pem = opened.token.signing_public_key(AUDIT_KEY_ID)
            heads = {log: (sequence, digest) for log, sequence, digest, _ in opened.heads.all()}
    else:
        try:
            pem = public_key.read_bytes()
        except OSError as error:
            raise AuditKeyInvalid(f"The file {public_key} cannot be read.") from error
    found = verify(_places(directories), load_public_key(pem), heads, None if directories else node_name())
    here = [one for one in found if not one.elsewhere]
    for one in here:
        typer.echo(f"{'ok   ' if one.sound else 'WRONG'}  {plain(one.log)}  {_words(one)}")
        for part in one.unproved:
            typer.echo(f"note   {plain(one.log)}  {_unproved_words(part)}")
    for node, logs in sorted(Counter(node_of(one.log) for one in found if one.elsewhere).items()):
        typer.echo(f"note   {logs} logs of {plain(node)} are not here and were not looked at")
    if not here:
        typer.echo("There are no logs.")
    if not all(one.sound for one in here):
        raise typer.Exit(1)


@app.command("retire")
def retire(
    before: Annotated[datetime, typer.Option("--before", help="Logs that were closed before this time, UTC.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete old logs so that nobody misses them: their last records are written down and signed first.

    Only logs that are sound and that every sink has got whole. Bring copies to where they are kept before. What a crash
    leaves, the next call deletes.
    """
    settings = load()
    place = settings.audit_directory
    until = before.replace(tzinfo=before.tzinfo or UTC)
    with rooms() as opened:
        heads = {log: (sequence, digest) for log, sequence, digest, _ in opened.heads.all()}
        key = load_public_key(opened.token.signing_public_key(AUDIT_KEY_ID))
        found = verify([place], key, heads, node_name())
        for one in found:
            if one.problem is not None:
                raise AuditTampered(f"The log {plain(one.log)} is wrong: {_words(one)}. Find out why before any goes.")
        old = [one for one in found if not one.retired and one.closed_at is not None and one.closed_at < until]
        for sink in settings.audit_sinks:
            missing = {one.log for one in old} - shipped_whole(place, sink.name or sink.kind)
            if missing:
                raise OperatorError(f"The sink {sink.name or sink.kind} has not got {len(missing)} of these logs yet.")
        if not old:
            typer.echo("There are no logs that old.")
            return
        if not yes:
            typer.confirm(f"Delete {len(old)} logs?", abort=True, err=True)
        last = list(last_records(old).items())
        for start in range(0, len(last), _RETIRED_AT_ONCE):
            opened.journal.retire_blocking(dict(last[start : start + _RETIRED_AT_ONCE]))
    # The rooms are closed, and with them what was recorded is signed. Nobody believes it before: after a crash these
    # logs would be missed.
    if not opened.journal.signed:
        raise OperatorError("What was recorded could not be signed, so nothing was deleted. Try again.")
    # Heads first: a log that is there and that nobody asks for can be retired again, a head without a log could not.
    with contextlib.closing(Database(settings.database)) as database:
        AuditHeadStore(database).forget([one.log for one in old])
    for one in old:
        (place / f"{one.log}{SUFFIX}").unlink()
    typer.echo(f"{len(old)} logs retired.")


@app.command("public-key")
def public_key() -> None:
    """Print the public key of the checkpoints, for those who verify elsewhere."""
    with _rooms() as opened:
        typer.echo(opened.token.signing_public_key(AUDIT_KEY_ID).decode(), nl=False)


@app.command("search")
def search_events(
    directories: Directories = None,
    key: Key = None,
    actor: Actor = None,
    action: ActionOption = None,
    outcome: OutcomeOption = None,
    correlation_id: CorrelationOption = None,
    since: Since = None,
    until: Until = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only what was begun and has no outcome, as after a crash.")
    ] = False,
) -> None:
    """Show events, one line each."""
    places = _places(directories)
    if unfinished:
        narrowed = _filter(key, actor, action, outcome, since, until, correlation_id)
        # Over all events: an outcome may lie outside of what is asked for.
        for found in pending_without_outcome(search(places, Filter())):
            if narrowed.takes(found.event):
                typer.echo(_line(found.event))
        return
    for found in search(places, _filter(key, actor, action, outcome, since, until, correlation_id)):
        typer.echo(_line(found.event))


@app.command("export")
def export(
    directories: Directories = None,
    key: Key = None,
    actor: Actor = None,
    action: ActionOption = None,
    outcome: OutcomeOption = None,
    correlation_id: CorrelationOption = None,
    since: Since = None,
    until: Until = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header line in the place of JSON lines.")] = False,
) -> None:
    """Write events to standard output, whole and one JSON line each, or the columns of a table as CSV."""
    events = search(_places(directories), _filter(key, actor, action, outcome, since, until, correlation_id))
    if as_csv:
        _write_csv(found.event for found in events)
    else:
        for found in events:
            # As it stands in the log, to the byte.
            sys.stdout.buffer.write(found.text + b"\n")
        sys.stdout.buffer.flush()


@app.command("tail")
def tail(
    directories: Directories = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those to come, until Ctrl-C.")] = False,
    key: Key = None,
    actor: Actor = None,
    action: ActionOption = None,
    outcome: OutcomeOption = None,
    correlation_id: CorrelationOption = None,
) -> None:
    """Show the last events, or the last ones that are wanted."""
    places, wanted = _places(directories), _filter(key, actor, action, outcome, None, None, correlation_id)
    follower = Follower(places, wanted)
    found = last(places, lines) if wanted == Filter() else deque(search(places, wanted), maxlen=lines)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for one in found:
                typer.echo(_line(one.event))
            if not follow:
                return
            shown = {one.event.id for one in found}
            time.sleep(_LOOK_S)
            found = [one for one in follower.news() if one.event.id not in shown]


@contextlib.contextmanager
def _rooms() -> Iterator[Rooms]:
    """Without a record of its own: who looks must not change what he looks at."""
    configure_logs()
    settings = load()
    opened = open_rooms(settings, pin_of(settings))
    with opened.close:
        yield opened


def _places(directories: list[Path] | None) -> list[Path]:
    places = directories or [load().audit_directory]
    for place in places:
        if not place.is_dir():
            raise SettingsInvalid(f"There is no directory {place}.")
    return places


def _filter(
    key: str | None,
    actor: str | None,
    action: str | None,
    outcome: str | None,
    since: datetime | None,
    until: datetime | None,
    correlation_id: str | None,
) -> Filter:
    correlation = None if correlation_id is None else correlation_id.lower()
    return Filter(key, actor, action, outcome, _utc(since), _utc(until), correlation)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=moment.tzinfo or UTC)


def _words(one: Verified) -> str:
    if one.problem is not None:
        return f"record {one.broken_at}: {one.problem}" if one.broken_at else one.problem
    if one.retired:
        return f"{one.records} records, retired: deleted on purpose"
    if one.closed:
        return f"{one.records} records, closed and signed"
    state = "being written" if one.held else "not closed: what stood behind could have been cut off"
    return f"{one.records} records, signed to {one.signed}, {state}"


def _unproved_words(part: Unproved) -> str:
    """Of records that anybody may have written who could write to the file, between a signature and a restart."""
    after = "none was signed before" if part.after is None else f"the last signature before is of {_second(part.after)}"
    return (
        f"records {part.first} to {part.last} were first signed after a restart, at {_second(part.until)} ({after}): "
        "nothing proves them but the chain"
    )


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _row(event: Event) -> dict[str, Any]:
    values = (
        event.event_time.isoformat(timespec="milliseconds"),
        event.action,
        event.outcome,
        None if event.reason is None else event.reason.reason_code,
        event.initiator.id,
        None if event.initiator.host is None else event.initiator.host.address,
        event.target.name,
        event.correlation_id,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _line(event: Event) -> str:
    # Without spaces: two of them stand between columns.
    return "  ".join("-" if value is None else plain(value).replace(" ", "\\x20") for value in _row(event).values())


def _write_csv(events: Iterable[Event]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(_COLUMNS)
    for event in events:
        writer.writerow([None if value is None else _harmless(plain(value)) for value in _row(event).values()])


def _harmless(value: str) -> str:
    """A spreadsheet takes text that begins like a formula for one, perhaps behind blanks, in full width or, in half of
    Europe, behind a semicolon, and callers choose parts of these."""
    separated = value.replace(";", "\\x3b")
    return f"'{separated}" if value.lstrip()[:1] in _FORMULA else separated
