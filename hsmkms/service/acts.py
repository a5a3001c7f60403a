"""What somebody does, as far as it is known yet: the routes begin it, the services fill it in while they do it.

The services find it where they are called from (`current`), so that whatever reaches a key or a grant is in the audit
event, also when it is refused afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import msgspec

from hsmkms.domain.access import Caller
from hsmkms.domain.events import Acknowledgement, KeyEvent
from hsmkms.domain.importing import ImportToken
from hsmkms.domain.keys import Key


@dataclass(frozen=True, slots=True)
class GrantChange:
    """What a sealed record says before and after; `old` is None for a new one, `new` for one that goes."""

    kind: str
    id: str
    old: object | None
    new: object | None


class Act(msgspec.Struct):
    """One request, or one step of a job or of the operator.

    `reference` is the key's id or alias as it was asked for; `before` the key as it was found, `key` as it is
    afterwards; `failed` and `digest` are of a bulk's items.
    """

    action: str
    correlation_id: str
    uri: str | None = None
    address: str = ""
    caller: Caller | None = None
    credential: str | None = None
    actor: str | None = None
    instance_id: str | None = None
    key_ring_id: str | None = None
    reference: str | None = None
    before: Key | None = None
    key: Key | None = None
    version_id: str | None = None
    rewrapped_version_id: str | None = None
    total: int | None = None
    failed: int | None = None
    digest: str | None = None
    import_token: ImportToken | None = None
    resource_crn: str | None = None
    notice: KeyEvent | None = None
    acknowledgement: Acknowledgement | None = None
    grants: list[GrantChange] = msgspec.field(default_factory=list)
    refusal: str | None = None
    intent: str | None = None


_CURRENT: Final[ContextVar[Act | None]] = ContextVar("act", default=None)


def current() -> Act:
    """The act that is under way here; outside of any one that nobody looks at."""
    return _CURRENT.get() or Act("", "")


@contextlib.contextmanager
def acting(act: Act) -> Iterator[Act]:
    """Make it the current one for the block and the threads that it hands work to."""
    before = _CURRENT.set(act)
    try:
        yield act
    finally:
        _CURRENT.reset(before)
