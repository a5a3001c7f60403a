"""Changes of sealed records: sealed, committed together, guarded so that an account keeps an administrator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from hsmkms.clock import Clock
from hsmkms.domain.administration import administrators
from hsmkms.domain.identities import AccessGroup, ApiKey, Identity, Login
from hsmkms.domain.policies import Policy
from hsmkms.domain.records import Record
from hsmkms.errors import LastAdministrator, VersionRequired, VersionStale
from hsmkms.iam import integrity
from hsmkms.iam.grants import Grants
from hsmkms.service.acts import GrantChange, current
from hsmkms.service.snapshot import Snapshot
from hsmkms.store.records import RecordStore, StaleRecord

ANY_VERSION: Final = "*"


@dataclass(frozen=True, slots=True)
class Insert:
    """A value that was not there."""

    value: integrity.Sealable


@dataclass(frozen=True, slots=True)
class Replace:
    """A new value for a record that was read."""

    old: Record
    value: integrity.Sealable


@dataclass(frozen=True, slots=True)
class Delete:
    """A record that was read and is to go."""

    old: Record


Change: TypeAlias = Insert | Replace | Delete


class RightsWriter:
    """The only way to change what grants."""

    def __init__(
        self, records: RecordStore, grants: Grants, mac: integrity.Mac, snapshot: Snapshot, clock: Clock
    ) -> None:
        self._records = records
        self._grants = grants
        self._mac = mac
        self._snapshot = snapshot
        self._clock = clock

    def commit(self, account: str, changes: Sequence[Change]) -> None:
        """Commit all of `changes`, or none; afterwards this process knows of them.

        Raises VersionStale when somebody else was faster, LastAdministrator, Unavailable.
        """
        current().grants.extend(_said(change) for change in changes)
        sealed = [(change, self._seal(change)) for change in changes]
        try:
            with self._records.write() as writer:
                for change, record in sealed:
                    match change:
                        case Insert():
                            writer.insert(record)
                        case Replace():
                            writer.replace(record)
                        case Delete():
                            writer.delete(record)
                # In the transaction: another process may just have made, or taken away, the other administrator.
                if any(_may_end_an_administrator(change) for change in changes):
                    self._require_administrator(writer.of_account(account), changes)
        except StaleRecord as error:
            raise VersionStale from error
        finally:
            self._snapshot.refresh()

    def _seal(self, change: Change) -> Record:
        match change:
            case Insert(value):
                return integrity.seal(self._mac, value, 1)
            case Replace(old, value):
                return integrity.seal(self._mac, value, old.revision + 1)
            case Delete(old):
                return old

    def _require_administrator(self, records: Sequence[Record], changes: Sequence[Change]) -> None:
        """Raise LastAdministrator when the account had an administrator before the changes and has none after them."""
        now = self._clock()
        after = {record.place: integrity.value_of(record) for record in records if self._grants.believes(record)}
        if administrators(after.values(), now):
            return
        before = dict(after)
        for change in changes:
            if isinstance(change, Insert):
                before.pop((integrity.KINDS[type(change.value)], change.value.id), None)
            else:
                before[change.old.place] = integrity.value_of(change.old)
        if administrators(before.values(), now):
            raise LastAdministrator


def _said(change: Change) -> GrantChange:
    """A change as the audit trail tells it."""
    if isinstance(change, Insert):
        return GrantChange(integrity.KINDS[type(change.value)], change.value.id, None, change.value)
    new = change.value if isinstance(change, Replace) else None
    return GrantChange(change.old.kind, change.old.id, integrity.value_of(change.old), new)


def _may_end_an_administrator(change: Change) -> bool:
    """Not what only adds, and not a policy that made nobody an administrator: those are the many."""
    if isinstance(change, Insert):
        return False
    old = integrity.value_of(change.old)
    return old.administers if isinstance(old, Policy) else isinstance(old, Identity | ApiKey | AccessGroup | Login)


def entity_tag(record: Record) -> str:
    """The version of a record, as ETag and `entity_tag` say it."""
    return f"{record.revision}-{integrity.digest(record).hex()[:32]}"


def require_version(record: Record, if_match: str | None) -> None:
    """Raise VersionRequired without an If-Match, VersionStale unless it names this version or is `*`."""
    if not if_match:
        raise VersionRequired
    if if_match != ANY_VERSION and if_match.removeprefix("W/").strip('"') != entity_tag(record):
        raise VersionStale
