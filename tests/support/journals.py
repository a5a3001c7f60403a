"""Journals without a service: a P-256 key in the place of the token's, a dictionary in that of the database."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.audit import chain
from hsmkms.audit.event import (
    ACTIVITY,
    EVENT_TYPE,
    HSMKMS,
    NORMAL,
    SUCCESS,
    Event,
    Initiator,
    RequestData,
    ResponseData,
    Target,
)
from hsmkms.audit.journal import Journal, Limits
from hsmkms.audit.reader import Verified
from hsmkms.audit.verify import verify
from hsmkms.audit.witness import Witness
from hsmkms.clock import Clock, system_clock
from hsmkms.errors import TokenUnavailable

RARELY = Limits(checkpoint_s=3_600, log_bytes=1 << 30, log_age_s=3_600)
OFTEN = Limits(checkpoint_s=0.01, log_bytes=1 << 30, log_age_s=3_600)


class Deployment:
    """What journals of one deployment share: a P-256 key and the heads that the database would hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.heads: dict[str, chain.Head] = {}
        self.token_away = False

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.key.public_key()

    def sign(self, message: bytes) -> bytes:
        if self.token_away:
            raise TokenUnavailable("away")
        r, s = utils.decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    def exchange(self, head: chain.Head) -> list[chain.Head]:
        self.heads[head.log] = head
        return list(self.heads.values())

    def pem(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.public_key.public_bytes(serialization.Encoding.PEM, form)

    def journal(self, limits: Limits = RARELY, node: str = "node", clock: Clock = system_clock) -> Journal:
        journal = Journal(self.directory, node, limits, clock)
        journal.call(self.witness)
        return journal

    @property
    def witness(self) -> Witness:
        return Witness(self.pem, self.sign, self.exchange)

    def verify(self) -> list[Verified]:
        return verify([self.directory], self.public_key, {})

    def verify_with_heads(self) -> list[Verified]:
        heads = {head.log: (head.sequence, head.digest) for head in self.heads.values()}
        return verify([self.directory], self.public_key, heads)


def event(number: int, action: str = "kms.secrets.wrap") -> Event:
    return Event(
        type_uri=EVENT_TYPE,
        event_type=ACTIVITY,
        message="Key Protect: wrap secrets",
        observer=HSMKMS,
        data_event=True,
        id=f"event-{number}",
        event_time=system_clock(),
        action=action,
        outcome=SUCCESS,
        severity=NORMAL,
        initiator=Initiator("iam-1", "iam-1", "user"),
        target=Target("crn:key", "key", "kms/secrets"),
        correlation_id=f"correlation-{number}",
        request_data=RequestData(),
        response_data=ResponseData(),
    )


def write(journal: Journal, events: int, first: int = 0) -> None:
    for number in range(first, first + events):
        journal.record_blocking(event(number))
