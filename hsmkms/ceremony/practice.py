"""Parts to rehearse with: of a random key that is thrown away."""

from __future__ import annotations

import secrets

from hsmkms.ceremony import components, shares
from hsmkms.ceremony.plan import Plan, SourceKind


def practice_parts(plan: Plan) -> dict[str, str]:
    """A part for each custodian as it would stand on paper; none for a key that the token generates."""
    custodians, source = plan.people.custodians, plan.source
    if source.kind in (SourceKind.SPLIT, SourceKind.WRAPPED):
        return {}
    if source.kind is SourceKind.SHARES:
        key = bytearray(secrets.token_bytes(plan.key.bytes))
        return dict(zip(custodians, shares.split(key, source.k or 0, len(custodians)), strict=True))
    parts = {name: bytearray(secrets.token_bytes(plan.key.bytes)) for name in custodians}
    return {
        name: f"{part.hex(' ', 2).upper()}  (check value {components.check_values(part).of(source.check)})"
        for name, part in parts.items()
    }
