"""The `hsmkms` command. Errors are one line without a traceback; their exit code is 1, wrong usage is 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

from hsmkms import __version__
from hsmkms.cli.command import COMMAND
from hsmkms.cli.lazy import group_of
from hsmkms.errors import HsmkmsError
from hsmkms.telemetry import journal

_COMMANDS: Final = {
    "init": "hsmkms.cli.deploy:init",
    "serve": "hsmkms.cli.deploy:serve",
    "up": "hsmkms.cli.deploy:up",
    "keys": "hsmkms.cli.keys:app",
    "import": "hsmkms.cli.imports:app",
    "instances": "hsmkms.cli.instances:app",
    "iam": "hsmkms.cli.iam:app",
    "authorizations": "hsmkms.cli.authorizations:app",
    "wrap": "hsmkms.cli.crypto:wrap",
    "unwrap": "hsmkms.cli.crypto:unwrap",
    "doctor": "hsmkms.cli.doctor:doctor",
    "call": "hsmkms.cli.call:call",
    "backup": "hsmkms.cli.backup:backup",
    "restore": "hsmkms.cli.backup:restore",
    "jobs": "hsmkms.cli.jobs:jobs",
    "events": "hsmkms.cli.webhooks:events",
    "webhooks": "hsmkms.cli.webhooks:app",
    "ceremony": "hsmkms.cli.ceremony:app",
    "adopt": "hsmkms.cli.adopt:app",
    "kubernetes-plugin": "hsmkms.cli.kubernetes:app",
    "audit": "hsmkms.cli.audit:app",
    "hsm": "hsmkms.cli.hsm:app",
}
"""Where each command is: imported when it is asked for."""

app = typer.Typer(
    name="hsmkms",
    cls=group_of(_COMMANDS),
    help="Key management in front of your own HSM. Start with `hsmkms init`, then `hsmkms serve`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def group() -> None:
    """Makes a group of what has only one command until the others are loaded."""


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _command_of(words: Sequence[str]) -> str:
    """The names of groups and command that begin a command line, with full stops between them."""
    names: list[str] = []
    group: Any = typer.main.get_command(app)
    for word in words:
        if not isinstance(group, TyperGroup):
            break
        group = group.get_command(typer.Context(group), word)
        if group is None:
            break
        names.append(word)
    return ".".join(names)


def main() -> None:
    """Entry point of the console script."""
    # Database, write-ahead log and token files are nobody else's, whatever directory they are put in.
    os.umask(0o077)
    COMMAND.set(_command_of(sys.argv[1:]))
    try:
        app()
    except HsmkmsError as error:
        level = journal.prefix("error") if journal.is_journal() else ""
        Console(stderr=True, highlight=False).print(f"{level}hsmkms: {error.message}", markup=False, soft_wrap=True)
        sys.exit(1)
