"""Which backend a host should use, and why.

With AES in the processor, and in the kernel's driver, fscrypt is the fastest; without, gocryptfs is, which uses the
processor itself. An image needs a size, so LUKS2 comes last.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final

from hsmkms.adopters.volume.backend import Backend
from hsmkms.adopters.volume.fscrypt import Fscrypt
from hsmkms.adopters.volume.gocryptfs import Gocryptfs
from hsmkms.adopters.volume.layout import Volume, VolumeRefused
from hsmkms.adopters.volume.luks import Luks

AUTO: Final = "auto"
_HARDWARE: Final = ("aesni", "vaes", "-ce", "-neonbs", "-cpacf", "s390", "p8_", "vx")


def backend_of(volume: Volume, *, supervised: bool = False) -> Backend:
    """The backend that a volume was made with. Raises VolumeRefused."""
    for backend in _all(supervised=supervised):
        if backend.name == volume.backend:
            reason = backend.why_not(volume)
            if reason is not None:
                raise VolumeRefused(f"The volume {volume.directory} needs {backend.name}, but {reason}.")
            return backend
    raise VolumeRefused(f"The volume {volume.directory} is of backend {volume.backend}, which this program has not.")


def choose(volume: Volume) -> tuple[Backend, str]:
    """A backend for a new volume, which `volume.backend` may name, and why it was taken. Raises VolumeRefused."""
    driver = aes_driver(_crypto())
    fast = is_hardware(driver)
    notes = [f"the kernel's AES driver for files is {driver or 'missing'}, {'hardware' if fast else 'software'}"]
    for backend in _all(kernel_first=fast):
        if volume.backend not in (AUTO, backend.name):
            continue
        reason = backend.why_not(volume)
        if reason is None:
            return backend, f"{backend.name} ({'; '.join(notes)})"
        notes.append(f"not {backend.name}: {reason}")
    raise VolumeRefused(f"No backend can be used here: {'; '.join(notes)}.")


def aes_driver(crypto: str) -> str | None:
    """The driver of AES in XTS mode with the highest priority, in the text of /proc/crypto; else that of AES itself."""
    best: dict[str, tuple[int, str]] = {}
    for block in crypto.split("\n\n"):
        fields = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
        found = {name.strip(): value.strip() for name, value in fields.items()}
        name, driver = found.get("name", ""), found.get("driver", "")
        priority = int(found.get("priority", "0"))
        if name in ("xts(aes)", "aes") and priority >= best.get(name, (-1, ""))[0]:
            best[name] = priority, driver
    chosen = best.get("xts(aes)") or best.get("aes")
    return None if chosen is None else chosen[1]


def is_hardware(driver: str | None) -> bool:
    """Whether an AES driver of the kernel uses instructions for it."""
    return driver is not None and any(word in driver for word in _HARDWARE)


def _crypto() -> str:
    """/proc/crypto, once the kernel was asked for the mode: it loads and lists a driver when that is first used."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as asked:
        asked.bind(("skcipher", "xts(aes)"))
    return Path("/proc/crypto").read_text()


def _all(*, supervised: bool = False, kernel_first: bool = False) -> tuple[Backend, ...]:
    fscrypt, gocryptfs = Fscrypt(supervised=supervised), Gocryptfs(supervised=supervised)
    files: tuple[Backend, ...] = (fscrypt, gocryptfs) if kernel_first else (gocryptfs, fscrypt)
    return (*files, Luks(supervised=supervised))
