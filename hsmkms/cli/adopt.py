"""`hsmkms adopt`: data of other programs, protected by a root key of the key service."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from hsmkms.adopters.client import AdopterError
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core import memory, passphrase
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.monitor import Monitor
from hsmkms.adopters.objectstorage.status import describe as describe_buckets
from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.choice import AUTO, backend_of
from hsmkms.adopters.volume.layout import Volume, VolumeLock, VolumeRefused
from hsmkms.adopters.volume.reencrypt import Progress
from hsmkms.adopters.volume.reencrypt import reencrypt as run_reencrypt
from hsmkms.adopters.volume.server import Server
from hsmkms.adopters.volume.status import COLUMNS, describe, describe_file
from hsmkms.adopters.volume.supervisor import Supervisor
from hsmkms.cli.output import JsonOption, show
from hsmkms.telemetry import logs

app = typer.Typer(help="Protect data of other programs with a root key.", no_args_is_help=True)
volume_app = typer.Typer(help="Keep a directory encrypted, and run a server on it.", no_args_is_help=True)
app.add_typer(volume_app, name="volume")
passphrase_app = typer.Typer(
    help="Keep a passphrase under a root key, for pgBackRest and others.", no_args_is_help=True
)
app.add_typer(passphrase_app, name="passphrase")

_STOP_S = 40.0
_DAMAGED = "unreadable"
_POSTGRES = ("postgres", "postmaster")
_log = structlog.get_logger(__name__)
Directory = Annotated[Path, typer.Argument(help="Directory of the volume.")]


@volume_app.command("create")
def create(
    directory: Directory,
    key: Annotated[str, typer.Option(help="Root key: id, alias or CRN.")],
    crn: Annotated[str, typer.Option(help="CRN of what the volume holds; it is registered with the key.")],
    connection: Annotated[Path, typer.Option(help="File that says how the key service is reached.")],
    mount: Annotated[
        Path | None, typer.Option(help="Where the data appears in clear; DIRECTORY/data by default.")
    ] = None,
    backend: Annotated[str, typer.Option(help="fscrypt, gocryptfs, luks, or auto.")] = AUTO,
    size_mib: Annotated[int | None, typer.Option(help="Size of the image, for luks.", min=32)] = None,
    owner: Annotated[str | None, typer.Option(help="User whose the data shall be, such as postgres.")] = None,
    prevent_deletion: Annotated[bool, typer.Option(help="Let the key not be deleted while the volume exists.")] = False,
) -> None:
    """Make an encrypted directory under a root key, closed at first."""
    _begin()
    place = directory.resolve()
    mounted = place / "data" if mount is None else mount.resolve()
    volume = Volume(place, backend, mounted, connection.resolve(), size_mib=size_mib)
    with _words_for_the_system():
        volume, reason = operations.create(volume, key, crn, owner=owner, prevent_deletion=prevent_deletion)
    typer.echo(f"{volume.directory} is encrypted with {reason}.")
    typer.echo(f"Open it at {volume.mount}: `hsmkms adopt volume open {volume.directory}`, or `run`.")


@volume_app.command("open")
def open_(directory: Directory) -> None:
    """Open a volume until it is closed, to set it up or to look into it; meanwhile nobody follows its key."""
    _begin()
    volume = Volume.read(directory)
    operations.open_(volume)
    typer.echo(f"{volume.mount} is open, and stays so when the key is disabled. Close it, or serve it by `run`.")


@volume_app.command("close")
def close(directory: Directory) -> None:
    """Close a volume that `open` opened."""
    _begin()
    operations.close(Volume.read(directory))


@volume_app.command("run")
def run(
    directory: Directory,
    command: Annotated[list[str] | None, typer.Argument(help="Server and its arguments, behind --.")] = None,
    user: Annotated[str | None, typer.Option(help="Run the server as this user.")] = None,
    stop_signal: Annotated[str, typer.Option(help="What ends the server in good order; auto knows PostgreSQL.")] = AUTO,
    stop_s: Annotated[float, typer.Option(help="Seconds that it gets for that.", min=1, max=3600)] = _STOP_S,
    data: Annotated[list[Path] | None, typer.Option(help="Directory that has to be on the volume.")] = None,
    away_limit_s: Annotated[float, typer.Option(help="Go on so long without the key service.", min=0)] = 4 * 3600,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /healthz on this port of 127.0.0.1.", min=1, max=65_535)
    ] = None,
) -> None:
    """Open a volume, run a server on it, close it when the server ends; stop and start it as the key says."""
    _begin()
    volume = Volume.read(directory)
    server = None if not command else Server(command, user, _stop_signal(stop_signal, command[0]), stop_s)
    with VolumeLock(volume) as lock, operations.client_of(volume) as client, contextlib.ExitStack() as stack:
        on_report = None
        if metrics_port is not None:
            crn = WrappedDekFile.read(volume.dek_file).resource_crn
            on_report = stack.enter_context(Monitor(metrics_port, crn)).take
        supervisor = Supervisor(
            volume,
            backend_of(volume, supervised=True),
            lock,
            client,
            server,
            data=data or (),
            away_limit_s=away_limit_s,
            on_report=on_report,
        )
        code = supervisor.run()
    raise typer.Exit(code)


@volume_app.command("reencrypt")
def reencrypt(directory: Directory) -> None:
    """Give a closed volume a new DEK by writing all its data anew; what was interrupted is taken up again."""
    _begin()
    volume, told_at = Volume.read(directory), 0.0

    def tell(progress: Progress) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= 1 or progress.files == progress.all_files:
            told_at = time.monotonic()
            typer.echo(
                f"{progress.files} of {progress.all_files} files ({progress.kept} from before), "
                f"{progress.bytes >> 20} of {progress.all_bytes >> 20} MiB"
            )

    with _words_for_the_system():
        volume = run_reencrypt(volume, tell)
    typer.echo(f"{volume.directory} has a new DEK; the old one and what it encrypted are gone from here.")


@volume_app.command("remove")
def remove(
    directory: Directory,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy a volume: its wrapped DEK, its registration and its data."""
    _begin()
    volume = Volume.read(directory)
    if not yes:
        typer.confirm(f"Destroy all data of {volume.directory}?", abort=True)
    operations.remove(volume)


