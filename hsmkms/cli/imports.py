"""`hsmkms import`: the client's half of bringing a key, for who has an import token and nothing else of ours."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from hsmkms.domain.importing import ROOT_KEY_BYTES, Oaep
from hsmkms.domain.secrets import SecretBytes
from hsmkms.domain.wrapping import read_public_key, wrap_key
from hsmkms.errors import OperatorError

app = typer.Typer(help="Bring keys of your own.", no_args_is_help=True)

_GENERATED_BYTES: Final = 32
_TEXT: Final = re.compile(rb"[0-9A-Za-z+/=\s]*")
"""Hexadecimal or base64: one in 10⁸ of the keys that are 16 random bytes looks like it."""


@app.callback()
def _group() -> None:
    """Without this a group of one command would be that command."""


class _Fetched(msgspec.Struct):
    """What is needed of the answer of GET /import_token."""

    payload: str
    nonce: str


@app.command("prepare")
def prepare(
    import_token: Annotated[
        Path | None, typer.Argument(help="File with the answer of GET /import_token; standard input if left out.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="File with the key: its 16, 24 or 32 bytes, readable by you only."),
    ] = None,
    generate: Annotated[
        Path | None,
        typer.Option("--generate", help="Make a key of 32 random bytes; write it to this new file first."),
    ] = None,
    sha1: Annotated[
        bool, typer.Option("--sha1", help="RSAES_OAEP_SHA_1 and AES-CBC, for a service that is set to take them.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write to this new file instead of standard output.")
    ] = None,
) -> None:
    """Wrap a key to an import token, and its nonce under the key: the JSON members for a create or rotate request.

    Needs no token, no database and no network, and never shows the key."""
    if key is not None and generate is None:
        take, path = _read_key, key
    elif generate is not None and key is None:
        take, path = _make_key, generate
    else:
        raise typer.BadParameter("Give a key with --key, or have one made with --generate.")
    public, nonce = fetched(import_token)
    material = take(path)
    brought = wrap_key(public, nonce, material, Oaep.SHA_1 if sha1 else Oaep.SHA_256)
    members = {
        "payload": _text(brought.wrapped),
        "encryptedNonce": _text(brought.encrypted_nonce),
        "iv": _text(brought.iv),
        "encryptionAlgorithm": brought.oaep.value,
    }
    line = msgspec.json.encode(members) + b"\n"
    if output is None:
        typer.echo(line, nl=False)
    else:
        _write_new(output, line)


def fetched(path: Path | None) -> tuple[RSAPublicKey, bytes]:
    """Public key and nonce of the import token in a file, or from standard input. Raises OperatorError."""
    try:
        text = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path} cannot be read. Give the file with the answer of GET /import_token.") from error
    try:
        answer = msgspec.json.decode(text, type=_Fetched)
        pem, nonce = (base64.b64decode(one, validate=True) for one in (answer.payload, answer.nonce))
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise OperatorError(
            "The import token is not the JSON that GET /import_token answers, with `payload` and `nonce` in base64; "
            "POST /import_token answers without them. Fetch it again."
        ) from error
    return read_public_key(pem), nonce


def _read_key(path: Path) -> SecretBytes:
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise OperatorError(f"The key file {path} cannot be read. Check its path and owner.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise OperatorError(f"Others can read the key file {path}. Run chmod 600 on it, and ask who has seen the key.")
    if key and _TEXT.fullmatch(key):
        raise OperatorError(
            f"The key file {path} holds text, not a key's bytes. Decode it with `base64 -d` or `xxd -r -p` first."
        )
    if len(key) not in ROOT_KEY_BYTES:
        raise OperatorError(f"The key file {path} has {len(key)} bytes. A root key has 16, 24 or 32.")
    return SecretBytes(key)


def _make_key(path: Path) -> SecretBytes:
    key = SecretBytes(os.urandom(_GENERATED_BYTES))
    _write_new(path, key.reveal())
    return key


def _write_new(path: Path, data: bytes) -> None:
    """To a file that was not there: nobody's key is lost by a wrong name."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise OperatorError(f"{path} exists already. Choose the name of a new file.") from error
    except OSError as error:
        raise OperatorError(f"{path} cannot be written ({error.strerror}). Choose another place.") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
