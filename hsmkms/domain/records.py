"""A sealed record: the bytes of one document that grants something, with the MAC that proves who wrote them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """`document` is JSON of a value of `kind`; `mac` covers every other member. Revisions count from 1."""

    kind: str
    id: str
    account: str
    revision: int
    document: bytes
    mac: bytes

    @property
    def place(self) -> tuple[str, str]:
        """What names it."""
        return (self.kind, self.id)
