"""What proves a log to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog

from hsmkms.audit import chain
from hsmkms.errors import NotOpen

_log = structlog.get_logger(__name__)

HEADS_TOLD: Final = 32
"""How many heads a checkpoint tells of at most: a log's own is among the newest of all right after it was put."""

Sign = Callable[[bytes], bytes]
"""ECDSA P-256 over SHA-256 of a message: r and s, 64 bytes. Raises Unavailable."""
Tell = Callable[[chain.Head, Mapping[int, str]], bool]
"""Have all nodes know a head. What they know of the log has to be one of these records, number → hash, which the caller
wrote or checked himself; else that stays, and the answer is False. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Who proves a log to others: the token's audit key, its public half (PEM), and the nodes that hear of heads.
    `known` is what they know of one log, `newest` the last HEADS_TOLD of all; both raise StoreUnavailable."""

    public_key: Callable[[], bytes]
    sign: Sign
    tell: Tell
    newest: Callable[[], Sequence[chain.Head]]
    known: Callable[[str], chain.Head | None]

    def newest_but(self, log: str) -> dict[str, tuple[int, str]]:
        """The newest heads of other logs: log → number and hash. Raises StoreUnavailable."""
        return {head.log: (head.sequence, head.digest) for head in self.newest() if head.log != log}

    def hear(self, head: chain.Head, before: Mapping[int, str]) -> None:
        """`tell`, and a log line if they know better. Raises StoreUnavailable."""
        if not self.tell(head, before):
            _log.error(
                "the database knows another record of an audit log than is in it, see docs/audit.md", log=head.log
            )


def _not_open(*_: object) -> NoReturn:
    raise NotOpen


NOBODY: Final = Witness(_not_open, _not_open, _not_open, _not_open, _not_open)
"""Before token and database are open."""
