"""The plan of a ceremony: a TOML file that its leader signs beforehand, so that nothing is decided in the room.

The signature is in a file beside it, `PLAN.sig`, over the plan's very bytes: Ed25519, or ECDSA P-256 with SHA-256.
"""

from __future__ import annotations

import enum
import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from hsmkms.ceremony.components import COMPONENTS
from hsmkms.ceremony.refusals import PlanRefused
from hsmkms.ceremony.shares import SHARES
from hsmkms.domain.check_values import CheckKind
from hsmkms.domain.ids import is_uuid
from hsmkms.domain.importing import Oaep
from hsmkms.domain.keys import NAME_CHARS

_DOMAIN: Final = b"hsmkms ceremony plan\0"
"""In front of the plan, so that a signature of the leader's for something else is none for a plan."""

_FIRM: Final = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
_Person = Annotated[str, pydantic.StringConstraints(min_length=2, max_length=60, strip_whitespace=True)]
_Text = Annotated[str, pydantic.StringConstraints(min_length=2, max_length=300)]
_CheckValue = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9A-F]{6}$")]


class SourceKind(enum.Enum):
    """Where the key comes from."""

    GENERATE = "generate"
    COMPONENTS = "components"
    SHARES = "shares"
    WRAPPED = "wrapped"
    SPLIT = "split"


class OutputKind(enum.Enum):
    """Where the key goes: onto the ceremony's token, or wrapped to the import token of a service on another one."""

    TOKEN = "token"
    BUNDLE = "bundle"


_IN_THE_TOKEN: Final = frozenset({SourceKind.GENERATE, SourceKind.WRAPPED})
"""Sources whose key this program does not hold, so that it cannot wrap it to anybody."""


class PlannedKey(pydantic.BaseModel):
    """The root key that the ceremony makes, and the service instance that will adopt it."""

    model_config = _FIRM
    name: Annotated[str, pydantic.StringConstraints(min_length=NAME_CHARS[0], max_length=NAME_CHARS[1])]
    purpose: _Text
    instance: str
    bytes: Literal[16, 24, 32] = 32

    @pydantic.field_validator("instance")
    @classmethod
    def _instance(cls, value: str) -> str:
        if not is_uuid(value):
            raise ValueError("must be the GUID of an instance (`hsmkms instances list`)")
        return value


class Source(pydantic.BaseModel):
    """`k` and `n` are of shares, `n` also of components; `expected` is the whole key's check value of kind `check`,
    `parts` those of components by custodian; `oaep` is the hash under which another HSM wraps its file."""

    model_config = _FIRM
    kind: SourceKind
    k: int | None = None
    n: int | None = None
    check: CheckKind = CheckKind.CMAC
    expected: _CheckValue | None = None
    parts: dict[str, _CheckValue] = pydantic.Field(default_factory=dict)
    oaep: Literal["sha256", "sha1"] | None = None

    @property
    def padding(self) -> Oaep:
        """`oaep` as the rest of the program names it; SHA-256 unless the plan says otherwise."""
        return Oaep.SHA_1 if self.oaep == "sha1" else Oaep.SHA_256


class TokenOfPlan(pydantic.BaseModel):
    """The token, by its serial number."""

    model_config = _FIRM
    serial: Annotated[str, pydantic.StringConstraints(min_length=1, max_length=16)]


class Output(pydantic.BaseModel):
    """Where the key goes."""

    model_config = _FIRM
    to: OutputKind = OutputKind.TOKEN


class People(pydantic.BaseModel):
    """Who is in the room. Nobody has two roles."""

    model_config = _FIRM
    leader: _Person
    witnesses: Annotated[list[_Person], pydantic.Field(min_length=1)]
    custodians: list[_Person] = []


