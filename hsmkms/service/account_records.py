"""The way of every use case of IAM to its records: authorize on the account, look anew, never beyond the account."""

from __future__ import annotations

from typing import TypeVar

from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.identities import AccessGroup, ApiKey, Identity, Login
from hsmkms.domain.policies import Policy
from hsmkms.domain.records import Record
from hsmkms.errors import NotFound
from hsmkms.iam.grants import Grants
from hsmkms.service.authorize import authorize
from hsmkms.service.snapshot import Snapshot

T = TypeVar("T", Identity, ApiKey, AccessGroup, Policy, Login)


class AccountRecords:
    """Shared by the services of IAM."""

    def __init__(self, grants: Grants, snapshot: Snapshot) -> None:
        self._grants = grants
        self._snapshot = snapshot

    def enter(self, caller: Caller, action: Action) -> None:
        """Decide about the account, and see what other processes committed. Raises Unauthorized, Unavailable."""
        authorize(caller, action, Target(caller.account))
        self._snapshot.refresh()

    def all(self, kind: type[T], account: str, subject: str | None = None) -> list[tuple[Record, T]]:
        """Records of an account that concern a subject, or all of the kind for None; oldest first."""
        found = [entry for entry in self._grants.entries(kind, subject) if entry[1].account == account]
        return sorted(found, key=lambda entry: (entry[1].created_at, entry[1].id))

    def one(self, kind: type[T], account: str, record_id: str, missing: NotFound) -> tuple[Record, T]:
        """One record. Raises `missing` when there is none, and when it is another account's: the same answer."""
        found = self._grants.record(kind, record_id)
        if found is None or found[1].account != account:
            raise missing
        return found
