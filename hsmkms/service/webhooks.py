"""Webhooks: events pushed as signed Security Event Tokens (RFC 8417) by HTTP POST (RFC 8935), with bounded retries.

Only the operator sets them, on the host: who chooses a URL makes this service call it. An event that cannot be
delivered is not lost: it waits behind the cursor of `GET /events` like every other.
"""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import structlog

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.crn import parse_source_crn
from hsmkms.domain.events import KeyEvent
from hsmkms.domain.ids import new_id
from hsmkms.domain.jobs import Done
from hsmkms.domain.registrations import source_text
from hsmkms.domain.webhooks import MAX_URL_CHARS, Delivery, Webhook, delivered, failed
from hsmkms.errors import Conflict, Invalid, NotFound
from hsmkms.iam.grants import Grants
from hsmkms.outbound import is_private, opener
from hsmkms.service.rights import Delete, Insert, RightsWriter
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.tokens import TokenService
from hsmkms.store.events import EventStore
from hsmkms.store.webhooks import DeliveryStore

MEDIA_TYPE: Final = "application/secevent+jwt"
EVENT_URI: Final = "urn:hsmkms:event:key"
TIMEOUT_S: Final = 5.0
BATCH: Final = 50
_AT_ONCE: Final = 8
_RUN_S: Final = 15.0

_log = structlog.get_logger(__name__)


class WebhookService:
    """What the operator sets, and what the job delivers."""

    def __init__(
        self,
        grants: Grants,
        rights: RightsWriter,
        snapshot: Snapshot,
        events: EventStore,
        deliveries: DeliveryStore,
        tokens: TokenService,
        clock: Clock,
    ) -> None:
        self._grants = grants
        self._rights = rights
        self._snapshot = snapshot
        self._events = events
        self._deliveries = deliveries
        self._tokens = tokens
        self._clock = clock
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")
        self._busy: dict[str, Future[Done]] = {}

    def add(self, operator: Caller, source_crn: str, url: str, ca_file: Path | None) -> Webhook:
        """Push events of an instance of a source service to a URL. Raises Invalid, Conflict."""
        source = parse_source_crn(source_crn)
        if source is None or source.account != operator.account:
            raise Invalid("Give the CRN of an instance of a source service of this account.")
        if not is_private(url) or len(url) > MAX_URL_CHARS:
            raise Invalid("Give an https URL, or an http URL on this host.")
        self._snapshot.refresh()
        place = source_text(source)
        if self._grants.about(Webhook, place):
            raise Conflict("The source has a webhook already. Remove that one first.")
        webhook = Webhook(
            id=new_id(),
            account=operator.account,
            source=place,
            url=url,
            ca_file=None if ca_file is None else str(ca_file.resolve()),
            created_at=self._clock(),
            created_by=operator.iam_id,
        )
        # The cursor first: without it the webhook would be one that nobody can deliver to.
        self._deliveries.begin(webhook.id)
        self._rights.commit(operator.account, [Insert(webhook)])
        return webhook

    def list(self) -> Sequence[tuple[Webhook, Delivery | None]]:
        """Every webhook of the deployment, and how far it is."""
        self._snapshot.refresh()
        return [(webhook, self._deliveries.get(webhook.id)) for webhook in self._grants.about(Webhook)]

    def remove(self, webhook_id: str) -> None:
        """Push no more. Raises NotFound."""
        self._snapshot.refresh()
        held = self._grants.record(Webhook, webhook_id)
        if held is None:
            raise NotFound("webhook")
        self._rights.commit(held[1].account, [Delete(held[0])])
        self._deliveries.end(webhook_id)

    def count_due(self) -> int:
        """How many events wait to be delivered, counting no more than a run of each webhook."""
        waiting = [self._events.of_source(w.source, d.cursor, BATCH) for w, d in self.list() if d is not None]
        return sum(map(len, waiting))

    def deliver_due(self, go_on: Callable[[], bool]) -> Done:
        """Push to every webhook what it has not got. One that hangs keeps the others waiting for one run at most."""
        started = []
        for webhook in self._grants.about(Webhook):
            if not go_on():
                break
            if webhook.id not in self._busy or self._busy[webhook.id].done():
                self._busy[webhook.id] = self._threads.submit(self._deliver, webhook, go_on)
                started.append(self._busy[webhook.id])
        wait(started, timeout=_RUN_S)
        ended = [future.result() for future in started if future.done()]
        return Done(sum(done.changed for done in ended), sum(done.failed for done in ended))

    def close(self) -> None:
        """Wait for the calls that are under way."""
        self._threads.shutdown(cancel_futures=True)

    def _deliver(self, webhook: Webhook, go_on: Callable[[], bool]) -> Done:
        """In order: what cannot be delivered now keeps back what came after it."""
        changed = 0
        delivery = self._deliveries.get(webhook.id)
        if delivery is None or (delivery.next_at is not None and self._clock() < delivery.next_at):
            return Done(0, 0)
        for event in self._events.of_source(webhook.source, delivery.cursor, BATCH):
            if not go_on():
                break
            error = self._push(webhook, event) if self._is_for(webhook, event) else None
            delivery = delivered(event) if error is None else failed(delivery, event, error, self._clock())
            self._deliveries.put(webhook.id, delivery)
            if error is not None:
                _log.warning("a webhook does not take an event", webhook=webhook.id, event_id=event.id, reason=error)
                return Done(changed, 1)
            changed += 1
        return Done(changed, 0)

    def _is_for(self, webhook: Webhook, event: KeyEvent) -> bool:
        """Whether the source may still hear of the key, and has not acknowledged what it read otherwise."""
        instance = self._snapshot.instance(event.instance_id)
        if instance is None or instance.account != webhook.account or event.acknowledged_at is not None:
            return False
        source = parse_source_crn(f"{webhook.source}::")
        if source is None:
            return False
        target = Target(instance.account, instance.id, event.key_ring_id, event.key_id)
        return self._grants.rights_of_sources([source], instance.account).permit(Action.EVENT_LIST, target)

    def _push(self, webhook: Webhook, event: KeyEvent) -> str | None:
        """One POST; what was wrong, or None. 400 is the receiver's word that it never will take it (RFC 8935, 2.3)."""
        token = self._tokens.sign_security_event(event.id, webhook.source, event.correlation_id, _claims(event))
        headers = {"Content-Type": MEDIA_TYPE, "Accept": "application/json", "Correlation-Id": event.correlation_id}
        request = urllib.request.Request(webhook.url, token.encode(), headers, method="POST")
        ca_file = None if webhook.ca_file is None else Path(webhook.ca_file)
        try:
            with opener(ca_file).open(request, timeout=TIMEOUT_S) as answer:
                return None if 200 <= answer.status < 300 else f"status {answer.status}"
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.BAD_REQUEST:
                _log.error("a webhook refuses an event for good", webhook=webhook.id, event_id=event.id)
                return None
            return f"status {error.code}"
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__


def _claims(event: KeyEvent) -> dict[str, Any]:
    """The event as `GET /events` tells it; its other members are claims of the token itself."""
    return {
        EVENT_URI: {
            "eventType": event.type.value,
            "instanceId": event.instance_id,
            "keyId": event.key_id,
            "resourceCrn": event.resource_crn,
            "keyState": int(event.key_state),
            "keyVersion": event.version_id,
            "acknowledgeBefore": int(event.due_at.timestamp()),
        }
    }
