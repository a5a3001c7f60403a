"""Everything that grants, in memory: identities, API keys, groups, policies, logins, signing keys.

The change feed tells which records to read again. A record is believed only after its MAC was checked in the token,
which is done when it is first needed and remembered. `epoch` counts changes: whatever was worked out in an older epoch
has to be worked out again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, TypeVar

import structlog

from hsmkms.domain.access import Rights, Role, Scope, SourceCrn
from hsmkms.domain.identities import AccessGroup, ApiKey, Identity, Login, RevokedSession, SigningKey
from hsmkms.domain.instance_policies import InstancePolicy, Restrictions
from hsmkms.domain.known_tokens import KnownToken
from hsmkms.domain.policies import Policy, PolicyState, grants_of_source
from hsmkms.domain.records import Record
from hsmkms.domain.tenants import Instance, SealedInstance
from hsmkms.domain.webhooks import Webhook
from hsmkms.iam import integrity

T = TypeVar(
    "T", Identity, ApiKey, AccessGroup, Policy, Login, SigningKey, RevokedSession, InstancePolicy, Webhook, KnownToken
)

_log = structlog.get_logger(__name__)
_ALL: Final = None
_SPARE: Final = 10_000
_FORGED_FOR_S: Final = 30.0
_REVOKED: Final = integrity.KINDS[RevokedSession]


class Grants:
    """What this process knows of rights. Methods raise Unavailable when a MAC must be checked and the token is away."""

    def __init__(
        self,
        load: Callable[[Collection[tuple[str, str]] | None], list[Record]],
        mac: integrity.Mac,
        *,
        any_region: bool,
    ) -> None:
        self._load = load
        self._mac = mac
        self._any_region = any_region
        self._lock = threading.RLock()
        self._records: dict[tuple[str, str], tuple[Record, integrity.Sealable]] = {}
        # (kind, subject) → places of the records that concern this subject.
        self._index: dict[tuple[str, str | None], set[tuple[str, str]]] = {}
        self._unreadable: set[tuple[str, str]] = set()
        self._genuine: set[bytes] = set()
        self._forged: dict[bytes, float] = {}
        self._instances: list[Instance] = []
        self._restrictions: tuple[int, dict[str, Restrictions]] = (0, {})
        self.revoked_sessions: frozenset[str] = frozenset()
        self.epoch = 0

    def refresh(self, places: Collection[tuple[str, str]] | None) -> None:
        """Read these records again, or all of them for None. Raises StoreUnavailable."""
        found = {record.place: record for record in self._load(places)}
        with self._lock:
            for place in [*self._records, *self._unreadable] if places is None else places:
                self._drop(place)
            for record in found.values():
                self._add(record)
            if len(self._genuine) + len(self._forged) > 2 * len(self._records) + _SPARE:
                # Digests of versions that are no more; what is still there is checked once again.
                self._genuine.clear()
                self._forged.clear()
            revoked = self._index.get((_REVOKED, _ALL), set())
            self.revoked_sessions = frozenset(record_id for _, record_id in revoked)
            # A revocation concerns one log-in, which `Callers.known` asks for; whoever may log in may revoke, and that
            # must not send everybody else the long way.
            if places is None or any(kind != _REVOKED for kind, _ in places):
                self.epoch += 1

    def genuine_instances(self, sealed: Iterable[SealedInstance]) -> list[Instance]:
        """Instances whose MAC is right and that are not deleted; they are remembered for what depends on regions."""
        genuine = []
        for one in sealed:
            key = integrity.instance_digest(one)
            if key not in self._genuine:
                if not integrity.is_sealed_instance(self._mac, one):
                    self._alarm("instance", one.instance.id, key)
                    continue
                self._genuine.add(key)
            if one.instance.deleted_at is None:
                genuine.append(one.instance)
        with self._lock:
            self._instances = genuine
            self.epoch += 1
        return genuine

    def get(self, kind: type[T], record_id: str) -> T | None:
        """A believed value by its id."""
        found = self.record(kind, record_id)
        return None if found is None else found[1]

    def record(self, kind: type[T], record_id: str) -> tuple[Record, T] | None:
        """A believed value with its record, which a change of it must name."""
        with self._lock:
            found = self._records.get((integrity.KINDS[kind], record_id))
        if found is None or not isinstance(found[1], kind) or not self.believes(found[0]):
            return None
        return found[0], found[1]

    def about(self, kind: type[T], subject: str | None = _ALL) -> list[T]:
        """All believed values of a kind that concern a subject (an `iam_id`, a group id, `service:<name>`, an OIDC
        issuer), or all of the kind for None."""
        return [value for _, value in self.entries(kind, subject)]

    def entries(self, kind: type[T], subject: str | None = _ALL) -> list[tuple[Record, T]]:
        """The same with their records, which a change of them must name."""
        with self._lock:
            places = self._index.get((integrity.KINDS[kind], subject), set())
            found = [self._records[place] for place in places]
        return [(record, value) for record, value in found if isinstance(value, kind) and self.believes(record)]

    def identity(self, iam_id: str) -> Identity | None:
        """The identity behind an `iam_id`."""
        found = self.about(Identity, iam_id)
        return found[0] if len(found) == 1 else None

    def rights_of(self, identity: Identity) -> Rights:
        """All that an identity was granted. A service id of a source service has what authorizations grant, no more."""
        if identity.source_crns:
            return self.rights_of_sources(identity.sources, identity.account)
        return Rights(self._own_grants(identity))

    def rights_of_sources(self, sources: Iterable[SourceCrn], account: str) -> Rights:
        """What authorizations grant to instances of source services."""
        named = list(sources)
        with self._lock:
            instances = [instance for instance in self._instances if instance.account == account]
        services = {source.service for source in named}
        policies = [policy for name in services for policy in self.about(Policy, f"service:{name}")]
        return Rights(grants_of_source(named, policies, instances, any_region=self._any_region))

    def restrictions(self, instance_id: str) -> Restrictions:
        """From where an instance may be called."""
        epoch, known = self._restrictions
        if epoch != self.epoch:
            epoch, known = self._restrictions = (self.epoch, {})
        found = known.get(instance_id)
        if found is None:
            found = known[instance_id] = Restrictions(self.about(InstancePolicy, instance_id))
        return found

    def of_account(self, account: str) -> list[integrity.Sealable]:
        """All believed values of an account."""
        with self._lock:
            found = [entry for entry in self._records.values() if entry[0].account == account]
        return [value for record, value in found if self.believes(record)]

    def forged(self) -> list[tuple[str, str]]:
        """Check every record; (kind, id) of those that this deployment did not write."""
        with self._lock:
            records, unreadable = [record for record, _ in self._records.values()], sorted(self._unreadable)
        return [*unreadable, *(record.place for record in records if not self.believes(record))]

    def believes(self, record: Record) -> bool:
        """Whether this deployment wrote a record. Raises Unavailable."""
        key = integrity.digest(record)
        if key in self._genuine:
            return True
        # Asked again after a while: it may have been another token that did not know the MAC.
        if time.monotonic() < self._forged.get(key, 0.0):
            return False
        if integrity.is_sealed(self._mac, record):
            self._genuine.add(key)
            return True
        self._alarm(record.kind, record.id, key)
        return False

    def _own_grants(self, identity: Identity) -> Iterator[tuple[Role, Scope]]:
        subjects = [identity.iam_id, *(group.id for group in self.about(AccessGroup, identity.iam_id))]
        for subject in subjects:
            for policy in self.about(Policy, subject):
                if policy.state is PolicyState.ACTIVE and policy.account == identity.account:
                    yield from ((role, policy.scope) for role in policy.roles)

    def _add(self, record: Record) -> None:
        value = integrity.value_of(record)
        if value is None:
            self._unreadable.add(record.place)
            self._alarm(record.kind, record.id, integrity.digest(record))
            return
        self._records[record.place] = (record, value)
        for subject in _subjects(value):
            self._index.setdefault((record.kind, subject), set()).add(record.place)

    def _drop(self, place: tuple[str, str]) -> None:
        self._unreadable.discard(place)
        found = self._records.pop(place, None)
        if found is not None:
            for subject in _subjects(found[1]):
                held = self._index[(place[0], subject)]
                held.discard(place)
                if not held:
                    del self._index[(place[0], subject)]

    def _alarm(self, kind: str, record_id: str, key: bytes) -> None:
        """Once a while for each forged record, not once for each request."""
        if time.monotonic() >= self._forged.get(key, 0.0):
            self._forged[key] = time.monotonic() + _FORGED_FOR_S
            _log.critical("a record that was not written by this deployment is ignored", kind=kind, id=record_id)


def _subjects(value: integrity.Sealable) -> tuple[str | None, ...]:
    match value:
        case Identity() | ApiKey():
            return (_ALL, value.iam_id)
        case AccessGroup():
            return (_ALL, *(member.iam_id for member in value.members))
        case Login():
            return (_ALL, f"{value.method.value}:{value.issuer}", value.iam_id)
        case Policy():
            subject = value.subject
            service = None if subject.service is None else f"service:{subject.service}"
            return (_ALL, subject.iam_id or subject.access_group_id or service or "")
        case InstancePolicy():
            return (_ALL, value.instance_id)
        case Webhook():
            return (_ALL, value.source)
        case SigningKey() | RevokedSession() | KnownToken():
            return (_ALL,)
