"""Who may do what: callers, actions, targets, and the one pure decision `allows`."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class Action(enum.Enum):
    """Actions as the audit trail and IAM name them (additions section 6.1 and 9)."""

    KEY_CREATE = "kms.secrets.create"
    KEY_LIST = "kms.secrets.list"
    KEY_HEAD = "kms.secrets.head"
    KEY_READ = "kms.secrets.read"
    KEY_READ_METADATA = "kms.secrets-metadata.read"
    KEY_LIST_VERSIONS = "kms.secrets-key-versions.list"
    KEY_PATCH = "kms.secrets.patch"
    KEY_DELETE = "kms.secrets.delete"
    KEY_WRAP = "kms.secrets.wrap"
    KEY_UNWRAP = "kms.secrets.unwrap"
    KEY_REWRAP = "kms.secrets.rewrap"
    KEY_ROTATE = "kms.secrets.rotate"
    KEY_RING_CREATE = "kms.key-rings.create"
    KEY_RING_LIST = "kms.key-rings.list"
    KEY_RING_DELETE = "kms.key-rings.delete"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated identity. `account` bounds what an administrator reaches; `expires_at` is the token's end."""

    iam_id: str
    name: str
    account: str
    administrator: bool
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Target:
    """What an action is aimed at: an instance of an account and, below it, a key ring and a key."""

    account: str
    instance_id: str
    key_ring_id: str | None = None
    key_id: str | None = None


def allows(caller: Caller, action: Action, target: Target) -> bool:
    """True if `caller` may do `action` on `target`. Deny by default.

    Today there is one grant: the administrator of an account may do everything inside that account.
    """
    del action
    return caller.administrator and caller.account == target.account
