"""What comes out of a backup is what was sealed, whenever it is read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.errors import BackupRefused
from hsmkms.service import archive as a


def pack(path: Path, rows: bytes, settings: bytes) -> Path:
    """A backup, sealed by nobody."""
    with a.writing(path) as directory:
        (directory / a.ROWS).write_bytes(rows)
        (directory / a.SETTINGS).write_bytes(settings)
        manifest = a.Manifest(
            format=a.FORMAT,
            program="0",
            created_at=datetime.now(UTC),
            database="sqlite",
            revision="0001",
            rows={},
            members={name: a.describe(directory / name) for name in (a.ROWS, a.SETTINGS)},
            token=a.TokenNeeds("", "", "", "", [], []),
            audit_public_key="",
            audit_heads=[],
        )
        a.pack(directory, manifest, lambda _: b"", path)
    return path


def test_a_backup_that_is_exchanged_after_it_was_opened(tmp_path: Path) -> None:
    file = pack(tmp_path / "good", b"[1]\n[2]\n", b"workers = 1\n")
    archive = a.Archive(file)
    assert list(archive.rows()) == [b"[1]\n", b"[2]\n"]
    assert archive.settings() == b"workers = 1\n"
    pack(tmp_path / "other", b"[1]\n[3]\n", b"workers = 2\n").replace(file)
    with pytest.raises(BackupRefused, match="is not what the backup held"):
        list(archive.rows())
    with pytest.raises(BackupRefused, match="is not what the backup held"):
        archive.settings()
