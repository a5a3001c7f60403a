"""What a volume needs of whatever encrypts its files."""

from __future__ import annotations

from typing import Protocol

from hsmkms.adopters.volume.layout import Volume, VolumeLock
from hsmkms.domain.secrets import SecretBytes


class Backend(Protocol):
    """One way to encrypt a directory. No method leaves the DEK in arguments, in the environment or on disk."""

    @property
    def name(self) -> str: ...

    def why_not(self, volume: Volume) -> str | None:
        """Why it cannot be used for a volume on this host, or None when it can."""

    def create(self, volume: Volume, dek: SecretBytes) -> None:
        """Make what is in `cipher`, a directory that is there and empty. Raises VolumeRefused."""

    def open(self, volume: Volume, dek: SecretBytes, lock: VolumeLock) -> int | None:
        """Show the data at `mount`; the id of the process that does, None when the kernel does.

        Raises VolumeRefused.
        """

    def close(self, volume: Volume) -> None:
        """Take the data and the DEK away and verify it; nothing happens when it is closed. Raises LockFailed."""

    def is_open(self, volume: Volume) -> bool:
        """Whether the data can be read."""
