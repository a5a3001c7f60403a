"""Who administers an account: somebody who can log in and may grant."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from hsmkms.domain.identities import AccessGroup, ApiKey, Identity, Login
from hsmkms.domain.policies import Policy

LEAST_LIFE: Final = timedelta(days=1)


def administrators(values: Iterable[object], now: datetime) -> frozenset[str]:
    """The `iam_id`s among these values of one account that administer it and have an outside login or an API key that
    is good for LEAST_LIFE more: one that is about to expire would only put off being locked out."""
    everything = list(values)
    subjects: set[str] = set()
    for policy in everything:
        if isinstance(policy, Policy) and policy.administers:
            subjects.add(policy.subject.iam_id or policy.subject.access_group_id or "")
    for group in everything:
        if isinstance(group, AccessGroup) and group.id in subjects:
            subjects.update(member.iam_id for member in group.members)
    reachable = {
        value.iam_id
        for value in everything
        if isinstance(value, Login) or (isinstance(value, ApiKey) and value.usable(now + LEAST_LIFE))
    }
    return frozenset(
        identity.iam_id
        for identity in everything
        if isinstance(identity, Identity)
        and not identity.locked
        and not identity.source_crns
        and identity.iam_id in subjects & reachable
    )
