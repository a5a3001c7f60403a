"""Compare token and database, and settle what a crash left behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action
from hsmkms.domain.importing import Oaep, Passage
from hsmkms.errors import KeyMaterialMissing, OperatorError
from hsmkms.iam import integrity
from hsmkms.iam.grants import Grants
from hsmkms.service.imports import ImportRules
from hsmkms.service.lifecycle import LifecycleService
from hsmkms.service.material import Material
from hsmkms.service.trail import Trail
from hsmkms.store.engine import Database
from hsmkms.store.keys import KeyStore
from hsmkms.store.tenants import TenantStore
from hsmkms.token.room import Token

_WAYS: Final = {Passage.TOKEN: "inside the token", Passage.PROCESS: "by way of this process"}
_EARLIEST_PLAUSIBLE: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. `ok` False makes the exit code 1."""

    subject: str
    ok: bool
    detail: str


class Doctor:
    """For the operator on the host."""

    def __init__(
        self,
        token: Token,
        database: Database,
        keys: KeyStore,
        tenants: TenantStore,
        grants: Grants,
        material: Material,
        lifecycle: LifecycleService,
        trail: Trail,
        import_rules: ImportRules,
        clock: Clock,
    ) -> None:
        self._token = token
        self._database = database
        self._keys = keys
        self._tenants = tenants
        self._grants = grants
        self._material = material
        self._lifecycle = lifecycle
        self._trail = trail
        self._import_rules = import_rules
        self._clock = clock

    def examine(self) -> list[Finding]:
        """Every check, in order; without the primary token those that need none of its objects."""
        tokens = [self._answering(part, token) for part, token in self._token.parts.items()]
        if not tokens[0].ok:
            return [*tokens, self._revision(), self._clock_plausible(), *self._interrupted(), *self._pending()]
        pace_us = self._token.capabilities.call_s * 1e6
        sentinel = self._sentinel()
        findings = [
            *tokens,
            Finding("mechanisms", True, f"all there; keys cannot be drawn out; one seal takes {pace_us:.0f} µs"),
            sentinel,
            self._revision(),
            self._clock_plausible(),
            Finding("import", True, "; ".join(f"{oaep.value} {self._way_in(oaep)}" for oaep in Oaep)),
        ]
        # Without the sentinel every key would seem lost, and the one true finding would drown.
        return [
            *findings,
            *(self._key_objects() + self._rights() if sentinel.ok else []),
            *self._interrupted(),
            *self._pending(),
        ]

    def repair(self, pending_older_than: timedelta) -> list[Finding]:
        """Settle pending objects older than that: those that no row names are destroyed."""
        before = self._clock() - pending_older_than
        findings = []
        for key in self._keys.purging():
            with self._trail.step(Action.KEY_PURGE.value, key):
                self._lifecycle.finish_purge(key)
            findings.append(Finding("interrupted purge", True, f"{key.id} ended: nothing is left of it"))
        for pending in self._keys.pending():
            if pending.created_at > before:
                findings.append(Finding("pending object", True, f"{pending.version_id} is young: left alone"))
                continue
            with self._trail.job("pending-object.settle", pending.version_id):
                destroyed = self._material.settle(pending)
            detail = "object destroyed" if destroyed else "no object to destroy"
            findings.append(Finding("pending object", True, f"{pending.version_id} settled: {detail}"))
        return findings

    @staticmethod
    def _answering(part: str, token: Token) -> Finding:
        subject = "token" if part == "primary" else f"{part} token"
        if not token.is_usable or token.breaker.is_open:
            return Finding(subject, False, "refused or away: `hsmkms hsm status` says more")
        info = token.info
        return Finding(
            subject, True, f"{info.label!r}, serial {info.serial}, {info.manufacturer} firmware {info.firmware}"
        )

    def _sentinel(self) -> Finding:
        there = self._token.has_sentinel()
        return Finding("sentinel", there, "present" if there else "missing: this is not the deployment's token")

    def _revision(self) -> Finding:
        found, wanted = self._database.revision(), self._database.newest_revision()
        unfit = self._database.unfit()
        return Finding("database", unfit is None, unfit or f"revision {found}, this version knows {wanted}")

    def _clock_plausible(self) -> Finding:
        now = self._clock()
        return Finding("clock", now >= _EARLIEST_PLAUSIBLE, f"{now:%Y-%m-%dT%H:%M:%SZ}")

    def _way_in(self, oaep: Oaep) -> str:
        passage, rules = self._token.passage(oaep), self._import_rules
        if passage is None:
            return "not on this token"
        if oaep is Oaep.SHA_1 and not rules.oaep_sha1:
            return f"{_WAYS[passage]}, but forbidden by import_oaep_sha1=false"
        if passage is Passage.PROCESS and not rules.by_process:
            return f"{_WAYS[passage]}, but forbidden by import_by_process=false"
        return _WAYS[passage]

    def _key_objects(self) -> list[Finding]:
        objects = {found.version_id: found for found in self._token.list_keys()}
        purging = {version.id for key in self._keys.purging() for version in key.versions}
        rows = {
            version_id: owner for version_id, owner in self._keys.version_ids().items() if version_id not in purging
        }
        pending = {row.version_id for row in self._keys.pending()}
        findings = [
            Finding("attributes", False, f"{found.version_id} has the wrong {found.unsafe}")
            for found in objects.values()
            if found.unsafe
        ]
        findings += [
            Finding(
                "row without object", False, f"version {version_id} of {owner}: bring the right token or its backup"
            )
            for version_id, owner in rows.items()
            if version_id not in objects
        ]
        findings += [
            Finding(
                "object without row", False, f"{version_id} ({found.label}): kept, the database may be an old backup"
            )
            for version_id, found in objects.items()
            if version_id not in rows and version_id not in pending | purging
        ]
        findings += self._impostors(set(objects))
        both = len(rows.keys() & objects.keys())
        return [Finding("keys", not findings, f"{both} of {len(rows)} rows have their object"), *findings]

    def _rights(self) -> list[Finding]:
        """Records and instances that somebody wrote who cannot use the token; none of them grants anything."""
        if not self._token.has_mac_key():
            return [Finding("rights", False, "the key that seals them is missing: `hsmkms iam recover`")]
        unsealed = integrity.unsealed(self._token.mac, self._tenants.instances())
        forged = [*self._grants.forged(), *(("instance", instance.id) for instance in unsealed)]
        findings = [
            Finding("forged", False, f"{kind} {record_id}: not written by this deployment, ignored")
            for kind, record_id in sorted(forged)
        ]
        return [Finding("rights", not findings, "every seal is right" if not findings else "see below"), *findings]

    def _impostors(self, present: set[str]) -> list[Finding]:
        findings = []
        for key_id, version in self._keys.versions():
            if version.id not in present:
                continue
            try:
                self._token.verify_key(version)
            except (KeyMaterialMissing, OperatorError) as error:
                findings.append(Finding("check value", False, f"version {version.id} of {key_id}: {error.message}"))
        return findings

    def _interrupted(self) -> list[Finding]:
        return [Finding("interrupted purge", False, f"{key.id}: --repair ends it") for key in self._keys.purging()]

    def _pending(self) -> list[Finding]:
        return [
            Finding(
                "pending object",
                False,
                f"{row.version_id} since {row.created_at:%Y-%m-%dT%H:%M:%SZ}: --repair settles it",
            )
            for row in self._keys.pending()
        ]
