"""Keys with their versions and aliases, and the pending objects that a crash may leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    Select,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.exc import IntegrityError

from hsmkms.domain.ids import DEFAULT_KEY_RING, canonical_uuid, is_alias
from hsmkms.domain.importing import Passage
from hsmkms.domain.key_policies import MONTH, KeyPolicy, KeyPolicyKind
from hsmkms.domain.keys import Key, KeyState, KeyVersion, key_owner
from hsmkms.domain.query import KeyQuery
from hsmkms.domain.tenants import PendingObject
from hsmkms.errors import AliasNotUnique, KeyRingNotFound
from hsmkms.store import tables as t
from hsmkms.store.changes import KEY, record_change
from hsmkms.store.engine import Database
from hsmkms.store.events import Notice, tell
from hsmkms.store.key_policies import policies_of, put_policy
from hsmkms.store.known import known
from hsmkms.store.listing import among, count_keys, key_conditions, key_ids
from hsmkms.store.registrations import require_deletable
from hsmkms.store.seen import hold_seen, update_seen


class KeyStore:
    """Rows of keys. Methods raise StoreUnavailable, and KeyIncomplete when a row cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_pending(self, pending: PendingObject) -> None:
        """Commit that a token object is about to be made."""
        with self._database.write() as connection:
            connection.execute(
                insert(t.pending_object).values(
                    version_id=pending.version_id, purpose=pending.purpose, created_at=pending.created_at
                )
            )

    def remove_pending(self, version_id: str) -> None:
        """Commit that an object that was pending is no more."""
        with self._database.write() as connection:
            _settle(connection, version_id)

    def pending(self) -> list[PendingObject]:
        """Token objects whose making was begun and never settled, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(t.pending_object).order_by(t.pending_object.c.created_at)).all()
        return [PendingObject(**row._asdict()) for row in rows]

    def insert(self, key: Key, sealed_payload: bytes | None) -> None:
        """Commit a new key. Raises AliasNotUnique, KeyRingNotFound."""
        try:
            with self._database.write() as connection:
                record_change(connection, KEY, key.id)
                _require_ring(connection, key.instance_id, key.key_ring_id)
                connection.execute(insert(t.key).values(**_columns(key), sealed_payload=sealed_payload))
                for version in key.versions:
                    _insert_version(connection, key.id, 1, version)
                for alias in key.aliases:
                    _insert_alias(connection, key, alias, key.created_at, key.created_by)
                for policy in key.policies:
                    put_policy(connection, key.id, policy)
        except IntegrityError as error:
            raise AliasNotUnique from error

    def rotate(self, seen: Key, version: KeyVersion, notice: Notice) -> None:
        """Commit `version` as the newest of `seen`, and tell its services. Raises StaleKey."""
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            update_seen(connection, seen, rotated_at=notice.at, updated_at=notice.at)
            _insert_version(connection, seen.id, len(seen.versions) + 1, version)
            tell(connection, seen, seen.state, version.id, notice)

    def mark_deleted(self, seen: Key, by: str, notice: Notice, *, force: bool) -> None:
        """Commit the deletion of a key, and tell its services; its material and rows stay until it is purged.

        Raises StaleKey, DeletionPrevented, and ProtectedResource unless `force` is given.
        """
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            update_seen(
                connection,
                seen,
                state=int(KeyState.DESTROYED),
                deleted_at=notice.at,
                deleted_by=by,
                updated_at=notice.at,
                deletion_set_at=None,
                deletion_set_by=None,
            )
            require_deletable(connection, seen, force=force)
            tell(connection, seen, KeyState.DESTROYED, None, notice)

    def suspend(self, seen: Key, notice: Notice) -> None:
        """Commit that a key is suspended, and tell its services. Raises StaleKey."""
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            update_seen(connection, seen, state=int(KeyState.SUSPENDED), disabled_at=notice.at, updated_at=notice.at)
            tell(connection, seen, KeyState.SUSPENDED, None, notice)

    def activate(self, seen: Key, notice: Notice) -> None:
        """Commit that a suspended or deleted key is active, and tell its services. Raises StaleKey."""
        values = {"disabled_at": None, "deleted_at": None, "deleted_by": None, "updated_at": notice.at}
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            update_seen(connection, seen, state=int(KeyState.ACTIVE), **values)
            tell(connection, seen, KeyState.ACTIVE, None, notice)

    def repeat(self, seen: Key, notice: Notice) -> None:
        """Tell the services of a key again how it is. Raises StaleKey."""
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            hold_seen(connection, seen)
            tell(connection, seen, seen.state, None, notice)

    def set_for_deletion(self, seen: Key, now: datetime | None, by: str | None) -> None:
        """Commit the first of two words for a deletion, or with None take it back. Raises StaleKey."""
        self._set(seen, deletion_set_at=now, deletion_set_by=by)

    def expire(self, seen: Key, now: datetime) -> None:
        """Commit that a key whose expiration date has passed is deactivated. Raises StaleKey."""
        self._set(seen, state=int(KeyState.DEACTIVATED), updated_at=now)

    def expired(self, now: datetime, most: int) -> list[Key]:
        """Active keys whose expiration date has passed."""
        return self._due(_expired(now).order_by(t.key.c.expires_at), most)

    def count_expired(self, now: datetime) -> int:
        """How many there are."""
        return self._count(_expired(now))

    def due_for_purge(self, deleted_before: datetime, most: int) -> list[Key]:
        """Keys that were deleted by then."""
        return self._due(_deleted(deleted_before).order_by(t.key.c.deleted_at), most)

    def count_due_for_purge(self, deleted_before: datetime) -> int:
        """How many there are."""
        return self._count(_deleted(deleted_before))

    def due_for_rotation(self, now: datetime, most: int) -> list[Key]:
        """Active root keys whose rotation policy is enabled and whose interval is over."""
        return self._due(_due_for_rotation(now).order_by(t.key_policy.c.key_id), most)

    def count_due_for_rotation(self, now: datetime) -> int:
        """How many there are."""
        return self._count(_due_for_rotation(now))

    def _due(self, statement: Select[tuple[object, ...]], most: int) -> list[Key]:
        with self._database.read() as connection:
            return _load(connection, statement.limit(most))

    def _count(self, statement: Select[tuple[object, ...]]) -> int:
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(statement.subquery())).scalar_one()

    def begin_purge(self, seen: Key, now: datetime) -> None:
        """Commit that a key is being purged: from now on nobody sees it. Raises StaleKey."""
        self._set(seen, purge_began_at=now)

    def purging(self) -> list[Key]:
        """Keys whose purge began and has not ended."""
        with self._database.read() as connection:
            return _load(connection, _select(purging=True))

    def end_purge(self, key_id: str) -> None:
        """Commit that nothing is left of a key whose material was destroyed."""
        with self._database.write() as connection:
            record_change(connection, KEY, key_id)
            for table in (t.key_event, t.registration, t.key_alias, t.key_version, t.key_policy):
                connection.execute(delete(table).where(table.c.key_id == key_id))
            connection.execute(delete(t.key).where(t.key.c.id == key_id, t.key.c.purge_began_at.is_not(None)))

    def add_alias(self, seen: Key, alias: str, now: datetime, by: str, most: int) -> bool:
        """Commit an alias unless the key has `most` already, which gives False. Raises AliasNotUnique, StaleKey."""
        try:
            with self._database.write() as connection:
                # The change number first: it serialises writers, so that two cannot both pass the count.
                record_change(connection, KEY, seen.id)
                hold_seen(connection, seen)
                held = select(func.count()).select_from(t.key_alias).where(t.key_alias.c.key_id == seen.id)
                if connection.execute(held).scalar_one() >= most:
                    return False
                _insert_alias(connection, seen, alias, now, by)
        except IntegrityError as error:
            raise AliasNotUnique from error
        return True

    def remove_alias(self, seen: Key, alias: str) -> bool:
        """Commit that a key has an alias no more; False if it had none of this name. Raises StaleKey."""
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            hold_seen(connection, seen)
            gone = connection.execute(
                delete(t.key_alias).where(t.key_alias.c.key_id == seen.id, t.key_alias.c.alias == alias)
            )
            return gone.rowcount == 1

    def put_policies(self, seen: Key, policies: Iterable[KeyPolicy]) -> None:
        """Commit policies of a key, each in the place of one of its kind. Raises StaleKey."""
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            hold_seen(connection, seen)
            for policy in policies:
                put_policy(connection, seen.id, policy)

    def _set(self, seen: Key, **values: object) -> None:
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            update_seen(connection, seen, **values)

    def move(self, seen: Key, key_ring_id: str, now: datetime) -> None:
        """Commit another ring for a key. Raises StaleKey, KeyRingNotFound."""
        with self._database.write() as connection:
            record_change(connection, KEY, seen.id)
            _require_ring(connection, seen.instance_id, key_ring_id)
            update_seen(connection, seen, key_ring_id=key_ring_id, updated_at=now)

    def get(self, instance_id: str, reference: str) -> Key | None:
        """The key of an instance by its id or an alias."""
        with self._database.read() as connection:
            key_id = canonical_uuid(reference)
            if key_id is None and not is_alias(reference):
                return None
            if key_id is None:
                key_id = connection.execute(
                    select(t.key_alias.c.key_id).where(
                        t.key_alias.c.instance_id == instance_id, t.key_alias.c.alias == reference
                    )
                ).scalar_one_or_none()
            # An alias that does not exist takes as many statements as one that does: else time would tell.
            keys = _load(connection, _select().where(t.key.c.id == key_id, t.key.c.instance_id == instance_id))
        return keys[0] if keys else None

    def sealed_payload(self, key_id: str) -> bytes | None:
        """The sealed payload of a standard key."""
        with self._database.read() as connection:
            return connection.execute(select(t.key.c.sealed_payload).where(t.key.c.id == key_id)).scalar_one_or_none()

    def page(
        self, instance_id: str, query: KeyQuery, now: datetime, ring_ids: Iterable[str] | None, *, total: bool
    ) -> tuple[Sequence[Key], int | None]:
        """One page of keys and, with `total`, how many there are on all pages. `ring_ids` None means every ring."""
        where = key_conditions(instance_id, query, now, ring_ids)
        with self._database.read() as connection:
            ids, counted = key_ids(connection, where, query, now)
            if total and counted is None:
                counted = count_keys(connection, where)
            found = {key.id: key for key in _load(connection, _select().where(among(connection, t.key.c.id, ids)))}
        # On PostgreSQL a key may go between two statements.
        return [found[key_id] for key_id in ids if key_id in found], counted

    def count(
        self,
        instance_id: str,
        query: KeyQuery,
        now: datetime,
        ring_ids: Iterable[str] | None,
        most: int | None = None,
    ) -> int:
        """How many keys match, counted up to `most`."""
        with self._database.read() as connection:
            return count_keys(connection, key_conditions(instance_id, query, now, ring_ids), most)

    def count_live(self, instance_id: str) -> int:
        """How many keys of an instance are not deleted."""
        live = (t.key.c.instance_id == instance_id, t.key.c.state != int(KeyState.DESTROYED))
        with self._database.read() as connection:
            return connection.execute(select(func.count()).select_from(t.key).where(*live)).scalar_one()

    def has_version(self, version_id: str) -> bool:
        """True if a committed row names this version id."""
        version = select(t.key_version.c.id).where(t.key_version.c.id == version_id)
        sealing = select(t.instance.c.id).where(t.instance.c.sealing_id == version_id)
        with self._database.read() as connection:
            return any(connection.execute(query).first() is not None for query in (version, sealing))

    def version_ids(self) -> dict[str, str]:
        """Every version id that a row names, with the key or instance it belongs to."""
        with self._database.read() as connection:
            versions = connection.execute(select(t.key_version.c.id, t.key_version.c.key_id)).all()
            sealing = connection.execute(select(t.instance.c.sealing_id, t.instance.c.id)).all()
        return {row[0]: row[1] for row in (*versions, *sealing)}

    def versions(self) -> list[tuple[str, KeyVersion]]:
        """Every version with the id of its key, for `doctor`."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(t.key_version, t.key.c.instance_id).join(t.key).order_by(t.key_version.c.key_id)
            ).all()
        return [
            (row.key_id, KeyVersion(row.id, row.created_at, row.check_value, key_owner(row.instance_id, row.key_id)))
            for row in rows
        ]


