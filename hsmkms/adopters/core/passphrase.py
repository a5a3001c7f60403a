"""A passphrase under a root key, for programs that encrypt by themselves, such as pgBackRest: kept wrapped in a file,
shown to a pipe when it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hsmkms.adopters.client import AdopterError, KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import WrappedDekFile, aad_of, new_dek_id

KIND: Final = "passphrase"


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
    dek = WrappedDekFile.read(file)
    client, _ = KeyServiceClient(connection).at_key(dek.key_crn)
    with client:
        opened = client.unwrap(dek.key_id, dek.ciphertext, dek.aad)
        if opened.rewrapped is not None:
            dek.moved(opened.rewrapped).write(file)
            client.registered_version(dek.key_id, dek.resource_crn, opened.rewrapped.key_version)
    os.write(to, opened.plaintext.reveal().hex().encode() + b"\n")
