"""The last key_id that was true, kept beside the socket: a plugin that starts while the key service is away tells the
same key_id as before, and so the API server goes on. It is public; no DEK is ever written."""

from __future__ import annotations

from pathlib import Path

import structlog

from hsmkms.adopters.core import atomic
from hsmkms.adopters.kubernetes.key_id import KeyId
from hsmkms.adopters.kubernetes.refusals import RequestInvalid

_log = structlog.get_logger(__name__)


class LastKeyId:
    """The file; nothing depends on it but a start without the key service."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written: KeyId | None = None

    def read(self) -> KeyId | None:
        """What it holds, if that is a key_id."""
        try:
            return KeyId.parse(self._file.read_text().strip())
        except (OSError, ValueError, RequestInvalid):
            return None

    def write(self, key_id: KeyId) -> None:
        """Keep it, unless it is kept already."""
        if key_id == self._written:
            return
        try:
            atomic.replace(self._file, f"{key_id}\n".encode())
        except OSError as error:
            _log.warning("the key_id cannot be kept", file=str(self._file), reason=error.strerror)
        self._written = key_id

    def forget(self) -> None:
        """The key is refused: a later start must not go on under it."""
        self._written = None
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the key_id cannot be forgotten", file=str(self._file), reason=error.strerror)
