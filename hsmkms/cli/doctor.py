"""`hsmkms doctor`: is everything where it should be."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from hsmkms.cli.local import rooms


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Settle what a crash left pending.")] = False,
    pending_older_than_s: Annotated[
        int, typer.Option("--pending-older-than", help="Seconds; 0 only when no process of the service runs.")
    ] = 600,
) -> None:
    """Check token, mechanisms, keys, orphans either way, clock and database. The exit code is 1 if anything is
    wrong."""
    with rooms() as opened:
        repaired = opened.doctor.repair(timedelta(seconds=pending_older_than_s)) if repair else []
        findings = [*repaired, *opened.doctor.examine()]
    for finding in findings:
        typer.echo(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.subject:<20} {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
