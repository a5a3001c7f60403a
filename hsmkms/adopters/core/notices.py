"""The events of one resource that its adopter has yet to acknowledge."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from hsmkms.adopters.client import AdopterKeyState, Event, KeyRefused, KeyServiceAway, KeyServiceClient

_log = structlog.get_logger(__name__)


class Notices:
    """Kept until they are acknowledged, or refused to be. One thread uses it."""

    def __init__(self, client: KeyServiceClient, key_id: str, resource_crn: str) -> None:
        self._client, self._key_id, self._crn = client, key_id, resource_crn
        self._pending: dict[str, Event] = {}
        self.last: Event | None = None

    def take(self, events: Iterable[Event]) -> bool:
        """Note events; whether one asks for a look. Those of other resources are not ours to answer."""
        asks = False
        for event in events:
            if event.resource_crn != self._crn or event.key_id != self._key_id:
                continue
            self.last = event
            if not event.acknowledged:
                self._pending[event.id] = event
                asks = True
        return asks

    def acknowledge(self, state: AdopterKeyState, key_version: str | None) -> None:
        """Say of all of them what was done; a service that is away is told the next time."""
        for event in list(self._pending.values()):
            try:
                self._client.acknowledge(event.id, state, key_version=key_version)
            except KeyServiceAway:
                return
            except KeyRefused as refused:
                # Such as an event of a registration that is gone by now: nothing is left to be said about it.
                _log.warning("acknowledgement refused", event_id=event.id, type=event.type, reason=refused.message)
            else:
                _log.info("acknowledged", event_id=event.id, type=event.type, correlation_id=event.correlation_id)
            del self._pending[event.id]
