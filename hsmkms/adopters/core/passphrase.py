"""A passphrase under a root key, for programs that encrypt by themselves, such as pgBackRest: kept wrapped in a file,
shown to a pipe when it is needed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from hsmkms.adopters.client import AdopterError, KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import WrappedDekFile, aad_of, new_dek_id

KIND: Final = "passphrase"

_log = structlog.get_logger(__name__)


class PassphraseRefused(AdopterError):
    """The passphrase cannot be made or shown as asked."""


def create(file: Path, connection: Connection, key: str, resource_crn: str) -> None:
    """Make a passphrase of 256 random bits and register what it protects. Raises AdopterError, OSError."""
    if file.exists():
        raise PassphraseRefused(f"{file} exists. What it opens would be lost; choose another name.")
    client, key = KeyServiceClient(connection).at_key(key)
    with client:
        root_key, dek_id = client.key(key), new_dek_id()
        wrapped = client.generate_and_wrap(root_key.id, aad_of(KIND, resource_crn, dek_id))
        client.register(root_key.id, resource_crn, description="hsmkms passphrase")
        WrappedDekFile.of(KIND, resource_crn, dek_id, root_key, wrapped).write(file)


def show(file: Path, connection: Connection, to: int) -> None:
    """Write the passphrase, as hexadecimal text, to a descriptor that is no terminal. A rotated key's newer wrapping is
    kept. Raises AdopterError, OSError."""
    if os.isatty(to):
        raise PassphraseRefused(
            "The passphrase is not shown on a terminal. Send it to a file in memory or to a program."
        )
    client, _ = KeyServiceClient(connection).at_key(WrappedDekFile.read(file).key_crn)
    with client, _alone_with(file):
        dek = WrappedDekFile.read(file)
        opened = client.unwrap(dek.key_id, dek.ciphertext, dek.aad)
        if opened.rewrapped is not None:
            _keep(client, file, dek.moved(opened.rewrapped))
    os.write(to, opened.plaintext.reveal().hex().encode() + b"\n")


def _keep(client: KeyServiceClient, file: Path, dek: WrappedDekFile) -> None:
    """Store the newer wrapping. A backup must not fail because that cannot be done now: the older one opens too."""
    try:
        dek.write(file)
        client.registered_version(dek.key_id, dek.resource_crn, dek.key_version)
    except OSError as error:
        _log.warning("the rewrapped passphrase cannot be written", file=str(file), reason=error.strerror)
    except AdopterError as error:
        _log.warning("the registration does not show the key version", reason=error.message)


@contextlib.contextmanager
def _alone_with(file: Path) -> Iterator[None]:
    """One process at a time: pgBackRest starts several, and two writers would spoil each other's new file."""
    while True:
        with file.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            # Who had it before may have put another file in its place.
            if os.path.samestat(os.fstat(held.fileno()), file.stat()):
                yield
                return
