"""Identities and how they prove themselves: users, service ids, API keys, access groups, logins from outside."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from hsmkms.domain.access import SourceCrn
from hsmkms.domain.crn import parse_source_crn


class IdentityKind(enum.Enum):
    """A person or a program."""

    USER = "user"
    SERVICE_ID = "serviceid"


class LoginMethod(enum.Enum):
    """How an identity may come in without an API key."""

    OIDC = "oidc"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A user or a service id.

    `fence` is raised to end every log-in so far; tokens of outside issuers end by `tokens_end_at` instead, as nobody
    can put a fence into them.
    """

    id: str
    iam_id: str
    kind: IdentityKind
    account: str
    name: str
    description: str | None = None
    source_crns: tuple[str, ...] = ()
    locked: bool = False
    fence: int = 0
    tokens_end_at: datetime | None = None
    created_at: datetime
    created_by: str
    modified_at: datetime

    @property
    def sources(self) -> tuple[SourceCrn, ...]:
        """The instances of source services that this service id acts for."""
        return tuple(source for source in map(parse_source_crn, self.source_crns) if source is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key without its secret: only the SHA-256 of the secret is kept.

    Locked and disabled keys are refused; a locked one cannot be changed either. `fence` is raised when it gets another
    secret, which ends every log-in with the old one.
    """

    id: str
    iam_id: str
    account: str
    name: str
    description: str | None = None
    secret_sha256: bytes
    locked: bool = False
    disabled: bool = False
    expires_at: datetime | None = None
    fence: int = 0
    created_at: datetime
    created_by: str
    modified_at: datetime

    def usable(self, now: datetime) -> bool:
        """Whether it may be exchanged for a token, and tokens made from it still count."""
        return not self.locked and not self.disabled and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class ApiKeyUse:
    """When an API key was last exchanged for a token, and in how many minutes it was."""

    last_at: datetime
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessGroup:
    """A named set of identities; groups hold no groups, so there are no cycles."""

    id: str
    account: str
    name: str
    description: str | None = None
    members: tuple[Member, ...] = ()
    created_at: datetime
    created_by: str
    modified_at: datetime
    modified_by: str


@dataclass(frozen=True, slots=True)
class Member:
    """One identity in an access group."""

    iam_id: str
    added_at: datetime
    added_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Maps an exact claim of an outside issuer's token, or of a client certificate, to an identity.

    For OIDC `issuer` is the issuer's URL and `claim` any claim; for certificates `issuer` is empty and `claim` is
    `sha256` (of the DER), `san:dns` or `san:uri`.
    """

    id: str
    account: str
    method: LoginMethod
    issuer: str
    claim: str
    value: str
    iam_id: str
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """Public half of a P-256 key pair in the token; `id` is the JWS `kid` and the CKA_ID. After `retires_at` it
    verifies nothing."""

    id: str
    public_pem: bytes
    created_at: datetime
    retires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedSession:
    """A login whose tokens are refused; of no use after the last of them has ended."""

    id: str
    ends_at: datetime
