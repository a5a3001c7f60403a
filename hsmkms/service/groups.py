"""Access groups: many identities, one subject of policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.identities import AccessGroup, Identity, Member
from hsmkms.domain.ids import new_id
from hsmkms.domain.policies import Policy
from hsmkms.domain.records import Record
from hsmkms.errors import Conflict, Invalid, NotFound
from hsmkms.iam.grants import Grants
from hsmkms.service.account_records import AccountRecords
from hsmkms.service.rights import Delete, Insert, Replace, RightsWriter, require_version

MAX_NAME: int = 100
MAX_DESCRIPTION: int = 250
MAX_MEMBERS: int = 1_000


class GroupService:
    """Each method authorizes its caller on the account first and raises Unauthorized; a group of another account is
    NotFound, as if it did not exist."""

    def __init__(self, grants: Grants, account: AccountRecords, rights: RightsWriter, clock: Clock) -> None:
        self._grants = grants
        self._account = account
        self._rights = rights
        self._clock = clock

    def list(self, caller: Caller) -> Sequence[tuple[Record, AccessGroup]]:
        """All groups of the caller's account, by name."""
        self._account.enter(caller, Action.GROUP_READ)
        return sorted(self._account.all(AccessGroup, caller.account), key=lambda entry: (entry[1].name, entry[1].id))

    def get(self, caller: Caller, group_id: str) -> tuple[Record, AccessGroup]:
        """One group."""
        self._account.enter(caller, Action.GROUP_READ)
        return self._require(group_id, caller.account)

    def create(self, caller: Caller, name: str, description: str | None) -> tuple[Record, AccessGroup]:
        """A group without members. Raises Invalid, Conflict."""
        self._account.enter(caller, Action.GROUP_WRITE)
        self._require_valid(caller.account, None, name, description)
        now = self._clock()
        group = AccessGroup(
            id=f"AccessGroupId-{new_id()}",
            account=caller.account,
            name=name,
            description=description,
            created_at=now,
            created_by=caller.iam_id,
            modified_at=now,
            modified_by=caller.iam_id,
        )
        self._rights.commit(caller.account, [Insert(group)])
        return self._require(group.id, caller.account)

    def update(
        self, caller: Caller, group_id: str, if_match: str | None, name: str | None, description: str | None
    ) -> tuple[Record, AccessGroup]:
        """Change what is not None. Raises NotFound, VersionRequired, VersionStale, Invalid, Conflict."""
        self._account.enter(caller, Action.GROUP_WRITE)
        record, group = self._require(group_id, caller.account)
        require_version(record, if_match)
        self._require_valid(caller.account, group_id, name or group.name, description)
        return self._replace(
            caller,
            record,
            group,
            name=name or group.name,
            description=group.description if description is None else description,
        )

    def add_members(self, caller: Caller, group_id: str, iam_ids: Sequence[str]) -> tuple[Record, AccessGroup]:
        """Add identities of the account; those that are members stay. Raises NotFound, Invalid."""
        self._account.enter(caller, Action.GROUP_WRITE)
        record, group = self._require(group_id, caller.account)
        known = {member.iam_id for member in group.members}
        for iam_id in iam_ids:
            identity: Identity | None = self._grants.identity(iam_id)
            if identity is None or identity.account != caller.account:
                raise Invalid("A member must be a user or service id of your account; groups hold no groups.")
            if identity.source_crns:
                raise Invalid("A service id that acts for a source service has what authorizations grant, no more.")
        now = self._clock()
        added = [iam_id for iam_id in dict.fromkeys(iam_ids) if iam_id not in known]
        members = (*group.members, *(Member(iam_id, now, caller.iam_id) for iam_id in added))
        if len(members) > MAX_MEMBERS:
            raise Invalid(f"A group has {MAX_MEMBERS} members at most.")
        return self._replace(caller, record, group, members=members)

    def remove_member(self, caller: Caller, group_id: str, iam_id: str) -> None:
        """Raises NotFound, LastAdministrator."""
        self._account.enter(caller, Action.GROUP_WRITE)
        record, group = self._require(group_id, caller.account)
        rest = tuple(member for member in group.members if member.iam_id != iam_id)
        if len(rest) == len(group.members):
            raise NotFound("member")
        self._replace(caller, record, group, members=rest)

    def delete(self, caller: Caller, group_id: str, *, force: bool) -> None:
        """Delete a group with its policies; one with members only by `force`. Raises NotFound, Conflict,
        LastAdministrator."""
        self._account.enter(caller, Action.GROUP_WRITE)
        record, group = self._require(group_id, caller.account)
        if group.members and not force:
            raise Conflict("The group has members. Remove them, or add force=true.")
        granted = [Delete(found) for found, _ in self._grants.entries(Policy, group_id)]
        self._rights.commit(caller.account, [Delete(record), *granted])

    def _replace(self, caller: Caller, record: Record, group: AccessGroup, **to: object) -> tuple[Record, AccessGroup]:
        stamped = {**to, "modified_at": self._clock(), "modified_by": caller.iam_id}
        changed: AccessGroup = dataclasses.replace(group, **stamped)  # type: ignore[arg-type]  # names of members above
        self._rights.commit(caller.account, [Replace(record, changed)])
        return self._require(group.id, caller.account)

    def _require(self, group_id: str, account: str) -> tuple[Record, AccessGroup]:
        return self._account.one(AccessGroup, account, group_id, NotFound("access group"))

    def _require_valid(self, account: str, own_id: str | None, name: str, description: str | None) -> None:
        if not 1 <= len(name) <= MAX_NAME or len(description or "") > MAX_DESCRIPTION:
            raise Invalid(f"A name has 1 to {MAX_NAME} characters, a description at most {MAX_DESCRIPTION}.")
        held = self._account.all(AccessGroup, account)
        if any(group.name == name and group.id != own_id for _, group in held):
            raise Conflict("The account has a group of this name. Choose another name.")
