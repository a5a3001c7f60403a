"""The `hsmkms` command. Errors are one line without a traceback; their exit code is 1, wrong usage is 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from hsmkms import __version__
from hsmkms.cli import (
    adopt,
    audit,
    authorizations,
    backup,
    call,
    ceremony,
    crypto,
    deploy,
    doctor,
    iam,
    imports,
    instances,
    jobs,
    keys,
    webhooks,
)
from hsmkms.cli.local import COMMAND
from hsmkms.errors import HsmkmsError, Unavailable
from hsmkms.token.hanging import EXIT_CODE

app = typer.Typer(
    name="hsmkms",
    help="Key management in front of your own HSM. Start with `hsmkms init`, then `hsmkms serve`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("init")(deploy.init)
app.command("serve")(deploy.serve)
app.command("up")(deploy.up)
app.add_typer(keys.app, name="keys")
app.add_typer(imports.app, name="import")
app.add_typer(instances.app, name="instances")
app.add_typer(iam.app, name="iam")
app.add_typer(authorizations.app, name="authorizations")
app.command("wrap")(crypto.wrap)
app.command("unwrap")(crypto.unwrap)
app.command("doctor")(doctor.doctor)
app.command("call")(call.call)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("jobs")(jobs.jobs)
app.command("events")(webhooks.events)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(ceremony.app, name="ceremony")
app.add_typer(adopt.app, name="adopt")


app.add_typer(audit.app, name="audit")


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _command_of(words: Sequence[str]) -> str:
    """The names of groups and command that begin a command line, with full stops between them."""
    names: list[str] = []
    group = typer.main.get_command(app)
    for word in words:
        known = getattr(group, "commands", {})
        if word not in known:
            break
        names.append(word)
        group = known[word]
    return ".".join(names)


def main() -> None:
    """Entry point of the console script."""
    # Database, write-ahead log and token files are nobody else's, whatever directory they are put in.
    os.umask(0o077)
    COMMAND.set(_command_of(sys.argv[1:]))
    try:
        app()
    except HsmkmsError as error:
        Console(stderr=True, highlight=False).print(f"hsmkms: {error.message}", markup=False, soft_wrap=True)
        # A supervisor may start a service again that found token or database away, never one whose PIN was refused.
        sys.exit(EXIT_CODE if COMMAND.get() == "serve" and isinstance(error, Unavailable) else 1)
