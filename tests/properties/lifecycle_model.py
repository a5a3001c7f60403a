"""A key's life by hand from contract section 3 and additions section 5, without a look at the code under test.

Where they are silent or guess, the comment `choice:` says what the documents of the project chose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

Refusal = tuple[int, str]

ACTIVE, SUSPENDED, DEACTIVATED, DESTROYED = 1, 2, 3, 5
REVERSAL = timedelta(seconds=30)
ROTATED_AGAIN = timedelta(hours=1)
PURGE_BY_HAND = timedelta(hours=4)
SECOND_WORD = timedelta(days=7)
RESTORE = timedelta(days=30)
PURGE_BY_ITSELF = timedelta(days=90)
MONTH = timedelta(days=30)
MOST_ALIASES = 5

GONE: Refusal = (404, "KEY_NOT_FOUND_ERR")
DELETED: Refusal = (410, "KEY_DELETED_ERR")
NOT_ROOT: Refusal = (400, "KEY_ROOT_REQ_ERR")
WRONG_STATE: Refusal = (409, "KEY_ACTION_INVALID_STATE_ERR")
TOO_EARLY: Refusal = (409, "REQ_TOO_EARLY_ERR")
BAD_FIELD: Refusal = (400, "INVALID_FIELD_ERR")
USABLE_IN = {
    "wrap": {ACTIVE},
    "unwrap": {ACTIVE, DEACTIVATED},
    "rewrap": {ACTIVE, DEACTIVATED},
    "rotate": {ACTIVE, DEACTIVATED},
    "disable": {ACTIVE},
    "enable": {SUSPENDED},
}


@dataclass(frozen=True)
class Ciphertext:
    """What a wrap or rewrap gave, and what is in it."""

    text: str
    plaintext: str
    version: str


@dataclass(kw_only=True)
class ModelKey:
    """One key. `versions` newest first, as (id, since when); `word` is the first of two for a deletion, and whose."""

    id: str
    name: str
    root: bool
    ring: str
    aliases: set[str]
    created: datetime
    created_by: str
    expires: datetime | None
    rotation: tuple[bool, int | None] | None = None
    two_people: bool | None = None
    stored: int = ACTIVE
    updated: datetime | None = None
    rotated: datetime | None = None
    disabled: datetime | None = None
    deleted: datetime | None = None
    deleted_by: str | None = None
    word: tuple[datetime, str] | None = None
    purged: bool = False
    versions: list[tuple[str, datetime]] = field(default_factory=list)
    ciphertexts: list[Ciphertext] = field(default_factory=list)
    payload: str | None = None

    def state(self, now: datetime) -> int:
        """Deactivated from the second of the expiration date on. choice: at once, and only from Active."""
        expired = self.expires is not None and now >= self.expires
        return DEACTIVATED if self.stored == ACTIVE and expired else self.stored

    def boundaries(self) -> list[tuple[datetime, str]]:
        """When the answer to some request changes, and to which."""
        ends: list[tuple[datetime, str]] = []
        if self.disabled is not None:
            ends.append((self.disabled + REVERSAL, "enable"))
        if self.deleted is not None:
            ends += [(self.deleted + wait, "restore") for wait in (REVERSAL, RESTORE)]
            ends += [(self.deleted + PURGE_BY_HAND, "purge"), (self.deleted + PURGE_BY_ITSELF, "run_jobs")]
        if self.rotated is not None:
            ends.append((self.rotated + ROTATED_AGAIN, "rotate"))
        if self.word is not None:
            ends.append((self.word[0] + SECOND_WORD, "delete"))
        if self.expires is not None:
            ends += [(self.expires, "restore" if self.deleted else name) for name in ("wrap", "disable", "run_jobs")]
        if self.root and self.rotation is not None and self.rotation[1] is not None:
            # Of a policy that is disabled too: then nothing happens there.
            ends.append(((self.rotated or self.created) + self.rotation[1] * MONTH, "run_jobs"))
        return sorted(ends)

    def rotation_due(self) -> datetime | None:
        """When the policy rotates the key: its interval after creation or the last rotation, by whomever."""
        if not self.root or self.rotation is None or not self.rotation[0] or self.rotation[1] is None:
            return None
        return (self.rotated or self.created) + self.rotation[1] * MONTH

    # What is refused, in this order. choice: 410 before 400 before 409.

    def refuses(self, action: str, now: datetime) -> Refusal | None:
        """wrap, unwrap, rewrap, rotate, disable, enable."""
        if self.stored == DESTROYED:
            return DELETED
        if not self.root:
            return NOT_ROOT
        if self.state(now) not in USABLE_IN[action]:
            return WRONG_STATE
        if action == "enable" and self.disabled is not None and now < self.disabled + REVERSAL:
            return TOO_EARLY
        if action == "rotate" and self.rotated is not None and now < self.rotated + ROTATED_AGAIN:
            return (409, "KEY_ROTATION_NOT_PERMITTED")
        return None

    def refuses_deletion(self, now: datetime, by: str) -> Refusal | None:
        if self.stored == DESTROYED:
            return DELETED
        if self.two_people and (self.spoken(now) is None or self.spoken(now) == by):
            return (409, "AUTHORIZATIONS_NOT_MET")
        return None

    def refuses_word(self, now: datetime) -> Refusal | None:
        """setKeyForDeletion and unsetKeyForDeletion."""
        if self.stored == DESTROYED:
            return DELETED
        if not self.two_people:
            return (409, "NOT_DUAL_AUTH_ERR")
        return None if self.state(now) == ACTIVE else WRONG_STATE

    def refuses_restore(self, now: datetime) -> Refusal | None:
        """choice: too early before expired, expired before too late; the ends belong to what is refused."""
        if self.deleted is None:
            return WRONG_STATE
        if now < self.deleted + REVERSAL:
            return TOO_EARLY
        if self.expires is not None and now >= self.expires:
            return (400, "KEY_EXPIRED_ERR")
        return (400, "KEY_RESTORE_EXPIRED") if now >= self.deleted + RESTORE else None

    def refuses_purge(self, now: datetime) -> Refusal | None:
        if self.deleted is None:
            return WRONG_STATE
        return TOO_EARLY if now < self.deleted + PURGE_BY_HAND else None

    def refuses_policies(self, rotation: tuple[bool, int | None] | None, two_people: bool | None) -> Refusal | None:
        """choice: in every state but Destroyed; 400 for what would take dual authorization off."""
        if self.stored == DESTROYED:
            return DELETED
        if rotation is not None and not self.root:
            return NOT_ROOT
        if rotation is not None and rotation[0] and self.interval_after(rotation) is None:
            return BAD_FIELD
        return BAD_FIELD if two_people is False and self.two_people else None

    def interval_after(self, rotation: tuple[bool, int | None]) -> int | None:
        """A policy without interval keeps the one that is held."""
        held = None if self.rotation is None else self.rotation[1]
        return held if rotation[1] is None else rotation[1]

    def refuses_versions(self, now: datetime, all_states: bool) -> Refusal | None:
        """choice: a deleted key too answers 409 here."""
        return None if all_states or self.state(now) == ACTIVE else WRONG_STATE

    # What happens.

    def rotate(self, now: datetime, version: str) -> None:
        self.versions.insert(0, (version, now))
        self.rotated = self.updated = now

    def disable(self, now: datetime) -> None:
        self.stored, self.disabled, self.updated = SUSPENDED, now, now

    def activate(self, now: datetime) -> None:
        """Enable and restore. choice: a key that was suspended when it was deleted comes back Active."""
        self.stored, self.updated = ACTIVE, now
        self.disabled = self.deleted = self.deleted_by = None

    def delete(self, now: datetime, by: str) -> None:
        self.stored, self.deleted, self.deleted_by, self.updated, self.word = DESTROYED, now, by, now, None

    def expire(self, now: datetime) -> None:
        """By the job. choice: lastUpdateDate moves."""
        self.stored, self.updated = DEACTIVATED, now

    def move(self, now: datetime, ring: str) -> None:
        """choice: in every state; to where it is already changes nothing."""
        if self.ring != ring:
            self.ring, self.updated = ring, now

    def spoken(self, now: datetime) -> str | None:
        """Whose word for a deletion counts."""
        return self.word[1] if self.word is not None and now < self.word[0] + SECOND_WORD else None

    # What is seen.

    def shown(self, now: datetime, *, fresh: bool = False, payload: bool = False) -> dict[str, Any]:
        """Every member of the key that differs from key to key; `fresh` in the answer to its creation."""
        state = self.state(now)
        members: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "state": state,
            "extractable": not self.root,
            "keyRingID": self.ring,
            "creationDate": text(self.created),
            "createdBy": self.created_by,
            "dualAuthDelete": self._dual_auth(now),
            "deleted": state == DESTROYED,
            "aliases": sorted(self.aliases) or None,
            "expirationDate": text(self.expires),
            # choice: aliases, policies and words for a deletion leave it alone.
            "lastUpdateDate": None if fresh else text(self.updated or self.created),
            "lastRotateDate": text(self.rotated),
            "keyVersion": {"id": self.versions[0][0], "creationDate": text(self.versions[0][1])} if self.root else None,
            "payload": self.payload if payload and state != DESTROYED else None,
        }
        if self.rotation is not None:
            enabled, interval = self.rotation
            members["rotation"] = {"enabled": enabled} | ({} if interval is None else {"interval_month": interval})
        if self.deleted is not None:
            in_time = self.expires is None or now < self.expires
            last = self.deleted + RESTORE
            members |= {
                "deletionDate": text(self.deleted),
                "deletedBy": self.deleted_by,
                # The 30 s before a restore are not shown here.
                "restoreAllowed": now < last and in_time,
                "restoreExpirationDate": text(last if self.expires is None else min(last, self.expires)),
                "purgeAllowed": now >= self.deleted + PURGE_BY_HAND,
                "purgeAllowedFrom": text(self.deleted + PURGE_BY_HAND),
                "purgeScheduledOn": text(self.deleted + PURGE_BY_ITSELF),
            }
        return {name: value for name, value in members.items() if value is not None}

    def _dual_auth(self, now: datetime) -> dict[str, Any]:
        if not self.two_people:
            return {"enabled": False}
        if self.word is None or self.spoken(now) is None:
            return {"enabled": True, "keySetForDeletion": False}
        return {"enabled": True, "keySetForDeletion": True, "authExpiration": text(self.word[0] + SECOND_WORD)}


def text(moment: datetime | None) -> str | None:
    """As the wire writes a moment, without fractions."""
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
