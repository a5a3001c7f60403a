"""What Swift's filters and the follower read: which accounts have buckets under root keys, and who may come in how.

cache_s = 60                                   # optional; a disabled key stops reads within it
away_limit_s = 14400                           # optional; how long DEKs serve on while the key service is away
status_file = "/var/lib/hsmkms/buckets.json"   # optional; what the follower found, for `hsmkms adopt status`
metrics_port = 9128                            # optional; the follower's /metrics and /healthz on 127.0.0.1

[accounts.AUTH_bank]                           # an account of Swift: one instance of object storage
crn = "crn:v1:bluemix:public:cloud-object-storage:global:a/3f2e…:8d1c…::"
connection = "key-service.toml"                # the service id that acts for it (`hsmkms.adopters.connection`)
default_key = "crn:v1:bluemix:public:kms:…"    # optional; for buckets that are made without a key of their own

[accounts.AUTH_bank.users.iam-ServiceId-5b0d…] # who may come with an API key instead of HMAC keys
access_key = "bank:storage"                    # is this user of Swift
secret_key_file = "storage.key"
"""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import pydantic

from hsmkms.adopters.connection import Connection
from hsmkms.adopters.refusals import ConnectionInvalid
from hsmkms.adopters.values import parse_key_crn
from hsmkms.domain.secrets import SecretText

SERVICE: Final = "cloud-object-storage"
_CRN: Final = r"^crn:v1:[^:\s]+:[^:\s]+:cloud-object-storage:[^:\s]*:a/[^:\s]+:[^:\s]+::$"


class User(pydantic.BaseModel):
    """S3 credentials of Swift that an identity of the key service's IAM comes in with."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    access_key: str = pydantic.Field(min_length=1)
    secret_key_file: Path

    def secret_key(self) -> SecretText:
        """Read anew each time, as API keys are. Raises ConnectionInvalid."""
        try:
            with self.secret_key_file.open() as file:
                mode = stat.S_IMODE(self.secret_key_file.stat().st_mode)
                text = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConnectionInvalid(f"The secret key file {self.secret_key_file} cannot be read.") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO) or not text:
            raise ConnectionInvalid(f"{self.secret_key_file} has to hold a secret key, and mode 600.")
        return SecretText(text)


class _AccountMembers(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    crn: str = pydantic.Field(pattern=_CRN)
    connection: Path
    default_key: str | None = None
    users: dict[str, User] = {}

    @pydantic.field_validator("default_key")
    @classmethod
    def _is_a_key(cls, value: str | None) -> str | None:
        if value is not None and parse_key_crn(value) is None:
            raise ValueError("not the CRN of a key")
        return value


class _Members(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    cache_s: float = pydantic.Field(default=60, ge=0.1, le=3600)
    away_limit_s: float = pydantic.Field(default=4 * 3600, ge=0, le=24 * 3600)
    status_file: Path | None = None
    metrics_port: int | None = pydantic.Field(default=None, ge=1, le=65_535)
    accounts: dict[str, _AccountMembers] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class Account:
    """An account of Swift whose buckets may be under root keys."""

    name: str
    crn: str
    connection: Connection
    default_key: str | None
    users: Mapping[str, User]

    @property
    def instance_id(self) -> str:
        """GUID of the instance of object storage that it is."""
        return self.crn.split(":")[7]

    def bucket_crn(self, bucket: str) -> str:
        """What the root key of a bucket says that it protects."""
        return f"{self.crn.removesuffix('::')}:bucket:{quote(bucket, safe='')}"

    def bucket_of(self, crn: str) -> str | None:
        """The bucket that a CRN names, or None if it is none of this account."""
        prefix = f"{self.crn.removesuffix('::')}:bucket:"
        return unquote(crn.removeprefix(prefix)) if crn.startswith(prefix) else None


@dataclass(frozen=True)
class Configuration:
    """The whole file."""

    accounts: Mapping[str, Account]
    cache_s: float
    away_limit_s: float
    status_file: Path | None
    metrics_port: int | None

    @classmethod
    def read(cls, file: Path) -> Configuration:
        """Paths in it may be relative to its directory. Raises ConnectionInvalid, which quotes no value."""
        here = file.absolute().parent
        try:
            members = _Members.model_validate(tomllib.loads(file.read_text()))
        except OSError as error:
            raise ConnectionInvalid(f"The file {file} cannot be read: {error.strerror}.") from error
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ConnectionInvalid(f"The file {file}: {name}: {first['msg']}.") from None
        except ValueError as error:
            raise ConnectionInvalid(f"The file {file} is not valid TOML.") from error
        accounts = {name: _account(name, found, here) for name, found in members.accounts.items()}
        if len({account.crn for account in accounts.values()}) != len(accounts):
            raise ConnectionInvalid(f"The file {file} gives one CRN to two accounts: their buckets would be confused.")
        status_file = None if members.status_file is None else here / members.status_file
        return cls(accounts, members.cache_s, members.away_limit_s, status_file, members.metrics_port)


def _account(name: str, found: _AccountMembers, here: Path) -> Account:
    users = {
        iam_id: user.model_copy(update={"secret_key_file": here / user.secret_key_file})
        for iam_id, user in found.users.items()
    }
    return Account(name, found.crn, Connection.read(here / found.connection), found.default_key, users)
