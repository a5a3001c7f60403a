"""Which software holds a ceremony: its version, and one hash over every file of the installed package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import hsmkms


def digest() -> str:
    """SHA-256 over `path NUL length NUL content` of the package's files in the order of their paths."""
    root = Path(hsmkms.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            total.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
