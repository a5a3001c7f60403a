"""Finds data that a server would keep outside its volume, where it would lie in clear."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from hsmkms.adopters.volume.layout import VolumeRefused
from hsmkms.adopters.volume.mounts import mounts_below
from hsmkms.adopters.volume.server import Server

_POSTGRES: Final = ("postgres", "postmaster")
_MOST_NAMED: Final = 5


class DataOutside(VolumeRefused):
    """Some of the data is not on the volume."""

    def __init__(self, found: Iterable[str], mount: Path) -> None:
        listed = list(found)
        more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
        super().__init__(f"Data outside {mount} would lie in clear: {'; '.join(listed[:_MOST_NAMED])}{more}.")


def require_inside(mount: Path, server: Server | None, data: Iterable[Path] = ()) -> None:
    """Refuse to start a server some of whose data is elsewhere: behind links (a WAL directory, tablespaces), in the
    places that PostgreSQL's settings name, or in those that the operator names (`data`). Raises VolumeRefused.
    """
    found = [f"the link {link} leads to {target}" for link, target in _links_out(mount)]
    found += [f"{place} is another file system" for place in mounts_below(mount)]
    found += [f"{path} is not on it" for path in data if not _is_inside(path, mount)]
    if server is not None and Path(server.command[0]).name in _POSTGRES:
        found += _settings_out(mount, server)
    if found:
        raise DataOutside(found, mount)


def _links_out(mount: Path) -> Iterator[tuple[Path, Path]]:
    for directory, names, files in os.walk(mount, onerror=_unseen):
        for name in (*names, *files):
            path = Path(directory, name)
            if path.is_symlink() and not _is_inside(path, mount):
                yield path, path.resolve()


def _unseen(error: OSError) -> None:
    raise VolumeRefused(f"{error.filename} cannot be searched for data that leads out: {error.strerror}.")


def _settings_out(mount: Path, server: Server) -> Iterator[str]:
    data_directory = server.ask("-C", "data_directory")
    if data_directory is None:
        # The server itself will say why it cannot read its settings.
        return
    if not _is_inside(Path(data_directory), mount):
        yield f"data_directory is {data_directory}"
    logs = server.ask("-C", "log_directory")
    if server.ask("-C", "logging_collector") == "on" and logs and not _is_inside(Path(data_directory, logs), mount):
        yield f"log_directory is {logs}"


def _is_inside(path: Path, mount: Path) -> bool:
    return path.resolve().is_relative_to(mount)
