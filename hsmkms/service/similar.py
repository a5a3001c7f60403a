"""Events that differ from the one before in id, time and correlation id alone: the rest is rendered once.

Whoever sends a request again and again, as most clients of wrap and unwrap do, gets an event each, of which nine tenths
are the same bytes. Everything that could make them others is compared, or keeps an event from being remembered.
"""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Final

import msgspec

from hsmkms.audit import event as e
from hsmkms.domain.access import Caller
from hsmkms.domain.keys import Key
from hsmkms.domain.tenants import Instance
from hsmkms.service.acts import Act

_PLAIN: Final = HTTPStatus.OK
_encode: Final = msgspec.json.Encoder().encode


class _Common(msgspec.Struct, frozen=True):
    caller: Caller | None
    instance: Instance | None
    key: Key
    address: str
    version_id: str | None
    parts: tuple[bytes, bytes, bytes]


class Similar:
    """What the last event of requests had in common with the next one. For acts alone whose action, URI, credential,
    instance, ring and reference are the same, which whoever keeps this makes sure of."""

    __slots__ = ("_common",)

    def __init__(self) -> None:
        self._common: _Common | None = None

    def render(
        self, act: Act, status: int, event_id: str, instance: Instance | None, key: Key | None, now: datetime
    ) -> bytes | None:
        """The event as JSON, if all of it is known but id, time and correlation id."""
        common = self._common
        if (
            common is None
            or status != _PLAIN
            or key is not common.key
            or act.caller is not common.caller
            or instance is not common.instance
            or act.version_id != common.version_id
            or act.address != common.address
            or act.rewrapped_version_id is not None
        ):
            return None
        begin, middle, end = common.parts
        own = event_id.encode(), _encode(now), act.correlation_id.encode()
        return b'%s"id":"%s","eventTime":%s%s"correlationId":"%s"%s' % (begin, *own[:2], middle, own[2], end)

    def learn(
        self, act: Act, status: int, event: e.Event, text: bytes, instance: Instance | None, key: Key | None
    ) -> None:
        """Remember what `event`, which became `text`, has in common with the next one. Nothing of a key that expires:
        what is told of it depends on the time."""
        self._common = None
        if key is None or key.expires_at is not None or status != _PLAIN or act.rewrapped_version_id is not None:
            return
        begin, _, rest = text.partition(b'"id":"%s","eventTime":%s' % (event.id.encode(), _encode(event.event_time)))
        middle, _, end = rest.partition(b'"correlationId":"%s"' % act.correlation_id.encode())
        if end:
            self._common = _Common(act.caller, instance, key, act.address, act.version_id, (begin, middle, end))
