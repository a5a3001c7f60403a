"""`hsmkms wrap` and `unwrap`: standard input to standard output."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import msgspec
import typer

from hsmkms.cli.keys import KeyArgument
from hsmkms.cli.local import InstanceOption, JsonOption, local
from hsmkms.domain.access import Action

AadOption = Annotated[list[str] | None, typer.Option("--aad", help="Additional authenticated data; may be repeated.")]


def wrap(
    key: KeyArgument,
    aad: AadOption = None,
    generate: Annotated[bool, typer.Option("--generate", help="Wrap 32 random bytes; read no input.")] = False,
    instance: InstanceOption = None,
    json: JsonOption = False,
) -> None:
    """Wrap the bytes on standard input; print the ciphertext."""
    plaintext = None if generate else sys.stdin.buffer.read()
    with local(instance) as here, here.does(Action.KEY_WRAP, key) as act:
        wrapped = asyncio.run(
            here.rooms.services.crypto.wrap(here.caller, here.instance.id, key, None, plaintext, aad or ())
        )
        act.key, act.version_id = wrapped.key, wrapped.version.id
    if json:
        answer = {"ciphertext": wrapped.ciphertext, "keyVersion": wrapped.version.id}
        typer.echo(msgspec.json.encode(answer).decode())
    else:
        typer.echo(wrapped.ciphertext)


def unwrap(key: KeyArgument, aad: AadOption = None, instance: InstanceOption = None, json: JsonOption = False) -> None:
    """Unwrap the ciphertext on standard input; print the bytes, with --json in base64."""
    text = sys.stdin.read().strip()
    with local(instance) as here, here.does(Action.KEY_UNWRAP, key) as act:
        opened = asyncio.run(
            here.rooms.services.crypto.unwrap(here.caller, here.instance.id, key, None, text, aad or ())
        )
        act.key, act.version_id = opened.key, opened.version.id
    if json:
        answer = {
            "plaintext": opened.plaintext.reveal(),
            "keyVersion": opened.version.id,
            "ciphertext": opened.ciphertext,
        }
        typer.echo(msgspec.json.encode(answer).decode())
    else:
        sys.stdout.buffer.write(opened.plaintext.reveal())
        sys.stdout.buffer.flush()
