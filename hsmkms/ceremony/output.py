"""What a closed ceremony leaves: the key that a service may adopt."""

from __future__ import annotations

import hmac
from pathlib import Path

from hsmkms.ceremony import bundle
from hsmkms.ceremony.made import MADE, WRAPPED, version_of
from hsmkms.ceremony.plan import Plan
from hsmkms.ceremony.record import Step, Verified
from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.domain.adoption import BundledKey, CeremonyKey
from hsmkms.domain.check_values import CheckValues


def key_of(verified: Verified) -> CeremonyKey:
    """The key of a verified record. Raises CeremonyRefused for a rehearsal and for a ceremony that was not closed."""
    opened, made = verified.steps[0].data, _ended(verified)
    if made.what == WRAPPED:
        raise CeremonyRefused("The key of this record is in a bundle. Give it with --bundle, and --signed-by.")
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


def bundled_key_of(verified: Verified, path: Path, signed_by: str) -> BundledKey:
    """The key in the bundle of a verified record, which `signed_by` signed: the fingerprint on the signed paper, since
    the token that made the record is not here to prove itself. Raises CeremonyRefused."""
    made = _ended(verified)
    if not hmac.compare_digest(verified.fingerprint.encode(), signed_by.strip().lower().encode()):
        raise CeremonyRefused(f"The record is signed by {verified.fingerprint}, which is not what the paper says.")
    if made.what != WRAPPED:
        raise CeremonyRefused("The key of this record is on the ceremony's token, not in a bundle.")
    plan = Plan.model_validate(verified.steps[0].data["plan"])
    return BundledKey(
        key_id=made.data["key"],
        instance_id=plan.key.instance,
        name=plan.key.name,
        purpose=plan.key.purpose,
        check_value=bytes.fromhex(made.data["wrap_check_value"]),
        material=bundle.read(path, made.data["key"], made.data["bundle_sha256"]),
    )


def _ended(verified: Verified) -> Step:
    """The step that brought the key of a ceremony that counts. Raises CeremonyRefused."""
    if verified.steps[0].data["rehearsal"]:
        raise CeremonyRefused("This is the record of a rehearsal.")
    made = verified.last(MADE) or verified.last(WRAPPED)
    if made is None or not verified.complete:
        raise CeremonyRefused("The ceremony was not brought to its end. Go on with it first.")
    return made