@volume_app.command("status")
def volume_status(directory: Directory, json: JsonOption = False) -> None:
    """Show a volume, its key and whether it is open."""
    show([describe(Volume.read(directory))], json)


@passphrase_app.command("create")
def create_passphrase(
    file: Annotated[Path, typer.Argument(help="File for the wrapped passphrase.")],
    key: Annotated[str, typer.Option(help="Root key: id, alias or CRN.")],
    crn: Annotated[str, typer.Option(help="CRN of what the passphrase protects; it is registered with the key.")],
    connection: Annotated[Path, typer.Option(help="File that says how the key service is reached.")],
) -> None:
    """Make a passphrase of 256 random bits, and keep it wrapped."""
    _begin()
    passphrase.create(file, Connection.read(connection), key, crn)


@passphrase_app.command("show")
def show_passphrase(
    file: Annotated[Path, typer.Argument(help="File of the wrapped passphrase.")],
    connection: Annotated[Path, typer.Option(help="File that says how the key service is reached.")],
) -> None:
    """Print a passphrase to a pipe; a terminal is refused."""
    _begin()
    passphrase.show(file, Connection.read(connection), sys.stdout.fileno())


@app.command("status")
def status(
    places: Annotated[
        list[Path],
        typer.Argument(help="Directories of volumes, files with a wrapped DEK, TOML files of the object storage."),
    ],
    json: JsonOption = False,
) -> None:
    """Show protected resources, their keys and key versions, and the last event of each; 1 if one cannot be read."""
    rows = [row for place in places for row in _rows(place)]
    show(rows, json)
    if any(row["condition"] == _DAMAGED for row in rows):
        raise typer.Exit(1)


def _rows(place: Path) -> list[dict[str, Any]]:
    try:
        if place.is_dir():
            return [describe(Volume.read(place))]
        return describe_buckets(place) if place.suffix == ".toml" else [describe_file(place)]
    except AdopterError as error:
        empty = dict.fromkeys(COLUMNS)
        return [{**empty, "volume": str(place), "condition": _DAMAGED, "reason": error.message}]


def _begin() -> None:
    logs.configure()
    if not memory.guard():
        _log.warning("memory is not locked, so keys may be swapped out", remedy="raise the limit RLIMIT_MEMLOCK")


@contextlib.contextmanager
def _words_for_the_system() -> Iterator[None]:
    """A full disk, a directory of somebody else: one line, as all refusals are."""
    try:
        yield
    except OSError as error:
        raise VolumeRefused(f"{error.strerror or error}: {error.filename or 'the volume'}.") from error


def _stop_signal(name: str, program: str) -> signal.Signals:
    if name == AUTO:
        return signal.SIGINT if Path(program).name in _POSTGRES else signal.SIGTERM
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError as error:
        raise typer.BadParameter(f"There is no signal {name}.", param_hint="--stop-signal") from error