class Plan(pydantic.BaseModel):
    """A whole plan."""

    model_config = _FIRM
    title: _Text
    key: PlannedKey
    source: Source
    token: TokenOfPlan
    people: People
    output: Output = Output()

    @pydantic.model_validator(mode="after")
    def _agrees_with_itself(self) -> Plan:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Sequence[str]:
        source, custodians = self.source, self.people.custodians
        names = [self.people.leader, *self.people.witnesses, *custodians]
        found = []
        if len({name.casefold() for name in names}) != len(names):
            found.append("people: nobody can have two roles, and names must differ")
        if any(not name.isprintable() for name in (*names, self.title, self.key.name, self.key.purpose)):
            found.append("names and texts must be printable")
        if source.kind in _IN_THE_TOKEN and self.output.to is OutputKind.BUNDLE:
            found.append("output.to: this program never holds such a key, so it cannot wrap it into a bundle")
        if source.kind is not SourceKind.WRAPPED and source.oaep is not None:
            found.append("source.oaep: only a wrapped file has one")
        if source.kind is SourceKind.GENERATE:
            if (source.k, source.n, source.expected) != (None, None, None) or source.parts:
                found.append("source: a generated key has no k, n, expected or parts")
            if self.key.bytes != 32:
                found.append("key.bytes: a generated key has 32 bytes")
            return found
        if source.kind is SourceKind.WRAPPED:
            if (source.k, source.n) != (None, None) or source.parts:
                found.append("source: a wrapped key has no k, n or parts")
            return found
        if source.kind is SourceKind.SPLIT and source.expected is not None:
            found.append("source.expected: nobody knows the check value of a key that is still to be made")
        least, most = COMPONENTS if source.kind is SourceKind.COMPONENTS else SHARES
        if source.n != len(custodians) or not least <= len(custodians) <= most:
            found.append(f"source.n: must be the number of custodians, {least} to {most}")
        if source.kind is SourceKind.COMPONENTS and source.k is not None:
            found.append("source.k: all components are needed, so there is no k")
        if source.kind is not SourceKind.COMPONENTS and not (source.k is not None and 2 <= source.k <= len(custodians)):
            found.append("source.k: must be 2 to n")
        if not source.parts.keys() <= (set(custodians) if source.kind is SourceKind.COMPONENTS else set()):
            found.append("source.parts: check values are for the components of custodians of this plan")
        return found


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """A plan and the SHA-256 of its file in hexadecimal."""

    plan: Plan
    digest: str


def read(path: Path) -> ReadPlan:
    """The plan in a file, signed or not. Raises PlanRefused."""
    return _parse(_read_file(path, "plan"))


def read_signed(path: Path, leader_key: Path) -> ReadPlan:
    """The plan in a file, whose signature is that of the leader's key (a public key in PEM). Raises PlanRefused."""
    content = _read_file(path, "plan")
    try:
        envelope = json.loads(_read_file(signature_path(path), "plan's signature"))
        signature = bytes.fromhex(envelope["signature"])
        key = serialization.load_pem_public_key(_read_file(leader_key, "leader's public key"))
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
        raise PlanRefused(f"The signature beside {path} or the leader's public key cannot be read.") from error
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, _DOMAIN + content)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            key.verify(signature, _DOMAIN + content, ec.ECDSA(hashes.SHA256()))
        else:
            raise PlanRefused("The leader's key must be Ed25519 or P-256.")
    except InvalidSignature:
        raise PlanRefused("The plan is not the one that its leader signed. Nothing was done.") from None
    return _parse(content)


def sign(path: Path, private_key: Path, password: bytes | None) -> Path:
    """Sign a plan that can be carried out; the path of the signature. Raises PlanRefused."""
    content = _read_file(path, "plan")
    _parse(content)
    try:
        key = serialization.load_pem_private_key(_read_file(private_key, "leader's private key"), password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PlanRefused("The leader's private key cannot be read: is it PEM, and the password right?") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm, signature = "Ed25519", key.sign(_DOMAIN + content)
    elif isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        algorithm, signature = "ES256", key.sign(_DOMAIN + content, ec.ECDSA(hashes.SHA256()))
    else:
        raise PlanRefused("The leader's key must be Ed25519 or P-256.")
    written = signature_path(path)
    written.write_text(json.dumps({"algorithm": algorithm, "signature": signature.hex()}) + "\n")
    return written


def for_rehearsal(read_plan: ReadPlan) -> ReadPlan:
    """The same plan without the check values of the real parts, which nobody brings to a rehearsal."""
    source = read_plan.plan.source.model_copy(update={"expected": None, "parts": {}})
    return ReadPlan(read_plan.plan.model_copy(update={"source": source}), read_plan.digest)


def signature_path(plan: Path) -> Path:
    """Where the signature of a plan is."""
    return plan.with_name(plan.name + ".sig")


def _parse(content: bytes) -> ReadPlan:
    try:
        members: dict[str, Any] = tomllib.loads(content.decode())
        plan = Plan.model_validate(members)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise PlanRefused(f"The plan is not valid: {name}{': ' if name else ''}{first['msg']}.") from None
    except ValueError as error:
        raise PlanRefused("The plan is not valid TOML.") from error
    return ReadPlan(plan, hashlib.sha256(content).hexdigest())


def _read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanRefused(f"The {what} {path} cannot be read.") from error
