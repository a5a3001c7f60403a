"""The key itself: from the custodians' parts or the token itself to one object, announced, made and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from hsmkms.ceremony import bundle, components
from hsmkms.ceremony.bundle import Destination
from hsmkms.ceremony.components import CheckValuesOf
from hsmkms.ceremony.made import ANNOUNCED, MADE, PASSAGES, REMOVED, WRAPPED
from hsmkms.ceremony.plan import OutputKind, SourceKind
from hsmkms.ceremony.record import Step
from hsmkms.ceremony.refusals import CeremonyRefused, EntryRefused
from hsmkms.ceremony.screen import expect, is_confirmed, page
from hsmkms.ceremony.splitting import Splitting
from hsmkms.ceremony.steps import LEADER, ComponentParts, Parts, Room, ShareParts, enter_again
from hsmkms.ceremony.wrapped import WrappedFile
from hsmkms.domain.check_values import CheckKind, CheckValues
from hsmkms.domain.ids import new_id
from hsmkms.domain.importing import Passage
from hsmkms.domain.keys import KeyVersion, key_owner
from hsmkms.domain.secrets import SecretBytes
from hsmkms.token.room import Token

_BORN, _UNWRAPPED = PASSAGES


@dataclass(frozen=True, slots=True)
class Means:
    """What a ceremony needs beside its plan: the record's path, a directory in memory for printed shares, the import
    token that a bundle is for, and whether memory is locked."""

    record: Path
    sheets: Path | None
    destination: Destination | None
    locked: bool


def check_values_by(token: Token) -> CheckValuesOf:
    """Check values from the token where it can compute them, else from this process."""
    return lambda key: token.check_values(key) or components.check_values(key)


class Making:
    """Makes one key on the token, or removes one that was left half announced."""

    def __init__(self, room: Room, token: Token, clock: Callable[[], datetime], means: Means) -> None:
        self._room, self._token, self._clock, self._means = room, token, clock, means
        self._file = WrappedFile(room, token, means.record.with_name(means.record.name + ".public.pem"))

    def make(self) -> Step:
        """By the way that the plan says; the step that records it."""
        if self._room.plan.output.to is OutputKind.BUNDLE:
            self._agree_on_destination()
        match self._room.plan.source.kind:
            case SourceKind.GENERATE:
                return self._generate()
            case SourceKind.WRAPPED:
                return self._unwrap()
            case SourceKind.SPLIT:
                return self._split()
            case SourceKind.COMPONENTS:
                return self._enter(ComponentParts(self._room))
            case SourceKind.SHARES:
                return self._enter(ShareParts(self._room))

    def tidy(self) -> None:
        """Destroy what only served to bring the key."""
        self._file.destroy()

    def _agree_on_destination(self) -> None:
        """Raises CeremonyRefused when there is none."""
        destination = self._means.destination
        if destination is None:
            raise CeremonyRefused("The plan wants a bundle. Give --import-token: the answer of GET /import_token.")
        lines = [
            "The key will be wrapped to the import token whose public key has this SHA-256, and to nobody else:",
            destination.fingerprint,
        ]
        page(self._room.console, self._room.heading, self._room.leader, LEADER, lines)
        prompt = "First 8 digits of it, from the paper of the service's operator"
        expect(self._room.console, self._room.leader, prompt, destination.fingerprint[:8])

    def _unwrap(self) -> Step:
        carried, found = self._file.open()
        inside = self._token.passage(carried.oaep) is Passage.TOKEN
        return self._put(
            lambda version_id, owner, at: self._token.create_carried_key(version_id, owner, at, carried),
            found,
            _UNWRAPPED if inside else f"RSA-OAEP padding removed {self._where()}",
        )

    def _split(self) -> Step:
        key, found = Splitting(self._room, self._token, self._means.sheets).make()
        try:
            return self._bring(key, found, f"drawn by the token, split {self._where()}")
        finally:
            components.wipe(key)

    def _enter(self, parts: Parts) -> Step:
        key = bytearray()
        try:
            while True:
                parts.enter()
                try:
                    key = parts.combine()
                    found = self._check_whole(key)
                    break
                except EntryRefused as refusal:
                    components.wipe(key)
                    self._room.refuse(self._room.leader, refusal)
                    enter_again(self._room, parts, self._room.plan.people.custodians)
            return self._bring(key, found, f"combined {self._where()}")
        finally:
            components.wipe(key)
            parts.wipe()

    def _check_whole(self, key: bytearray) -> CheckValues:
        """Compare the whole key's check value with the plan or with paper. Raises EntryRefused."""
        source = self._room.plan.source
        found = self._room.check_values(key)
        lines = [f"All parts are entered. Key check value of the whole key: {found.of(source.check)}"]
        page(self._room.console, self._room.heading, self._room.leader, LEADER, lines)
        if source.expected is not None:
            components.require_check_value(found, source.check, source.expected)
        if not is_confirmed(
            self._room.console, self._room.leader, "Is it right, and shall the key be put on the token?"
        ):
            raise EntryRefused("The leader does not agree to this key check value.")
        return found

    def _generate(self) -> Step:
        lines = ["The token will now generate the key. It will never leave the token."]
        page(self._room.console, self._room.heading, self._room.leader, LEADER, lines)
        expect(self._room.console, self._room.leader, "Type generate", "generate")
        return self._put(self._token.generate_key, None, _BORN)

    def _where(self) -> str:
        return "in locked memory" if self._means.locked else "in memory"

    def _bring(self, key: bytearray, found: CheckValues, passage: str) -> Step:
        if self._means.destination is not None and self._room.plan.output.to is OutputKind.BUNDLE:
            return self._wrap(key, found, passage, self._means.destination)
        secret = SecretBytes(bytes(key))
        return self._put(
            lambda version_id, owner, at: self._token.create_key(version_id, owner, at, secret), found, passage
        )

    def _wrap(self, key: bytearray, found: CheckValues, passage: str, destination: Destination) -> Step:
        """Write the bundle, then that it was written: a bundle that no record names is adopted by nobody."""
        key_id = new_id()
        path = self._means.record.with_name(self._means.record.name + ".bundle.json")
        data = {
            "key": key_id,
            "bundle_sha256": bundle.write(path, destination, key_id, key),
            "destination": destination.fingerprint,
            "passage": passage,
            "bytes": self._room.plan.key.bytes,
            "check_values": asdict(found),
            "wrap_check_value": components.wrap_check_value(key).hex().upper(),
        }
        return self._room.note(self._room.leader, LEADER, WRAPPED, data)

    def _put(self, make: Callable[[str, str, datetime], KeyVersion], wanted: CheckValues | None, passage: str) -> Step:
        """Announce the key, make it by one call, read it back, and write down what was read."""
        version_id, key_id = new_id(), new_id()
        owner = key_owner(self._room.plan.key.instance, key_id)
        announced = {"version": version_id, "key": key_id, "check_values": None if wanted is None else asdict(wanted)}
        self._room.note(self._room.leader, LEADER, ANNOUNCED, announced)
        version = make(version_id, owner, self._clock())
        described = self._token.describe_key(version_id)
        kept = described.check_values.of(CheckKind.ECB)
        if wanted is not None and kept not in (None, wanted.ecb):
            self.remove(version_id)
            raise CeremonyRefused(
                "The token holds another key than it was given. It was removed; do not use this token."
            )
        return self._room.note(
            self._room.leader,
            LEADER,
            MADE,
            {
                "version": version_id,
                "key": key_id,
                "owner": owner,
                "label": described.label,
                "created_at": version.created_at.isoformat(),
                "passage": passage,
                "bytes": self._room.plan.key.bytes,
                "attributes": described.attributes,
                "check_values": asdict(wanted if wanted is not None else described.check_values),
                "wrap_check_value": version.check_value.hex().upper(),
            },
        )

    def remove(self, version_id: str) -> None:
        """Destroy a key that was announced, if it was made at all."""
        found = any(key.version_id == version_id for key in self._token.list_keys())
        if found:
            self._token.destroy_key(version_id)
        self._room.note(self._room.leader, LEADER, REMOVED, {"version": version_id, "was_on_the_token": found})
