"""What a closed ceremony leaves: the key that a service may adopt."""

from __future__ import annotations

from hsmkms.ceremony.making import MADE, version_of
from hsmkms.ceremony.plan import Plan
from hsmkms.ceremony.record import Verified
from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.domain.adoption import CeremonyKey
from hsmkms.domain.check_values import CheckValues


def key_of(verified: Verified) -> CeremonyKey:
    """The key of a verified record. Raises CeremonyRefused for a rehearsal and for a ceremony that was not closed."""
    opened, made = verified.steps[0].data, verified.last(MADE)
    if opened["rehearsal"]:
        raise CeremonyRefused("This is the record of a rehearsal.")
    if made is None or not verified.complete:
        raise CeremonyRefused("The ceremony was not brought to its end. Go on with it first.")
    plan = Plan.model_validate(opened["plan"])
    return CeremonyKey(
        key_id=made.data["key"],
        instance_id=plan.key.instance,
        name=plan.key.name,
        purpose=plan.key.purpose,
        version=version_of(made),
        check_values=CheckValues(**made.data["check_values"]),
        serial=opened["token"]["serial"],
        signing_key_id=opened["signing_key_id"],
        signing_public_pem=opened["signing_key"].encode(),
    )
