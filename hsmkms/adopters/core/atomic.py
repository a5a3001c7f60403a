"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace(file: Path, content: bytes, mode: int = 0o600, *, lasting: bool = True) -> None:
    """Put content into a file, new or not. When this raises OSError, or the process dies, the file is as it was before.
    What need not outlast a power cut (not `lasting`) does not wait for the disk.

    One writer at a time: what writers hold that is named `<file>.new` is theirs until they are done.
    """
    part = file.with_name(f"{file.name}.new")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as writer:
            writer.write(content)
            writer.flush()
            if lasting:
                os.fsync(writer.fileno())
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if lasting:
        sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
