"""Service ids, users, and the logins that let them in from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.crn import parse_source_crn
from hsmkms.domain.identities import AccessGroup, ApiKey, Identity, IdentityKind, Login, LoginMethod
from hsmkms.domain.ids import new_id
from hsmkms.domain.policies import Policy
from hsmkms.domain.records import Record
from hsmkms.errors import Conflict, Invalid, Locked, NotFound
from hsmkms.iam import certificates
from hsmkms.iam.grants import Grants
from hsmkms.service.account_records import AccountRecords
from hsmkms.service.rights import Change, Delete, Insert, Replace, RightsWriter, require_version

MAX_NAME: int = 256
MAX_DESCRIPTION: int = 256
MAX_SOURCES: int = 20


class IdentityService:
    """Each method authorizes its caller on the account first and raises Unauthorized. What is not in the caller's
    account is NotFound, as if it did not exist."""

    def __init__(self, grants: Grants, account: AccountRecords, rights: RightsWriter, clock: Clock) -> None:
        self._grants = grants
        self._account = account
        self._rights = rights
        self._clock = clock

    def list(self, caller: Caller, kind: IdentityKind) -> Sequence[tuple[Record, Identity]]:
        """All identities of a kind in the caller's account, oldest first."""
        self._account.enter(caller, Action.IDENTITY_READ)
        return [entry for entry in self._account.all(Identity, caller.account) if entry[1].kind is kind]

    def get(self, caller: Caller, identity_id: str) -> tuple[Record, Identity]:
        """One identity, by its id or `iam_id`."""
        self._account.enter(caller, Action.IDENTITY_READ)
        return self._require(identity_id, caller.account)

    def create(
        self,
        caller: Caller,
        kind: IdentityKind,
        name: str,
        description: str | None = None,
        source_crns: Sequence[str] = (),
        *,
        locked: bool = False,
    ) -> tuple[Record, Identity]:
        """A new identity without any right. `source_crns` bind a service id to instances of source services.

        Raises Invalid.
        """
        self._account.enter(caller, Action.IDENTITY_WRITE)
        _require_texts(name, description)
        self._require_sources(caller.account, source_crns)
        now, identity_id = self._clock(), new_id()
        prefix = "iam-ServiceId" if kind is IdentityKind.SERVICE_ID else "IBMid"
        identity = Identity(
            id=f"ServiceId-{identity_id}" if kind is IdentityKind.SERVICE_ID else identity_id,
            iam_id=f"{prefix}-{identity_id}",
            kind=kind,
            account=caller.account,
            name=name,
            description=description,
            source_crns=tuple(source_crns),
            locked=locked,
            created_at=now,
            created_by=caller.iam_id,
            modified_at=now,
        )
        self._rights.commit(caller.account, [Insert(identity)])
        return self._require(identity.id, caller.account)

    def update(
        self,
        caller: Caller,
        identity_id: str,
        if_match: str | None,
        name: str | None,
        description: str | None,
        source_crns: Sequence[str] | None,
    ) -> tuple[Record, Identity]:
        """Change what is not None. Raises NotFound, Locked, VersionRequired, VersionStale, Invalid."""
        self._account.enter(caller, Action.IDENTITY_WRITE)
        record, identity = self._require(identity_id, caller.account)
        require_version(record, if_match)
        if identity.locked:
            raise Locked("service id")
        _require_texts(name or identity.name, description)
        if source_crns is not None:
            self._require_sources(caller.account, source_crns)
            if source_crns and self._has_own_rights(identity):
                raise Conflict("The service id has access policies or groups; take them away before you bind it.")
        changed = dataclasses.replace(
            identity,
            name=name or identity.name,
            description=identity.description if description is None else description,
            source_crns=identity.source_crns if source_crns is None else tuple(source_crns),
            modified_at=self._clock(),
        )
        self._rights.commit(caller.account, [Replace(record, changed)])
        return self._require(identity.id, caller.account)

    def set_locked(self, caller: Caller, identity_id: str, *, locked: bool) -> tuple[Record, Identity]:
        """Lock: every token and API key of the identity is refused, and it cannot be changed. Or unlock."""
        self._account.enter(caller, Action.IDENTITY_WRITE)
        record, identity = self._require(identity_id, caller.account)
        changed = dataclasses.replace(identity, locked=locked, modified_at=self._clock())
        self._rights.commit(caller.account, [Replace(record, changed)])
        return self._require(identity.id, caller.account)

    def end_tokens(self, caller: Caller, identity_id: str) -> None:
        """End every log-in of the identity so far, and refuse outside issuers' tokens from before now. A client
        certificate goes on: remove its login for that."""
        self._account.enter(caller, Action.IDENTITY_WRITE)
        record, identity = self._require(identity_id, caller.account)
        changed = dataclasses.replace(identity, fence=identity.fence + 1, tokens_end_at=self._clock())
        self._rights.commit(caller.account, [Replace(record, changed)])

    def delete(self, caller: Caller, identity_id: str) -> None:
        """Delete an identity with its API keys, logins, policies and memberships. Raises Locked, LastAdministrator."""
        self._account.enter(caller, Action.IDENTITY_WRITE)
        record, identity = self._require(identity_id, caller.account)
        if identity.locked:
            raise Locked("service id")
        held_records = (
            record,
            *(found for found, _ in self._grants.entries(ApiKey, identity.iam_id)),
            *(found for found, _ in self._grants.entries(Login, identity.iam_id)),
            *(found for found, _ in self._grants.entries(Policy, identity.iam_id)),
        )
        changes: list[Change] = [Delete(held) for held in held_records]
        for held, group in self._grants.entries(AccessGroup, identity.iam_id):
            rest = tuple(member for member in group.members if member.iam_id != identity.iam_id)
            changes.append(Replace(held, dataclasses.replace(group, members=rest)))
        self._rights.commit(caller.account, changes)

    def add_login(
        self, caller: Caller, identity_id: str, method: LoginMethod, issuer: str, claim: str, value: str
    ) -> Login:
        """Let who shows this claim in as the identity. Raises NotFound, Invalid, Conflict."""
        self._account.enter(caller, Action.IDENTITY_WRITE)
        _, identity = self._require(identity_id, caller.account)
        if not value or not claim:
            raise Invalid("A login needs a claim and the exact value that it must have.")
        if method is LoginMethod.CERTIFICATE and (issuer or claim not in certificates.CLAIMS):
            raise Invalid(f"A certificate is known by one of {', '.join(sorted(certificates.CLAIMS))}.")
        for known in self._grants.about(Login, f"{method.value}:{issuer}"):
            if (known.claim, known.value) == (claim, value):
                raise Conflict("This claim is mapped already. Remove that login first.")
        login = Login(
            id=new_id(),
            account=caller.account,
            method=method,
            issuer=issuer,
            claim=claim,
            value=value,
            iam_id=identity.iam_id,
            created_at=self._clock(),
            created_by=caller.iam_id,
        )
        self._rights.commit(caller.account, [Insert(login)])
        return login

    def logins(self, caller: Caller) -> Sequence[Login]:
        """All logins of the caller's account, oldest first."""
        self._account.enter(caller, Action.IDENTITY_READ)
        return [login for _, login in self._account.all(Login, caller.account)]

    def remove_login(self, caller: Caller, login_id: str) -> None:
        """Raises NotFound, LastAdministrator."""
        self._account.enter(caller, Action.IDENTITY_WRITE)
        record, _ = self._account.one(Login, caller.account, login_id, NotFound("login"))
        self._rights.commit(caller.account, [Delete(record)])

    def _require(self, identity_id: str, account: str) -> tuple[Record, Identity]:
        named = self._grants.identity(identity_id)
        return self._account.one(Identity, account, identity_id if named is None else named.id, NotFound("identity"))

    def _has_own_rights(self, identity: Identity) -> bool:
        return bool(self._grants.about(Policy, identity.iam_id) or self._grants.about(AccessGroup, identity.iam_id))

    @staticmethod
    def _require_sources(account: str, source_crns: Sequence[str]) -> None:
        if len(source_crns) > MAX_SOURCES:
            raise Invalid(f"A service id acts for {MAX_SOURCES} instances at most.")
        for text in source_crns:
            source = parse_source_crn(text)
            if source is None or source.account != account:
                raise Invalid(
                    "unique_instance_crns takes CRNs of instances of cloud-object-storage, databases-for-postgresql, "
                    "cloudantnosqldb or containers-kubernetes in your own account."
                )


def _require_texts(name: str, description: str | None) -> None:
    if not 1 <= len(name) <= MAX_NAME or len(description or "") > MAX_DESCRIPTION:
        raise Invalid(f"A name has 1 to {MAX_NAME} characters, a description at most {MAX_DESCRIPTION}.")
