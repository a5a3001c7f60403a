"""The one place where a caller's right is decided."""

from __future__ import annotations

from hsmkms.domain.access import Action, Caller, Target, allows
from hsmkms.errors import Unauthorized


def authorize(caller: Caller, action: Action, target: Target) -> None:
    """Raise Unauthorized unless `caller` may do `action` on `target`."""
    if not allows(caller, action, target):
        raise Unauthorized
