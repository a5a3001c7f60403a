"""Checkpoints of the log that a process writes: signed in a thread of their own, so that events wait for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from queue import SimpleQueue

import structlog

from hsmkms.audit import chain
from hsmkms.audit.proof import signed
from hsmkms.audit.witness import NOBODY
from hsmkms.clock import Clock
from hsmkms.errors import HsmkmsError
from hsmkms.telemetry import metrics
from hsmkms.telemetry.logs import log_unexpected

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said beside a log's events: to the database of its own records, number → hash, and by its checkpoints of
    other logs."""

    own: dict[int, str] = field(default_factory=dict)
    of_others: dict[str, tuple[int, str]] = field(default_factory=dict)


class Signer:
    """Asks `witness`, which may be changed while none is under way; `wake` is called when a checkpoint is ready."""

    def __init__(self, clock: Clock, wake: Callable[[], None]) -> None:
        self.witness = NOBODY
        self._clock = clock
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit-checkpoint")
        self._under_way: Future[None] | None = None
        self._ready: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        self._said: dict[str, _Said] = {}

    def begin(self, log: str) -> None:
        """From now on checkpoints are of this log."""
        self._said = {log: _Said()}

    def ask(self, head: chain.Head) -> None:
        """Have a record signed, unless another is under way or not written yet: it may be the same."""
        if (self._under_way is None or self._under_way.done()) and self._ready.empty():
            self._under_way = self._thread.submit(self._sign_aside, head)
            self._under_way.add_done_callback(log_unexpected)

    def ready(self, log: str) -> Iterator[bytes]:
        """Checkpoints of this log (JSON) that were signed meanwhile; a log that is closed has a better one."""
        while not self._ready.empty():
            signed_log, content = self._ready.get_nowait()
            if signed_log == log:
                yield content

    def settle(self) -> None:
        """Wait for what is under way."""
        if self._under_way is not None:
            wait([self._under_way])

    def close(self) -> None:
        """The same, for good."""
        self._thread.shutdown()

    def checkpoint(self, head: chain.Head, *, final: bool) -> bytes:
        """A signed checkpoint of a record (JSON). Raises Unavailable."""
        said = self._said.get(head.log, _Said())
        said.own[head.sequence] = head.digest
        self.witness.hear(head, said.own)
        heads = self.witness.newest_but(head.log)
        # What this log said before it need not say again.
        news = {log: known for log, known in heads.items() if said.of_others.get(log) != known}
        content = signed(self.witness.sign, head, self._clock(), news, final=final)
        said.of_others.update(news)
        metrics.AUDIT_CHECKPOINTS.labels("success").inc()
        return content

    def tell_of_end(self, head: chain.Head) -> None:
        """That the log is closed; who does not hear it has heard of the record before."""
        try:
            self.witness.hear(head, self._said[head.log].own)
        except HsmkmsError as error:
            _log.warning("the end of an audit log could not be told", log=head.log, reason=error.message)

    def _sign_aside(self, head: chain.Head) -> None:
        try:
            content = self.checkpoint(head, final=False)
        except HsmkmsError as error:
            metrics.AUDIT_CHECKPOINTS.labels("failure").inc()
            _log.warning("an audit checkpoint could not be signed", log=head.log, reason=error.message)
            return
        self._ready.put((head.log, content))
        self._wake()
