"""What proves a log to others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from hsmkms.audit import chain
from hsmkms.errors import NotOpen

HEADS_TOLD: Final = 32
"""How many heads a checkpoint tells of at most: a log's own is among the newest of all right after it was put."""

Sign = Callable[[bytes], bytes]
"""ECDSA P-256 over SHA-256 of a message: r and s, 64 bytes. Raises Unavailable."""
Exchange = Callable[[chain.Head], Sequence[chain.Head]]
"""Tell all nodes of a head, and hear the newest ones, HEADS_TOLD of them. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Who proves a log to others: the token's audit key, its public half (PEM), and the nodes that hear of heads."""

    public_key: Callable[[], bytes]
    sign: Sign
    exchange: Exchange


def _not_open(*_: object) -> NoReturn:
    raise NotOpen


NOBODY: Final = Witness(_not_open, _not_open, _not_open)
"""Before token and database are open."""
