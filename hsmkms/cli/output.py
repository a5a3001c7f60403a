"""How commands show what they found. It imports no room: commands that run beside other programs start fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def plain(value: object) -> str:
    """Text of which strangers may have chosen a part: what ends a line, moves the cursor or turns the direction of
    writing is shown as its number."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))


def show(rows: Sequence[dict[str, Any]], json: bool) -> None:
    """Rows of one shape as a table or, for programs, as JSON."""
    if json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    table = Table(box=None)
    for column in rows[0] if rows else ():
        table.add_column(column, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    # A pipe has no width, and an id that was cut to 80 columns is of no use.
    Console(width=max(Console().width, 200)).print(table)
