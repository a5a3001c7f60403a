"""Many clients at once."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tests.support.caller import Call, Caller, Login


class Load:
    """`clients` threads that call until the block ends, each once in `pause_s` seconds; none of them uses a client's
    library that would try again by itself. With `purges` keys that they are done with are purged, so that their number
    stays what it is; the API key's owner needs the role for it."""

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        api_key: str,
        instance_id: str,
        *,
        clients: int,
        seed: int,
        pause_s: float = 0.1,
        purges: bool = False,
    ) -> None:
        self.urls, self.instance_id, self.pause_s, self.purges = urls, instance_id, pause_s, purges
        self.login = Login(urls, api_key)
        self.calls: list[Call] = []
        self.wrong: list[str] = []
        self.clock_moves = False
        self.stopping = threading.Event()
        self.callers = [Caller(self, seed * 1_000 + number) for number in range(clients)]
        self._threads = ThreadPoolExecutor(clients)
        self._running: list[Future[None]] = []

    def __enter__(self) -> Load:
        self.login.renew("")
        self._running = [self._threads.submit(caller.run) for caller in self.callers]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No further calls; raises what a client did not expect."""
        self.stopping.set()
        for one in self._running:
            one.result()
        self._running = []

    def go_on(self) -> None:
        """Call again after `stop`, if they do not."""
        if self._running:
            return
        self.stopping.clear()
        for caller in self.callers:
            caller.connect()
        self._running = [self._threads.submit(caller.run) for caller in self.callers]

    def first(self, wanted: Callable[[Call], bool], since: float, within_s: float) -> Call:
        """The first of the calls begun since that is wanted. Raises AssertionError when there is none so soon."""
        seen, deadline = len(self.calls) - 1, time.monotonic() + within_s
        while seen >= 0 and self.calls[seen].ended >= since:
            seen -= 1
        while True:
            for call in self.calls[seen + 1 :]:
                seen += 1
                if call.began >= since and wanted(call):
                    return call
            assert time.monotonic() < deadline, f"no such call within {within_s} s: {self.seen_since(since)}"
            self._raise()
            time.sleep(0.005)

    def wait_until_well(self, since: float, within_s: float) -> float:
        """Until many calls one after the other, of all clients, were answered; the moment when the first was."""
        enough, deadline = 4 * len(self.callers), time.monotonic() + within_s
        while True:
            last = self.calls[-enough:]
            if len(last) == enough and all(call.good and call.began >= since for call in last):
                return last[0].ended
            assert time.monotonic() < deadline, f"not well within {within_s} s: {self.seen_since(since)}"
            self._raise()
            time.sleep(0.01)

    def seen_since(self, moment: float) -> Counter[str]:
        """How often each action ended with each status among the calls that began since."""
        return Counter(f"{call.action} {call.status}" for call in tuple(self.calls) if call.began >= moment)

    def _raise(self) -> None:
        for one in self._running:
            if one.done():
                one.result()

    def lost(self) -> Sequence[str]:
        """What clients were told and is not there any more; the service is well and the clients are stopped."""
        for caller in self.callers:
            caller.connect()
        found = [one for ones in self._threads.map(Caller.lost, self.callers) for one in ones]
        for caller in self.callers:
            caller.close()
        return found


def seed_of_today() -> int:
    """From FAULT_SEED, or another one each time."""
    return int(os.environ.get("FAULT_SEED", random.randrange(1 << 31)))
