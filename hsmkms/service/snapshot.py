"""Keys, instances and rights in memory, so that a warm request needs no SQL.

A thread asks the change feed every POLL_S seconds and drops what changed. An entry is believed only while the last
answer of the feed is younger than MAX_AGE_S; after that every look-up goes to the database. So what another process
commits is obeyed here within a second, or the request fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from hsmkms.domain.keys import Key
from hsmkms.domain.tenants import Instance, SealedInstance
from hsmkms.errors import HsmkmsError, StoreUnavailable
from hsmkms.iam.grants import Grants
from hsmkms.service.bell import EventBell
from hsmkms.store.changes import Changes

POLL_S: Final = 0.25
MAX_AGE_S: Final = 1.0
MAX_KEYS: Final = 100_000

_log = structlog.get_logger(__name__)


class Snapshot:
    """What this process remembers of the database. Keys are immutable values, replaced whole."""

    def __init__(
        self,
        load_key: Callable[[str, str], Key | None],
        load_instances: Callable[[], list[SealedInstance]],
        grants: Grants,
        changes_since: Callable[[int], Changes],
        bell: EventBell,
    ) -> None:
        self._load_key = load_key
        self._load_instances = load_instances
        self._grants = grants
        self._changes_since = changes_since
        self._bell = bell
        self._refreshing = threading.Lock()
        self._lock = threading.Lock()
        self._keys: dict[tuple[str, str], Key] = {}
        self._references: dict[str, set[tuple[str, str]]] = {}
        self._instances: dict[str, Instance] = {}
        self._epoch = 0
        self._sequence = -1
        self._fresh_until = 0.0
        self._stop = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="change-feed", daemon=True)

    def start(self) -> None:
        """Load instances and rights and start to follow changes. Raises Unavailable."""
        self.refresh()
        self._poller.start()

    def stop(self) -> None:
        """End the polling thread."""
        self._stop.set()
        if self._poller.is_alive():
            self._poller.join()

    @property
    def age_s(self) -> float:
        """Seconds since the change feed was last asked with success."""
        return time.monotonic() - self._fresh_until + MAX_AGE_S

    @property
    def key_count(self) -> int:
        """How many keys are remembered, by id or alias."""
        return len(self._keys)

    @property
    def fresh(self) -> bool:
        """Whether what is remembered may be believed now."""
        return time.monotonic() < self._fresh_until

    def instance(self, instance_id: str) -> Instance | None:
        """An instance by id, from memory alone. Raises StoreUnavailable when the feed has been silent for too long."""
        if not self.fresh:
            raise StoreUnavailable("The database does not answer. Try again.")
        return self._instances.get(instance_id)

    def last_known(self, instance_id: str) -> Instance | None:
        """The same however old it is: to name an instance in a record, never to decide anything."""
        return self._instances.get(instance_id)

    def all_instances(self) -> list[Instance]:
        """The instances of every account, oldest first. Raises Unavailable."""
        if not self.fresh:
            self.refresh()
        return list(self._instances.values())

    def instances(self, account: str) -> list[Instance]:
        """The instances of an account, oldest first. Raises Unavailable."""
        return [instance for instance in self.all_instances() if instance.account == account]

    def remembered(self, instance_id: str, reference: str) -> Key | None:
        """The key by id or alias if it is in memory and fresh; None says nothing about whether it exists."""
        if not self.fresh:
            return None
        return self._keys.get((instance_id, reference))

    def both(self, instance_id: str, reference: str) -> tuple[Instance, Key] | None:
        """An instance and a key in it, if both are in memory and fresh."""
        if not self.fresh:
            return None
        instance, key = self._instances.get(instance_id), self._keys.get((instance_id, reference))
        return None if instance is None or key is None else (instance, key)

    def load(self, instance_id: str, reference: str) -> Key | None:
        """The key from the database, remembered for the next time. Raises StoreUnavailable."""
        epoch = self._epoch
        key = self._load_key(instance_id, reference)
        if key is None:
            return None
        with self._lock:
            # A change that was noticed while the row was being read may be newer than the row.
            if epoch == self._epoch:
                place = (instance_id, reference)
                if len(self._keys) >= MAX_KEYS:
                    self._forget(None)
                self._keys[place] = key
                self._references.setdefault(key.id, set()).add(place)
        return key

    def forget(self, key_id: str) -> None:
        """Drop a key that this process just changed."""
        with self._lock:
            self._forget(frozenset({key_id}))

    def refresh(self) -> None:
        """Ask the change feed once, and read again what grants. Raises Unavailable."""
        asked_at = time.monotonic()
        # One at a time, so that an older answer never overtakes a newer one.
        with self._refreshing:
            changes = self._changes_since(self._sequence)
            if changes.everything or changes.records:
                self._grants.refresh(None if changes.everything else changes.records)
            instances = None
            if changes.everything or changes.instances:
                found = self._grants.genuine_instances(self._load_instances())
                instances = {instance.id: instance for instance in found}
            with self._lock:
                if changes.everything or changes.key_ids:
                    self._forget(None if changes.everything else changes.key_ids)
                if instances is not None:
                    self._instances = instances
                self._sequence = changes.sequence
                self._fresh_until = max(self._fresh_until, asked_at + MAX_AGE_S)
        if changes.everything or changes.events:
            self._bell.ring(None if changes.everything else changes.events)

    def _forget(self, key_ids: frozenset[str] | None) -> None:
        self._epoch += 1
        if key_ids is None:
            self._keys.clear()
            self._references.clear()
            return
        for key_id in key_ids:
            for place in self._references.pop(key_id, ()):
                self._keys.pop(place, None)

    def _poll(self) -> None:
        silent = False
        while not self._stop.wait(POLL_S):
            try:
                self.refresh()
            except Exception as error:
                # Whatever it is, the thread goes on: what is remembered grows old and is not believed meanwhile.
                if not silent:
                    reason = error.message if isinstance(error, HsmkmsError) else type(error).__name__
                    _log.error("nothing remembered is believed until this ends", reason=reason)
                silent = True
            else:
                if silent:
                    _log.info("what is remembered is believed again")
                silent = False
