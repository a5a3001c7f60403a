"""A share on paper: its words, the same as a QR code, and what it is a share of."""

from __future__ import annotations

import os
from pathlib import Path

from hsmkms.ceremony.plan import Plan
from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.domain.check_values import CheckValues


def file_name(plan: Plan, number: str) -> str:
    """Name of the file of a share, by its number."""
    return f"hsmkms-share-{number}-of-{len(plan.people.custodians)}.pdf"


def write(path: Path, plan: Plan, who: str, number: int, share: str, found: CheckValues) -> None:
    """Write one A4 page to a new file that only its owner reads. Raises CeremonyRefused.

    What draws it is imported only here: it takes a third of the time in which a command starts.
    """
    from hsmkms.ceremony.share_page import draw

    content = draw(plan, who, number, share, found)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        raise CeremonyRefused(f"The sheet {path} cannot be written: {error.strerror}.") from error


def erase(path: Path) -> None:
    """Overwrite and remove a sheet, if it is there."""
    if path.exists():
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        path.unlink()
