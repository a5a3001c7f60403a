"""The one place where a caller's right is decided."""

from __future__ import annotations

from hsmkms.domain.access import Action, Caller, Target, allows
from hsmkms.errors import Unauthorized


def authorize_within(caller: Caller, action: Action, target: Target) -> bool:
    """Decide about an instance or ring before a key in it is looked for. True: the caller may hear what is missing
    there. False: some grant lies deeper, so only the key itself can tell. Raises Unauthorized when none does."""
    if allows(caller, action, target):
        return True
    if caller.account == target.account and caller.rights.reach(action, target.instance_id):
        return False
    raise Unauthorized


def authorize(caller: Caller, action: Action, target: Target) -> None:
    """Raise Unauthorized unless `caller` may do `action` on `target`."""
    if not allows(caller, action, target):
        raise Unauthorized