def _select(*, purging: bool = False) -> Select[tuple[object, ...]]:
    """Keys without their payloads; those that are being purged are there only for who does it."""
    began = t.key.c.purge_began_at
    return select(*(column for column in t.key.c if column is not t.key.c.sealed_payload)).where(
        began.is_not(None) if purging else began.is_(None)
    )


def _expired(now: datetime) -> Select[tuple[object, ...]]:
    return _select().where(t.key.c.state == literal_column(str(int(KeyState.ACTIVE))), t.key.c.expires_at <= now)


def _deleted(before: datetime) -> Select[tuple[object, ...]]:
    return _select().where(t.key.c.state == literal_column(str(int(KeyState.DESTROYED))), t.key.c.deleted_at <= before)


def _due_for_rotation(now: datetime) -> Select[tuple[object, ...]]:
    since = type_coerce(func.coalesce(t.key.c.rotated_at, t.key.c.created_at), BigInteger)
    months = cast(t.key_policy.c.interval_month, BigInteger)
    due_at = since + months * literal(MONTH // timedelta(microseconds=1), BigInteger)
    return (
        _select()
        .join(t.key_policy, t.key_policy.c.key_id == t.key.c.id)
        .with_hint(t.key_policy, "INDEXED BY ix_key_policy_rotation", "sqlite")
        .where(
            # The literal is that of the index.
            t.key_policy.c.kind == literal_column(f"'{KeyPolicyKind.ROTATION.value}'"),
            t.key_policy.c.enabled,
            t.key.c.state == int(KeyState.ACTIVE),
            or_(t.key.c.expires_at.is_(None), t.key.c.expires_at > now),
            due_at <= literal(t.microseconds(now), BigInteger),
        )
    )


def _insert_alias(connection: Connection, key: Key, alias: str, now: datetime, by: str) -> None:
    connection.execute(
        insert(t.key_alias).values(
            instance_id=key.instance_id, alias=alias, key_id=key.id, created_at=now, created_by=by
        )
    )


def _settle(connection: Connection, version_id: str) -> None:
    connection.execute(delete(t.pending_object).where(t.pending_object.c.version_id == version_id))


def _insert_version(connection: Connection, key_id: str, number: int, version: KeyVersion) -> None:
    connection.execute(
        insert(t.key_version).values(
            id=version.id,
            key_id=key_id,
            number=number,
            created_at=version.created_at,
            check_value=version.check_value,
            passage=None if version.passage is Passage.GENERATED else version.passage.value,
        )
    )
    _settle(connection, version.id)


def _require_ring(connection: Connection, instance_id: str, ring_id: str) -> None:
    """Raise KeyRingNotFound unless the ring is there. After `record_change`, so that nobody deletes it before the
    commit."""
    here = (t.key_ring.c.instance_id == instance_id, t.key_ring.c.id == ring_id)
    if ring_id != DEFAULT_KEY_RING and connection.execute(select(t.key_ring.c.id).where(*here)).first() is None:
        raise KeyRingNotFound


def _columns(key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "instance_id": key.instance_id,
        "key_ring_id": key.key_ring_id,
        "name": key.name,
        "name_folded": key.name.casefold(),
        "description": key.description,
        "tags": list(key.tags),
        "extractable": key.extractable,
        "imported": key.imported,
        "state": int(key.state),
        "created_at": key.created_at,
        "created_by": key.created_by,
        "updated_at": key.updated_at,
        "rotated_at": key.rotated_at,
        "expires_at": key.expires_at,
        "deleted_at": key.deleted_at,
        "deleted_by": key.deleted_by,
    }


def _load(connection: Connection, statement: Select[tuple[object, ...]]) -> list[Key]:
    rows = connection.execute(statement).all()
    instances = {row.id: row.instance_id for row in rows}
    ids = list(instances)
    versions: dict[str, list[KeyVersion]] = {}
    for row in connection.execute(
        select(t.key_version)
        .where(among(connection, t.key_version.c.key_id, ids))
        .order_by(t.key_version.c.key_id, t.key_version.c.number.desc())
    ).all():
        owner = key_owner(instances[row.key_id], row.key_id)
        passage = Passage.GENERATED if row.passage is None else Passage(row.passage)
        version = KeyVersion(row.id, row.created_at, row.check_value, owner, passage)
        versions.setdefault(row.key_id, []).append(version)
    aliases: dict[str, list[str]] = {}
    for row in connection.execute(
        select(t.key_alias).where(among(connection, t.key_alias.c.key_id, ids)).order_by(t.key_alias.c.alias)
    ).all():
        aliases.setdefault(row.key_id, []).append(row.alias)
    policies = policies_of(connection, ids)
    return [_key(row, versions.get(row.id, []), aliases.get(row.id, []), policies.get(row.id, [])) for row in rows]


def _key(
    row: Row[tuple[object, ...]],
    versions: Sequence[KeyVersion],
    aliases: Sequence[str],
    policies: Sequence[KeyPolicy],
) -> Key:
    return Key(
        id=row.id,
        instance_id=row.instance_id,
        key_ring_id=row.key_ring_id,
        name=row.name,
        description=row.description,
        tags=tuple(row.tags),
        aliases=tuple(aliases),
        extractable=row.extractable,
        imported=row.imported,
        state=known(KeyState, row.state),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        rotated_at=row.rotated_at,
        expires_at=row.expires_at,
        deleted_at=row.deleted_at,
        deleted_by=row.deleted_by,
        versions=tuple(versions),
        disabled_at=row.disabled_at,
        deletion_set_at=row.deletion_set_at,
        deletion_set_by=row.deletion_set_by,
        noticed_at=row.noticed_at,
        policies=tuple(policies),
    )
