"""How far each webhook is. Where it leads is a sealed record; this is not, as it grants nothing."""

from __future__ import annotations

from sqlalchemy import delete, func, insert, select, update

from hsmkms.domain.webhooks import Delivery
from hsmkms.store import tables as t
from hsmkms.store.engine import Database


class DeliveryStore:
    """Rows of deliveries. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, webhook_id: str) -> None:
        """Commit that a new webhook starts behind the newest event there is."""
        newest = select(func.coalesce(func.max(t.key_event.c.sequence), 0)).scalar_subquery()
        with self._database.write() as connection:
            connection.execute(insert(t.delivery).values(webhook_id=webhook_id, cursor=newest, attempts=0))

    def get(self, webhook_id: str) -> Delivery | None:
        """How far a webhook is."""
        with self._database.read() as connection:
            row = connection.execute(select(t.delivery).where(t.delivery.c.webhook_id == webhook_id)).first()
        return None if row is None else Delivery(row.cursor, row.attempts, row.next_at, row.last_error)

    def put(self, webhook_id: str, delivery: Delivery) -> None:
        """Commit how far a webhook is."""
        with self._database.write() as connection:
            connection.execute(
                update(t.delivery)
                .where(t.delivery.c.webhook_id == webhook_id)
                .values(
                    cursor=delivery.cursor,
                    attempts=delivery.attempts,
                    next_at=delivery.next_at,
                    last_error=delivery.last_error,
                )
            )

    def end(self, webhook_id: str) -> None:
        """Commit that a webhook is no more."""
        with self._database.write() as connection:
            connection.execute(delete(t.delivery).where(t.delivery.c.webhook_id == webhook_id))
