"""The one place where a caller's right is decided."""

from __future__ import annotations

from hsmkms.domain.access import SERVICE_ONLY, Action, Caller, Target, allows
from hsmkms.domain.instance_policies import Restrictions
from hsmkms.domain.tenants import Instance
from hsmkms.errors import ServiceOnly, Unauthorized


def require_any(caller: Caller, action: Action, instance: Instance | None) -> None:
    """Raise Unauthorized unless some grant of `action` lies in the instance: what comes before the request is read any
    further, so that who may not is told nothing about it. The exact decision comes with the exact target. Raise
    ServiceOnly for a user whose role would do if he were a service."""
    if instance is None or caller.account != instance.account or not caller.rights.reach(action, instance.id):
        raise Unauthorized
    if action in SERVICE_ONLY and not caller.sources:
        raise ServiceOnly


def require_any_in_account(caller: Caller, action: Action) -> None:
    """The same for calls that are not about one instance."""
    if not caller.rights.have(action):
        raise Unauthorized


def require_place(caller: Caller, action: Action, restrictions: Restrictions, address: str) -> None:
    """Raise Unauthorized for a call from where the instance's policies do not admit it; they do not bind source
    services (contract section 1.4), and allowedIP does not bind who asks for the port that it demands."""
    from_any_ip = action is Action.ALLOWED_IP_PORT_READ
    if not caller.sources and not restrictions.admit(address, from_any_ip=from_any_ip):
        raise Unauthorized


def authorize_within(caller: Caller, action: Action, target: Target) -> bool:
    """Decide about an instance or ring before a key in it is looked for. True: the caller may hear what is missing
    there. False: some grant lies deeper, so only the key itself can tell. Raises Unauthorized when none does."""
    if allows(caller, action, target):
        return True
    if caller.account == target.account and target.instance_id and caller.rights.reach(action, target.instance_id):
        return False
    raise Unauthorized


def authorize(caller: Caller, action: Action, target: Target) -> None:
    """Raise Unauthorized unless `caller` may do `action` on `target`."""
    if not allows(caller, action, target):
        raise Unauthorized
