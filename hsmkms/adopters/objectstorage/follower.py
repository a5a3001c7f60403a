"""Follows the root keys of an account's buckets: rewraps DEKs after a rotation, answers events, mends registrations.

Reading and writing is Swift's own business: its keymaster asks the key service whenever a DEK in memory is too old. So
nothing here opens or locks; what this does may come late.

Every few minutes all buckets are looked at. Events only say which to look at now.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from hsmkms.adopters.client import (
    MAX_WAIT_S,
    AdopterError,
    AdopterKeyState,
    CiphertextRefused,
    ConnectionInvalid,
    Event,
    Key,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
    KeyState,
)
from hsmkms.adopters.core.dek_file import DekFileInvalid, WrappedDekFile
from hsmkms.adopters.objectstorage.bucket import BucketDeks
from hsmkms.adopters.objectstorage.configuration import Account
from hsmkms.adopters.objectstorage.provisioning import DESCRIPTION

LOOK_S: Final = 300.0
_ORPHANED_AFTER: Final = timedelta(minutes=10)
"""A registration is written before its bucket, so one without a bucket is not at once a leftover."""

_log = structlog.get_logger(__name__)


class StorageAway(AdopterError):
    """Swift does not answer; nothing is known about its buckets."""


class Buckets(Protocol):
    """The containers of an account, with the rights of the operator."""

    def names(self) -> Iterable[str]:
        """All of them. Raises StorageAway."""

    def deks(self, bucket: str) -> BucketDeks | None:
        """Raises StorageAway, DekFileInvalid."""

    def store(self, bucket: str, dek: WrappedDekFile) -> None:
        """Put a rewrapped DEK in the place of the one with its id. Raises StorageAway."""


@dataclass(frozen=True)
class Row:
    """A bucket under a root key, as `hsmkms adopt status` shows it."""

    resource: str
    condition: str
    key: str
    key_version: str
    reason: str | None
    last_event: str | None


@dataclass
class _Waiting:
    """An event that is not acknowledged; `refused_since` is when its key was first seen not to open."""

    event: Event
    refused_since: float | None = None


@dataclass
class _Seen:
    """What one look at the buckets found: keys by their CRNs, DEKs whose keys open, resources with retention."""

    keys: dict[str, Key] = field(default_factory=dict)
    open: list[WrappedDekFile] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)


class AccountFollower:
    """One thread uses it. `cache_s` is how long DEKs live in Swift's memory at most."""

    def __init__(
        self,
        client: KeyServiceClient,
        account: Account,
        buckets: Buckets,
        cache_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client, self._account, self._buckets, self._cache_s = client, account, buckets, cache_s
        self._monotonic, self._now = monotonic, now
        self._waiting: dict[str, _Waiting] = {}
        self._last: dict[str, Event] = {}
        self._cursors: dict[str, int] = {client.connection.instance_id: 0}
        self.rows: dict[str, Row] = {}
        self.looked_at: float | None = None

    @property
    def name(self) -> str:
        """The account."""
        return self._account.name

    @property
    def pending(self) -> int:
        """How many events wait to be acknowledged."""
        return len(self._waiting)

    def look_at_all(self) -> None:
        """Look at every bucket and every registration. Raises StorageAway."""
        rows, seen = {}, _Seen()
        for name in self._buckets.names():
            row = self._look(name, seen)
            if row is not None:
                rows[row.resource] = row
        self.rows, self.looked_at = rows, self._monotonic()
        for instance_id in self._cursors:
            try:
                self._mend_registrations(self._client.for_instance(instance_id), seen)
            except (KeyServiceAway, ConnectionInvalid, KeyRefused) as error:
                _log.warning("registrations were not looked at", instance=instance_id, reason=error.message)

    def listen(self, wait_s: int = MAX_WAIT_S) -> bool:
        """Wait for events of all instances whose keys are used, the longest of the first; whether there were any.

        Raises KeyServiceAway, KeyRefused, ConnectionInvalid.
        """
        heard, refused = False, None
        for instance_id in list(self._cursors):
            client = self._client.for_instance(instance_id)
            try:
                page = client.events(self._cursors[instance_id], wait_s=0 if heard else wait_s // len(self._cursors))
            except KeyRefused as error:
                # The right in one instance may be gone while there is one in another.
                refused = error
                continue
            for event in page.events:
                if self._account.bucket_of(event.resource_crn) is None:
                    continue
                self._last[event.resource_crn] = event
                if not event.acknowledged:
                    self._waiting.setdefault(event.id, _Waiting(event))
                    heard = True
            self._cursors[instance_id] = page.cursor
        if refused is not None and not heard and not self._waiting:
            raise refused
        return heard

    def answer(self) -> None:
        """Look at the buckets that events are about, and acknowledge what is done. Raises StorageAway."""
        seen = _Seen()
        for crn in {waiting.event.resource_crn for waiting in self._waiting.values()}:
            bucket = self._account.bucket_of(crn)
            row = None if bucket is None else self._look(bucket, seen)
            if row is not None:
                self.rows[crn] = row
            else:
                self.rows.pop(crn, None)

    def _look(self, bucket: str, seen: _Seen) -> Row | None:
        crn = self._account.bucket_crn(bucket)
        try:
            deks = self._buckets.deks(bucket)
        except DekFileInvalid as invalid:
            _log.error("a wrapped DEK is damaged", bucket=bucket, reason=invalid.message)
            return Row(crn, "damaged", "", "", invalid.message, self._last_of(crn))
        self._forget_events(crn, set() if deks is None else {dek.key_id for dek in deks.deks})
        if deks is None:
            return None
        if deks.keeps_key:
            seen.kept.add(crn)
        rows = [self._look_at_key(bucket, dek, seen) for dek in deks.deks]
        return rows[0]

    def _look_at_key(self, bucket: str, dek: WrappedDekFile, seen: _Seen) -> Row:
        try:
            client, key_id = self._client.at_key(dek.key_crn)
        except ConnectionInvalid as invalid:
            return self._row(dek, "damaged", invalid.message)
        self._cursors.setdefault(client.connection.instance_id, 0)
        try:
            key = seen.keys.get(dek.key_crn) or client.key(key_id)
            seen.keys[dek.key_crn] = key
            if key.opens:
                dek = self._follow_version(client, bucket, dek, key)
                seen.open.append(dek)
        except (KeyServiceAway, ConnectionInvalid) as away:
            return self._row(dek, "key service away", away.message)
        except CiphertextRefused as refused:
            _log.error("a wrapped DEK does not open", resource=dek.resource_crn, reason=refused.message)
            return self._row(dek, "damaged", refused.message)
        except KeyRefused as refused:
            self._acknowledge(client, dek, None)
            return self._row(dek, "locked", refused.message)
        self._acknowledge(client, dek, key)
        return self._row(dek, "open", None) if key.opens else self._row(dek, "locked", f"The root key is {_word(key)}.")

    def _follow_version(self, client: KeyServiceClient, bucket: str, dek: WrappedDekFile, key: Key) -> WrappedDekFile:
        """Put a DEK under the newest version of its key; what was stored before opens as well."""
        if key.version is None or key.version == dek.key_version:
            return dek
        rewrapped = client.rewrap(key.id, dek.ciphertext, dek.aad)
        moved = dek.moved(rewrapped)
        self._buckets.store(bucket, moved)
        _log.info("DEK rewrapped", resource=dek.resource_crn, key_version=moved.key_version)
        try:
            client.registered_version(key.id, dek.resource_crn, moved.key_version)
        except KeyRefused as refused:
            _log.warning("the registration does not show the new version", reason=refused.message)
        return moved

    def _acknowledge(self, client: KeyServiceClient, dek: WrappedDekFile, key: Key | None) -> None:
        """Answer the events about a DEK with how it is now. `key` is None when the key service refuses to show it."""
        for event_id, waiting in list(self._waiting.items()):
            if waiting.event.resource_crn != dek.resource_crn or waiting.event.key_id != dek.key_id:
                continue
            if key is not None and key.opens:
                waiting.refused_since = None
                self._say(client, event_id, AdopterKeyState.DEK_ENABLED, dek.key_version)
                continue
            if waiting.refused_since is None:
                waiting.refused_since = self._monotonic()
            # Swift's processes asked before this moment, if they did; what they got has ended after this time.
            if self._monotonic() - waiting.refused_since >= self._cache_s:
                deleted = key is not None and key.state is KeyState.DESTROYED
                self._say(client, event_id, AdopterKeyState.DEK_DELETED if deleted else AdopterKeyState.DEK_DISABLED)

    def _forget_events(self, crn: str, key_ids: set[str]) -> None:
        """Events about a bucket that is no more, or is under other keys: its registration ends, and they with it."""
        for event_id, waiting in list(self._waiting.items()):
            if waiting.event.resource_crn == crn and waiting.event.key_id not in key_ids:
                _log.info("event of a deleted bucket", event_id=event_id, resource=crn)
                del self._waiting[event_id]

    def _say(self, client: KeyServiceClient, event_id: str, state: AdopterKeyState, version: str | None = None) -> None:
        try:
            client.acknowledge(event_id, state, key_version=version)
        except (KeyServiceAway, ConnectionInvalid):
            return
        except KeyRefused as refused:
            # Such as an event of a registration that is gone by now: nothing is left to be said about it.
            _log.warning("acknowledgement refused", event_id=event_id, reason=refused.message)
        else:
            _log.info("acknowledged", event_id=event_id, state=state.value)
        del self._waiting[event_id]

    def _mend_registrations(self, client: KeyServiceClient, seen: _Seen) -> None:
        """End registrations of buckets that are no more; register again what has lost its registration."""
        written = {}
        for registration in list(client.registrations()):
            bucket, crn = self._account.bucket_of(registration.resource_crn), registration.resource_crn
            written[registration.key_id, crn] = registration.key_version
            if bucket is None or self._now() - registration.created_at < _ORPHANED_AFTER:
                continue
            if not self._is_under(bucket, registration.key_id):
                client.deregister(registration.key_id, crn)
                _log.warning("ended the registration of a bucket that is gone", resource=crn)
        for dek in seen.open:
            at, key_id = client.at_key(dek.key_crn)
            if at.connection.instance_id != client.connection.instance_id:
                continue
            told = written.get((key_id, dek.resource_crn))
            if told is None:
                kept = dek.resource_crn in seen.kept
                client.register(key_id, dek.resource_crn, prevent_deletion=kept, description=DESCRIPTION)
                _log.warning("registered again", resource=dek.resource_crn)
            if told != dek.key_version:
                client.registered_version(key_id, dek.resource_crn, dek.key_version)

    def _is_under(self, bucket: str, key_id: str) -> bool:
        try:
            deks = self._buckets.deks(bucket)
        except DekFileInvalid:
            # It may be.
            return True
        return deks is not None and key_id in {dek.key_id for dek in deks.deks}

    def _row(self, dek: WrappedDekFile, condition: str, reason: str | None) -> Row:
        return Row(dek.resource_crn, condition, dek.key_crn, dek.key_version, reason, self._last_of(dek.resource_crn))

    def _last_of(self, crn: str) -> str | None:
        event = self._last.get(crn)
        return None if event is None else f"{event.type} ({event.correlation_id})"


def _word(key: Key) -> str:
    return {KeyState.SUSPENDED: "disabled", KeyState.DESTROYED: "deleted"}.get(key.state, "not active")
