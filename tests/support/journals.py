"""Journals without a service: a P-256 key in the place of the token's, a dictionary in that of the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from hsmkms.errors import StoreUnavailable, TokenUnavailable

RARELY = Limits(checkpoint_s=3_600, log_bytes=1 << 30, log_age_s=3_600)
OFTEN = Limits(checkpoint_s=0.01, log_bytes=1 << 30, log_age_s=3_600)


class Deployment:
    """What journals of one deployment share: a P-256 key and the heads that the database would hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.heads: dict[str, chain.Head] = {}
        self.token_away = self.database_away = False

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.key.public_key()

    def sign(self, message: bytes) -> bytes:
        if self.token_away:
            raise TokenUnavailable("away")
        r, s = utils.decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    def tell(self, head: chain.Head, before: Mapping[int, str]) -> bool:
        if self.database_away:
            raise StoreUnavailable("away")
        there = self.heads.get(head.log)
        if there is not None and there != head and (there.closed or before.get(there.sequence) != there.digest):
            return False
        self.heads[head.log] = head
        return True

    def newest(self) -> list[chain.Head]:
        if self.database_away:
            raise StoreUnavailable("away")
        return list(self.heads.values())

    def known(self, log: str) -> chain.Head | None:
        if self.database_away:
            raise StoreUnavailable("away")
        return self.heads.get(log)

    def pem(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.public_key.public_bytes(serialization.Encoding.PEM, form)

    def journal(self, limits: Limits = RARELY, node: str = "node", clock: Clock = system_clock) -> Journal:
        journal = Journal(self.directory, node, limits, clock)
        journal.call(self.witness)
        return journal

    @property
    def witness(self) -> Witness:
        return Witness(self.pem, self.sign, self.tell, self.newest, self.known)

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


def rewrite(path: Path, edit: Callable[[str, bytes], bytes | None], more: int = 0) -> None:
    """Chain a log anew as who knows its form would and has no key: each record as `edit` of kind and content has it,
    and `more` events behind."""
    records: list[tuple[str, bytes]] = []
    harmless = b""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        parts = chain.split(line)
        assert parts is not None
        found = chain.kind_of(parts[1], number)
        assert found is not None
        if found[0] == "event":
            harmless = found[1]
        content = edit(*found)
        if content is not None:
            records.append((found[0], content))
    records += [("event", harmless)] * more
    path.write_bytes(chain.extend(0, chain.genesis(path.stem), records)[0])
