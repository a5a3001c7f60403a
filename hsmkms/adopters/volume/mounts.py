"""What is mounted where, and waiting until something is."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkms.adopters.volume.layout import VolumeRefused

_MOUNTS: Final = "/proc/self/mountinfo"
_FUSE_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo."""

    place: Path
    kind: str
    source: str
    minor: str
    """Of its device number, by which the kernel names a connection of FUSE."""


def mounted_at(place: Path) -> Mount | None:
    """What is mounted at a path, the topmost; also when it does not answer any more."""
    found = None
    for mount in _all():
        if mount.place == place:
            found = mount
    return found


def mounts_below(place: Path) -> list[Path]:
    """Where something else is mounted below a path."""
    return [mount.place for mount in _all() if mount.place != place and mount.place.is_relative_to(place)]


def _all() -> Iterator[Mount]:
    for line in Path(_MOUNTS).read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, source = map(_plain, after.split()[:2])
        yield Mount(Path(_plain(fields[4])), kind, source, fields[2].partition(":")[2])


def unmount_fuse(place: Path, *, lazily: bool = False) -> bool:
    """Take a FUSE file system away; whether that worked. Lazily: also while files of it are open."""
    program = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"
    done = subprocess.run(
        [program, "-u", *(["-z"] if lazily else []), str(place)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def abort_fuse(mount: Mount) -> None:
    """Have every request to a FUSE file system fail from now on. Without that a process that was killed while it waited
    for an answer of its own file system never ends, and keeps what it has open."""
    if os.geteuid() == 0:
        # Its path must not be looked up in the file system, which does not answer.
        command = ["umount", "--force", "--no-canonicalize", "--", str(mount.place)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return
    with contextlib.suppress(OSError):
        # fs/fuse/control.c: the control file system is there on hosts that have mounted it.
        (_FUSE_CONNECTIONS / mount.minor / "abort").write_text("1")


def mount(how: str, source: Path, place: Path) -> None:
    """Mount something; `how` is an option of mount(8). Raises VolumeRefused."""
    done = subprocess.run(
        ["mount", how, "--", str(source), str(place)], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise VolumeRefused(f"{source} cannot be mounted at {place}: {done.stderr.decode(errors='replace').strip()}")


def unmount(place: Path) -> bool:
    """Take a file system of the kernel away; whether that worked."""
    done = subprocess.run(["umount", "--", str(place)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


def holders_of(place: Path) -> list[int]:
    """Processes that have a file below a path open or stand in it, those that this user may see."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        links = [process / "cwd", process / "root"]
        try:
            links += (process / "fd").iterdir()
            if any(_points_below(link, place) for link in links):
                found.append(int(process.name))
        except OSError:
            # It ended meanwhile, or is another user's.
            continue
    return found


def wait_for_end(pids: Iterable[int], longest_s: float) -> None:
    """Until one of these processes has ended, or the time is over."""
    with contextlib.ExitStack() as stack:
        ended = []
        for pid in pids:
            try:
                ended.append(os.pidfd_open(pid))
            except ProcessLookupError:
                return
            stack.callback(os.close, ended[-1])
        select.select(ended, [], [], longest_s)


def names_of(pids: Iterable[int]) -> str:
    """Processes in words, for whoever has to end them."""
    names = []
    for pid in sorted(set(pids)):
        with contextlib.suppress(OSError):
            names.append(f"{Path(f'/proc/{pid}/comm').read_text().strip()} ({pid})")
    return ", ".join(names) or "a process that is not to be seen from here"


def _points_below(link: Path, place: Path) -> bool:
    try:
        return Path(os.readlink(link)).is_relative_to(place)
    except OSError:
        return False


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
