"""API keys: create (shown once), list, change, rotate, lock, disable, delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.identities import ApiKey, ApiKeyUse
from hsmkms.domain.records import Record
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import Invalid, Locked, NotFound
from hsmkms.iam import api_keys
from hsmkms.iam.grants import Grants
from hsmkms.service.account_records import AccountRecords
from hsmkms.service.rights import Delete, Insert, Replace, RightsWriter, require_version
from hsmkms.store.records import RecordStore
from hsmkms.token.room import Token

MAX_NAME: int = 256


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key with its secret, which nobody can show again."""

    record: Record
    api_key: ApiKey
    secret: SecretText


class ApiKeyService:
    """Each method authorizes its caller on the account first and raises Unauthorized; a key of another account is
    NotFound, as if it did not exist."""

    def __init__(
        self,
        token: Token,
        grants: Grants,
        account: AccountRecords,
        rights: RightsWriter,
        records: RecordStore,
        clock: Clock,
    ) -> None:
        self._token = token
        self._grants = grants
        self._account = account
        self._rights = rights
        self._records = records
        self._clock = clock

    def create(
        self,
        caller: Caller,
        iam_id: str,
        name: str,
        description: str | None = None,
        expires_at: datetime | None = None,
        *,
        locked: bool = False,
        disabled: bool = False,
    ) -> NewApiKey:
        """A new key of an identity. Raises NotFound, Locked, Invalid."""
        self._account.enter(caller, Action.API_KEY_WRITE)
        identity = self._grants.identity(iam_id)
        if identity is None or identity.account != caller.account:
            raise NotFound("identity")
        if identity.locked:
            raise Locked("service id")
        now = self._clock()
        self.require_valid(name, description, expires_at)
        key_id = api_keys.new_id()
        secret = api_keys.format_secret(key_id, self._token.random(api_keys.SECRET_BYTES))
        api_key = ApiKey(
            id=key_id,
            iam_id=identity.iam_id,
            account=caller.account,
            name=name,
            description=description,
            secret_sha256=api_keys.hash_secret(secret),
            locked=locked,
            disabled=disabled,
            expires_at=expires_at,
            created_at=now,
            created_by=caller.iam_id,
            modified_at=now,
        )
        self._rights.commit(caller.account, [Insert(api_key)])
        return NewApiKey(*self._require(key_id, caller.account), secret)

    def require_valid(self, name: str, description: str | None, expires_at: datetime | None) -> None:
        """Raise Invalid for what cannot be a key, before anything else is made for it."""
        if not 1 <= len(name) <= MAX_NAME or len(description or "") > MAX_NAME:
            raise Invalid(f"A name has 1 to {MAX_NAME} characters, a description at most {MAX_NAME}.")
        if expires_at is not None and expires_at <= self._clock():
            raise Invalid("expires_at must be in the future.")

    def list(self, caller: Caller, iam_id: str | None) -> Sequence[tuple[Record, ApiKey]]:
        """The keys of an identity, or of the whole account, oldest first."""
        self._account.enter(caller, Action.API_KEY_READ)
        return self._account.all(ApiKey, caller.account, iam_id)

    def get(self, caller: Caller, key_id: str) -> tuple[Record, ApiKey]:
        """One key."""
        self._account.enter(caller, Action.API_KEY_READ)
        return self._require(key_id, caller.account)

    def last_use(self, caller: Caller, key_id: str) -> ApiKeyUse | None:
        """When a key was last exchanged for a token, to the minute."""
        self._account.enter(caller, Action.API_KEY_READ)
        self._require(key_id, caller.account)
        return self._records.last_use(key_id)

    def update(
        self,
        caller: Caller,
        key_id: str,
        if_match: str | None,
        name: str | None,
        description: str | None,
        expires_at: datetime | None,
    ) -> tuple[Record, ApiKey]:
        """Change what is not None. Raises NotFound, Locked, VersionRequired, VersionStale, Invalid."""
        self._account.enter(caller, Action.API_KEY_WRITE)
        record, api_key = self._require(key_id, caller.account)
        require_version(record, if_match)
        self.require_valid(name or api_key.name, description, expires_at)
        if api_key.locked:
            raise Locked("API key")
        changed = dataclasses.replace(
            api_key,
            name=name or api_key.name,
            description=api_key.description if description is None else description,
            expires_at=api_key.expires_at if expires_at is None else expires_at,
        )
        return self._replace(record, changed)

    def rotate(self, caller: Caller, key_id: str) -> NewApiKey:
        """A new secret for a key; the old one, and every token made with it, is refused from now on. Raises Locked."""
        self._account.enter(caller, Action.API_KEY_WRITE)
        record, api_key = self._require(key_id, caller.account)
        if api_key.locked:
            raise Locked("API key")
        secret = api_keys.format_secret(key_id, self._token.random(api_keys.SECRET_BYTES))
        changed = dataclasses.replace(api_key, secret_sha256=api_keys.hash_secret(secret), fence=api_key.fence + 1)
        return NewApiKey(*self._replace(record, changed), secret)

    def set_locked(self, caller: Caller, key_id: str, *, locked: bool) -> tuple[Record, ApiKey]:
        """Lock: the key is refused and cannot be changed. Or unlock. Raises NotFound, LastAdministrator."""
        self._account.enter(caller, Action.API_KEY_WRITE)
        record, api_key = self._require(key_id, caller.account)
        return self._replace(record, dataclasses.replace(api_key, locked=locked))

    def set_disabled(self, caller: Caller, key_id: str, *, disabled: bool) -> tuple[Record, ApiKey]:
        """Disable: the key is refused. Or enable. Raises NotFound, Locked, LastAdministrator."""
        self._account.enter(caller, Action.API_KEY_WRITE)
        record, api_key = self._require(key_id, caller.account)
        if api_key.locked:
            raise Locked("API key")
        return self._replace(record, dataclasses.replace(api_key, disabled=disabled))

    def delete(self, caller: Caller, key_id: str) -> None:
        """Raises NotFound, Locked, LastAdministrator."""
        self._account.enter(caller, Action.API_KEY_WRITE)
        record, api_key = self._require(key_id, caller.account)
        if api_key.locked:
            raise Locked("API key")
        self._rights.commit(caller.account, [Delete(record)])

    def _replace(self, record: Record, changed: ApiKey) -> tuple[Record, ApiKey]:
        changed = dataclasses.replace(changed, modified_at=self._clock())
        self._rights.commit(changed.account, [Replace(record, changed)])
        return self._require(changed.id, changed.account)

    def _require(self, key_id: str, account: str) -> tuple[Record, ApiKey]:
        return self._account.one(ApiKey, account, key_id, NotFound("API key"))
