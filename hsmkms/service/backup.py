"""Backup and restore of database, settings and audit heads; what they need of the token is named, and looked for."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hsmkms import __version__
from hsmkms.audit.logfile import head_of, logs_in
from hsmkms.clock import Clock
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import BackupRefused, KeyMaterialMissing, SigningKeyMissing, TokenRefused
from hsmkms.service import archive as a
from hsmkms.service.tokens import TokenService
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.dump import bring_in, snapshot
from hsmkms.store.engine import Database
from hsmkms.token.recovery import SENTINEL_ID
from hsmkms.token.room import Token

_NAMED: Final = 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BackupService:
    """Makes backups of a deployment that goes on serving."""

    token: Token
    database: Database
    tokens: TokenService
    heads: AuditHeadStore
    audit_directory: Path
    audit_public_key: Callable[[], bytes]
    clock: Clock

    def make(self, target: Path, settings: bytes) -> a.Manifest:
        """Write a backup to `target`, a new file; `settings` is TOML without secrets. What was committed before this
        was called is in it. Raises BackupRefused, Unavailable."""
        now = self.clock()
        # Before the snapshot: a signing key is made long before the one it replaces is destroyed.
        signing = [key.id for key in self.tokens.public_keys() if key.retires_at is None]
        with a.writing(target) as directory:
            (directory / a.SETTINGS).write_bytes(settings)
            with snapshot(self.database) as dump, (directory / a.ROWS).open("wb") as file:
                rows, keys, revision = dump.write(file), dump.needed_keys(), dump.revision()
            info = self.token.info
            manifest = a.Manifest(
                format=a.FORMAT,
                program=__version__,
                created_at=now,
                database=self.database.url.get_backend_name(),
                revision=revision,
                rows=rows,
                members={name: a.describe(directory / name) for name in (a.ROWS, a.SETTINGS)},
                token=a.TokenNeeds(
                    label=info.label,
                    serial=info.serial,
                    manufacturer=info.manufacturer,
                    sentinel=SENTINEL_ID,
                    wrapping_keys=[
                        a.WrappingKey(key.id, key.owner, key.created_at, key.check_value.hex()) for key in keys
                    ],
                    signing_keys=signing,
                ),
                audit_public_key=self.audit_public_key().decode(),
                audit_heads=self._audit_heads(),
            )
            a.pack(directory, manifest, self.token.mac, target)
        return manifest

    def _audit_heads(self) -> list[a.AuditHead]:
        """The newest that is known of each log: from the database of all nodes', from the files of this one's."""
        newest = {log: a.AuditHead(log, sequence, digest, closed) for log, sequence, digest, closed in self.heads.all()}
        for path in logs_in([self.audit_directory]):
            head = head_of(path)
            if head is not None and (head.log not in newest or newest[head.log].sequence < head.sequence):
                newest[head.log] = a.AuditHead(head.log, head.sequence, head.digest, head.closed)
        return list(newest.values())


def lacking(token: Token, manifest: a.Manifest, audit_public_key: Callable[[], bytes]) -> list[str]:
    """What a token does not hold of what a backup needs, in words. Raises Unavailable."""
    needs = manifest.token
    found = [] if token.has_sentinel() else ["the sentinel"]
    if not token.has_mac_key():
        found.append("the key that seals rights")
    try:
        if audit_public_key().decode() != manifest.audit_public_key:
            found.append("the key that signs audit logs (it has another)")
    except SigningKeyMissing:
        found.append("the key that signs audit logs")
    for key_id in needs.signing_keys:
        try:
            token.signing_public_key(key_id)
        except SigningKeyMissing:
            found.append(f"the signing key {key_id}")
    # By one search: looking for a key that is not there opens the token anew.
    there = {one.version_id for one in token.list_keys()}
    for key in needs.wrapping_keys:
        if key.id not in there:
            found.append(f"{key.id} ({key.owner})")
            continue
        try:
            token.verify_key(KeyVersion(key.id, key.created_at, bytes.fromhex(key.check_value), key.owner))
        except (KeyMaterialMissing, TokenRefused) as error:
            found.append(f"{key.id} ({key.owner}), which is another key: {error.message}")
    return found


def require_token(
    token: Token, audit_public_key: Callable[[], bytes], manifest: a.Manifest, *, accept_missing: bool
) -> list[str]:
    """Refuse a token that cannot go on with a backup; what it lacks, if that is accepted. Raises BackupRefused."""
    missing = lacking(token, manifest, audit_public_key)
    if missing and not accept_missing:
        named = "; ".join(missing[:_NAMED]) + (f"; and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        raise BackupRefused(
            f"Nothing was changed: the token {token.info.label!r}, serial {token.info.serial}, lacks {named}. "
            "Restore the token's own backup first."
        )
    return missing


def require_seal(token: Token, backup: a.Archive) -> bool:
    """Refuse a backup that the token did not seal; False if the token has no key to tell by. Raises BackupRefused."""
    if not token.has_mac_key():
        return False
    if not hmac.compare_digest(token.mac(backup.sealed_message).hex().encode(), backup.seal):
        raise BackupRefused("Nothing was changed: the backup is not what this deployment's token sealed.")
    return True


def bring_back(database: Database, backup: a.Archive, clock: Clock, *, replace: bool) -> str | None:
    """Load a backup into a database; where what it replaced is now. Raises BackupRefused, StoreRefused, Unavailable."""
    if not replace and database.revision() is not None:
        raise BackupRefused("Nothing was changed: the database is not empty. --replace puts what it holds aside.")
    manifest = backup.manifest
    kept = bring_in(database, manifest.revision, backup.rows(), f"{clock():%Y%m%dt%H%M%S}")
    heads = AuditHeadStore(database)
    rows = {log: (sequence, digest) for log, sequence, digest, _ in heads.all()}
    for head in manifest.audit_heads:
        # The rows are older than the manifest, whose heads the token has sealed.
        sequence, digest = rows.get(head.log, (head.sequence, head.digest))
        before = {sequence: digest} if sequence < head.sequence else {}
        if not heads.put(head.log, head.sequence, head.digest, clock(), closed=head.closed, before=before):
            _log.error("the rows of a backup and its manifest know different records of an audit log", log=head.log)
    return kept
