"""Events: read by the services that registered a resource, in order and from where they left off; and acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.events import Acknowledgement, AdopterKeyState, EventType, KeyEvent, require_acknowledgement
from hsmkms.domain.registrations import ResourceCrn, require_owner, source_text
from hsmkms.errors import InvalidField, Refusal
from hsmkms.service.acts import current
from hsmkms.service.authorize import authorize_within
from hsmkms.service.cadf import ACKNOWLEDGED
from hsmkms.service.key_access import KeyAccess
from hsmkms.store.events import EventStore


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in order; `cursor` is where the next page begins, also when this one is empty."""

    events: Sequence[KeyEvent]
    cursor: int


class EventService:
    """Each method authorizes its caller first and raises Unauthorized."""

    def __init__(self, events: EventStore, access: KeyAccess, clock: Clock) -> None:
        self._events = events
        self._access = access
        self._clock = clock

    def read(self, caller: Caller, instance_id: str, after: int, most: int) -> EventPage:
        """Events behind `after` for resources that the caller acts for, of keys that it still may use."""
        account = self._access.known_instance(instance_id).account
        everything = authorize_within(caller, Action.EVENT_LIST, Target(account, instance_id))
        found = self._events.after(instance_id, map(source_text, caller.sources), after, most)
        cursor = found[-1].sequence if found else after
        if not everything:
            permit = caller.rights.permit
            found = [
                event
                for event in found
                if permit(Action.EVENT_LIST, Target(account, instance_id, event.key_ring_id, event.key_id))
            ]
        return EventPage(found, cursor)

    def of_key(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, most: int
    ) -> Sequence[KeyEvent]:
        """The newest events of a key, newest first, with how its services took them; a service sees its own."""
        key = self._access.key(caller, Action.REGISTRATION_LIST, instance_id, reference, key_ring_id)
        sources = tuple(f"{source_text(source)}:" for source in caller.sources)
        found = self._events.of_key(key.id, most)
        return [event for event in found if not sources or event.resource_crn.startswith(sources)]

    def acknowledge(self, caller: Caller, instance_id: str, acknowledgement: Acknowledgement) -> None:
        """Take a service's word for what it did about an event. A second word for the same event changes nothing.

        Raises InvalidField, RegistrationVersion, KeyStateConflict, KeyNotFound.
        """
        account = self._access.known_instance(instance_id).account
        authorize_within(caller, Action.EVENT_ACK, Target(account, instance_id))
        event = self._events.get(instance_id, acknowledgement.event_id)
        owned = tuple(f"{source_text(source)}:" for source in caller.sources)
        # An event of somebody else and one that does not exist are the same.
        if event is None or not event.resource_crn.startswith(owned):
            raise InvalidField("eventId", "There is no such event for a resource that this service id acts for.")
        key = self._access.key(caller, Action.EVENT_ACK, instance_id, event.key_id, None)
        act = current()
        act.action, act.notice, act.acknowledgement = f"{ACKNOWLEDGED}{event.type.value}", event, acknowledgement
        try:
            require_acknowledgement(event, key, acknowledgement)
        except Refusal as error:
            act.refusal = error.message
            raise
        self._events.acknowledge(event, acknowledgement, self._clock())

    def deactivate(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, crn: ResourceCrn
    ) -> None:
        """The older way to confirm that the DEKs of a resource are gone after its key was deleted (additions 3.9)."""
        key = self._access.key(caller, Action.EVENT_ACK, instance_id, reference, key_ring_id)
        require_owner(caller, crn)
        self._events.acknowledge_all(key.id, str(crn), EventType.DELETE, AdopterKeyState.DEK_DELETED, self._clock())

    def unacknowledged(self, most: int) -> Sequence[KeyEvent]:
        """For the operator: events of the whole deployment that nobody has acknowledged, oldest first."""
        return self._events.unacknowledged(most)
