"""Reads the events of an adopter's registrations in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from hsmkms.adopters.client import MAX_WAIT_S, AdopterError, Event, KeyRefused, KeyServiceClient

_PAUSE_S: Final = 2.0
_MOST_S: Final = 30.0


class EventListener:
    """Waits at the key service until there are events, and hands them on; no events stand for a failure, which is news
    too. The thread may outlive `stop` by the length of one request."""

    def __init__(self, client: KeyServiceClient, tell: Callable[[tuple[Event, ...]], None]) -> None:
        self._client, self._tell = client, tell
        self._ending = threading.Event()

    def start(self) -> None:
        """Read from the first event that is still kept."""
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        """Tell nothing from now on."""
        self._ending.set()

    def _listen(self) -> None:
        cursor, pause_s = 0, _PAUSE_S
        while not self._ending.is_set():
            try:
                page = self._client.events(cursor, wait_s=MAX_WAIT_S)
            except AdopterError as error:
                if isinstance(error, KeyRefused) or pause_s == _PAUSE_S:
                    self._tell(())
                self._ending.wait(pause_s)
                pause_s = min(pause_s * 2, _MOST_S)
                # A service that was restored from a backup counts from an earlier number.
                cursor = 0
                continue
            pause_s = _PAUSE_S
            if page.events:
                self._tell(page.events)
            cursor = page.cursor
