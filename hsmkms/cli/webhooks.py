"""`hsmkms webhooks` and `hsmkms events`: what source services are told, and whether they took it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hsmkms.cli.local import AccountOption, JsonOption, in_account, rooms, show
from hsmkms.domain.webhooks import Delivery, Webhook

app = typer.Typer(help="Manage where events are pushed to.", no_args_is_help=True)

_SHOWN = 1_000


@app.command("list")
def list_webhooks(json: JsonOption = False) -> None:
    """List the webhooks of every account, and how far each is."""
    with rooms() as here:
        show([_describe(webhook, delivery) for webhook, delivery in here.services.webhooks.list()], json)


@app.command("add")
def add(
    source: Annotated[str, typer.Argument(help="CRN of an instance of a source service.")],
    url: Annotated[str, typer.Argument(help="https URL that takes Security Event Tokens by POST (RFC 8935).")],
    ca_file: Annotated[Path | None, typer.Option(help="Trust these certificates there, not the system's.")] = None,
    account: AccountOption = None,
    json: JsonOption = False,
) -> None:
    """Push the events of a source from now on; `GET /events` has them all the same."""
    with in_account(account) as (here, operator):
        webhook = here.services.webhooks.add(operator, source, url, ca_file)
        show([_describe(webhook, None)], json)


@app.command("remove")
def remove(webhook_id: Annotated[str, typer.Argument(help="Id of the webhook.")]) -> None:
    """Push no more to a webhook."""
    with rooms() as here:
        here.services.webhooks.remove(webhook_id)


def events(json: JsonOption = False) -> None:
    """Show the events that no service has acknowledged, oldest first; failed ones are over four hours old."""
    with rooms() as here:
        now = here.services.clock()
        rows = [
            {
                "status": event.status(now).value,
                "event": event.type.value,
                "key": event.key_id,
                "resource": event.resource_crn,
                "since": event.created_at,
                "id": event.id,
            }
            for event in here.services.events.unacknowledged(_SHOWN)
        ]
        show(rows, json)


def _describe(webhook: Webhook, delivery: Delivery | None) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "source": webhook.source,
        "url": webhook.url,
        "failed tries": None if delivery is None else delivery.attempts,
        "next try": None if delivery is None else delivery.next_at,
        "last error": None if delivery is None else delivery.last_error,
    }
