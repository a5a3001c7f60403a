"""`hsmkms keys`: list, create, show, rotate, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hsmkms.ceremony import record
from hsmkms.ceremony.output import bundled_key_of, key_of
from hsmkms.cli.local import InstanceOption, JsonOption, Local, local, show
from hsmkms.domain.access import Action
from hsmkms.domain.keys import Key, effective_state
from hsmkms.domain.new_key import NewKey
from hsmkms.domain.query import parse_key_query

app = typer.Typer(help="Manage keys on this host's token and database.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(help="Key id or alias.")]
_LISTED = ("id", "name", "kind", "state", "ring", "versions")
_ALL = {"state": "1,2,3,5", "sort": "creationDate", "limit": "5000"}


@app.command("list")
def list_keys(instance: InstanceOption = None, json: JsonOption = False) -> None:
    """List all keys, deleted ones too."""
    with local(instance) as here, here.does(Action.KEY_LIST):
        page = here.rooms.services.keys.list(here.caller, here.instance.id, None, parse_key_query(_ALL), total=False)
        shown = [_describe(key, here) for key in page.keys]
    show([{name: value for name, value in key.items() if json or name in _LISTED} for key in shown], json)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Name, 2 to 90 characters.")],
    standard: Annotated[bool, typer.Option("--standard", help="A standard (extractable) key.")] = False,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="An alias; may be repeated.")] = None,
    instance: InstanceOption = None,
    json: JsonOption = False,
) -> None:
    """Create a root key in the token, or a standard key."""
    with local(instance) as here, here.does(Action.KEY_CREATE):
        wish = NewKey(name, None, (), tuple(alias or ()), standard, None)
        created = here.rooms.services.keys.create(here.caller, here.instance.id, None, wish)
        _print(_describe(created.key, here), json)


@app.command("show")
def show_key(key: KeyArgument, instance: InstanceOption = None, json: JsonOption = False) -> None:
    """Show a key's metadata."""
    with local(instance) as here, here.does(Action.KEY_READ_METADATA, key):
        found = here.rooms.services.keys.read_metadata(here.caller, here.instance.id, key, None)
        _print(_describe(found, here), json)


@app.command("rotate")
def rotate(key: KeyArgument, instance: InstanceOption = None, json: JsonOption = False) -> None:
    """Give a root key a new version; old ciphertexts still open."""
    with local(instance) as here, here.does(Action.KEY_ROTATE, key):
        _print(_describe(here.rooms.services.keys.rotate(here.caller, here.instance.id, key, None), here), json)


@app.command("adopt")
def adopt(
    record_file: Annotated[Path, typer.Argument(help="The record of a ceremony.")],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="The ceremony's bundle, where its key is not on this token.")
    ] = None,
    signed_by: Annotated[
        str, typer.Option("--signed-by", help="With --bundle: fingerprint of the record's key, from the signed paper.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Register the root key of a ceremony, once its record proves it.

    It is on this host's token, or with --bundle wrapped to this instance's import token."""
    verified = record.verify(record_file)
    if bundle is not None:
        brought = bundled_key_of(verified, bundle, signed_by)
        with local(brought.instance_id) as here, here.does(Action.KEY_CREATE):
            _print(_describe(here.rooms.services.adoption.adopt_bundle(here.caller, brought), here), json)
        return
    found = key_of(verified)
    with local(found.instance_id) as here, here.does(Action.KEY_CREATE):
        _print(_describe(here.rooms.services.adoption.adopt(here.caller, found), here), json)


@app.command("delete")
def delete(
    key: KeyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    instance: InstanceOption = None,
    json: JsonOption = False,
) -> None:
    """Delete a key: what it wrapped cannot be opened until it is restored."""
    if not yes:
        typer.confirm(f"Delete {key}?", abort=True, err=True)
    with local(instance) as here, here.does(Action.KEY_DELETE, key):
        _print(_describe(here.rooms.services.lifecycle.delete(here.caller, here.instance.id, key, None), here), json)


def _describe(key: Key, here: Local) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "kind": "root" if key.is_root else "standard",
        "state": effective_state(key, here.rooms.services.clock()).name.lower(),
        "ring": key.key_ring_id,
        "aliases": list(key.aliases),
        "versions": len(key.versions),
        "created_at": key.created_at,
    }


def _print(described: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode(described).decode())
        return
    for name, value in described.items():
        typer.echo(f"{name:<11}{', '.join(value) if isinstance(value, list) else value}")
