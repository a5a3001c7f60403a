"""Builds the rooms of one process in order, and closes them in reverse."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import Gauge

from hsmkms.api.places import ChangePlaces
from hsmkms.api.problems import status_of
from hsmkms.api.requests import Gate
from hsmkms.api.services import Services
from hsmkms.audit.chain import Head
from hsmkms.audit.journal import Journal, Limits
from hsmkms.audit.shipping import Shipper, Sink
from hsmkms.audit.sinks import HttpReceiver, StandardOutput, Syslog, client_context
from hsmkms.audit.witness import HEADS_TOLD, Witness
from hsmkms.clock import Clock, system_clock
from hsmkms.correlation import ContextThreads
from hsmkms.domain.secrets import SecretText
from hsmkms.domain.waits import SHORT, Waits
from hsmkms.errors import (
    AuditKeyMissing,
    KeyMaterialMissing,
    SettingsInvalid,
    SigningKeyMissing,
    StoreRefused,
    TokenRefused,
    TokenUnavailable,
)
from hsmkms.iam.bearer import TokenVerifier
from hsmkms.iam.callers import Callers
from hsmkms.iam.grants import Grants
from hsmkms.iam.limits import RequestLimit
from hsmkms.iam.outside import IssuerSettings, OutsideIssuer
from hsmkms.iam.throttle import Throttle
from hsmkms.opening import PRIMARY, STANDBY, Pins, open_token
from hsmkms.outbound import is_private
from hsmkms.service.account_records import AccountRecords
from hsmkms.service.adoption import AdoptionService
from hsmkms.service.aliases import AliasService
from hsmkms.service.api_keys import ApiKeyService
from hsmkms.service.backup import BackupService
from hsmkms.service.bell import EventBell
from hsmkms.service.crypto import CryptoService
from hsmkms.service.deployment import Deployment
from hsmkms.service.doctor import Doctor
from hsmkms.service.events import EventService
from hsmkms.service.groups import GroupService
from hsmkms.service.health import HealthService
from hsmkms.service.identities import IdentityService
from hsmkms.service.imports import ImportRules, ImportService
from hsmkms.service.instance_policies import InstancePolicyService
from hsmkms.service.instances import InstanceService
from hsmkms.service.jobs import JobService
from hsmkms.service.key_access import KeyAccess
from hsmkms.service.key_policies import KeyPolicyService
from hsmkms.service.key_rings import KeyRingService
from hsmkms.service.keys import KeyService
from hsmkms.service.known_tokens import KnownTokens
from hsmkms.service.lifecycle import LifecycleService
from hsmkms.service.material import Material
from hsmkms.service.policies import PolicyService
from hsmkms.service.registrations import RegistrationService
from hsmkms.service.rights import RightsWriter
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.tokens import TokenService
from hsmkms.service.trail import Trail
from hsmkms.service.webhooks import WebhookService
from hsmkms.settings import HttpSink, Settings, StandardOutputSink, SyslogSink, read_secret, require_own
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.changes import changes_since
from hsmkms.store.engine import Database
from hsmkms.store.events import EventStore
from hsmkms.store.import_tokens import ImportTokenStore
from hsmkms.store.jobs import JobStore
from hsmkms.store.keys import KeyStore
from hsmkms.store.records import RecordStore
from hsmkms.store.registrations import RegistrationStore
from hsmkms.store.tenants import TenantStore
from hsmkms.store.webhooks import DeliveryStore
from hsmkms.telemetry import logs, metrics
from hsmkms.token.room import Token

_LOOKUPS: Final = 8
"""Threads of a process that look up callers and keys in the database."""
AUDIT_KEY_ID: Final = "61756469-7400-4000-8000-636865636b70"
"""CKA_ID of the token key that signs audit checkpoints: one a token, which every node finds without asking."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything of one process. `close` ends it in reverse order of building."""

    services: Services
    deployment: Deployment
    doctor: Doctor
    token: Token
    database: Database
    heads: AuditHeadStore
    audit_directory: Path
    shippers: Sequence[Shipper]
    journal: Journal
    gauges: Mapping[Gauge, Callable[[], float]]
    close: ExitStack


def configure_logs(settings: Settings | None = None) -> None:
    """Log lines as the settings want them; before these are known, as they are by default."""
    if settings is None:
        logs.configure()
    else:
        logs.configure(settings.log_format, settings.log_level)


def open_rooms(
    settings: Settings,
    pins: Pins,
    *,
    migrate: bool = False,
    found: bool = False,
    recover: bool = False,
    serves: bool = False,
    stays: bool = False,
    journal: Journal | None = None,
    clock: Clock = system_clock,
) -> Rooms:
    """Token, store, services. With `migrate` the schema is brought to this version's revision first; with `found` the
    key that seals rights is made when the token has none, with `recover` a lost audit key too; `serves` says that this
    is the service and no command beside it, `stays` what becomes of a process whose token hangs (`token.hanging`), and
    with `stays` audit records are shipped. A `journal` that is there already is used, and left open. Every service
    reads its time from `clock`.

    Raises OperatorError or Unavailable with everything closed again.
    """
    require_own(settings.state_dir)
    with ExitStack() as stack:
        token = open_token(settings, pins, stack, serves=serves, stays=stays)
        database = Database(settings.database)
        stack.callback(database.close)
        unfit = database.unfit()
        # Only then: who only reads needs a database that takes writes no more than before.
        if migrate and unfit is not None:
            database.migrate()
            unfit = database.unfit()
        if unfit is not None:
            raise StoreRefused(unfit)
        stores = _Stores(
            KeyStore(database),
            TenantStore(database),
            RecordStore(database),
            JobStore(database),
            RegistrationStore(database),
            EventStore(database),
            DeliveryStore(database),
            ImportTokenStore(database),
        )
        if found:
            _require_own_token(token, stores.tenants)
            if not token.has_mac_key():
                token.make_mac_key()
        any_region = settings.allow_authorizations_across_regions
        grants = Grants(stores.records.load, token.mac, any_region=any_region)
        bell = EventBell()
        feed = partial(changes_since, database)
        snapshot = Snapshot(stores.keys.get, stores.tenants.instances, grants, feed, bell)
        snapshot.start()
        stack.callback(snapshot.stop)
        heads = AuditHeadStore(database)
        if migrate:
            require_audit_key(token, heads, anew=recover)
        # Closed behind the journal, whose last record they ship.
        shippers = _shippers(settings) if migrate or serves else []
        for shipper in shippers:
            stack.callback(shipper.close)
        own = journal is None
        journal = journal or journal_of(settings, clock)
        stack.callback(journal.close if own else journal.dismiss)
        journal.call(_witness(token, heads, clock))
        for shipper in shippers if stays else ():
            shipper.start()
        threads = ContextThreads(max_workers=settings.sessions, thread_name_prefix="token")
        stack.callback(threads.shutdown)
        # Who is looked up, or the snapshot brought up to date, must not wait for a token that takes its time.
        lookups = ContextThreads(max_workers=_LOOKUPS, thread_name_prefix="lookup")
        stack.callback(lookups.shutdown)
        waits = SHORT if settings.shorten_waits_for_tests else Waits()
        material = Material(token, stores.keys, stores.import_tokens, waits, clock)
        trail = Trail(journal, snapshot.last_known, snapshot.remembered, waits, clock, status_of)
        services = _services(
            settings, token, database, stores, grants, snapshot, bell, trail, threads, lookups, material, waits, clock
        )
        stack.callback(services.webhooks.close)
        return Rooms(
            services=services,
            deployment=Deployment(
                token,
                stores.tenants,
                grants,
                snapshot,
                services.identities,
                services.api_keys,
                services.policies,
                services.instances,
                services.tokens,
                KnownTokens(token, grants, RightsWriter(stores.records, grants, token.mac, snapshot, clock), clock),
                clock,
            ),
            doctor=Doctor(
                token,
                database,
                stores.keys,
                stores.tenants,
                grants,
                material,
                services.lifecycle,
                trail,
                _import_rules(settings),
                clock,
            ),
            token=token,
            database=database,
            heads=heads,
            audit_directory=settings.audit_directory,
            shippers=shippers,
            journal=journal,
            gauges=_gauges(token, snapshot, journal),
            close=stack.pop_all(),
        )


def _gauges(token: Token, snapshot: Snapshot, journal: Journal) -> dict[Gauge, Callable[[], float]]:
    """What metrics tell of the state of this process."""
    return {
        metrics.TOKEN_SESSIONS: lambda: sum(part.open_sessions for part in token.parts.values()),
        metrics.TOKEN_SESSIONS_LENT: lambda: sum(part.lent_sessions for part in token.parts.values()),
        metrics.SNAPSHOT_TIME: lambda: time.time() - snapshot.age_s,
        metrics.SNAPSHOT_KEYS: lambda: snapshot.key_count,
        metrics.AUDIT_WAITING: lambda: journal.waiting,
        metrics.AUDIT_LAG: lambda: journal.lag_s,
        metrics.AUDIT_FAILING: lambda: not journal.writes,
    }


def require_audit_key(token: Token, heads: AuditHeadStore, *, anew: bool) -> None:
    """Make the key if the token has none and no log was signed by another, or with `anew`. Raises TokenRefused."""
    try:
        audit_public_key_of(token)()
    except AuditKeyMissing as error:
        if heads.newest(1) and not anew:
            raise TokenRefused(error.message) from error
        token.generate_signing_key(AUDIT_KEY_ID)


def audit_public_key_of(token: Token) -> Callable[[], bytes]:
    """What reads the public half (PEM) of the key that signs audit logs, and raises AuditKeyMissing, Unavailable."""

    def read() -> bytes:
        try:
            return token.signing_public_key(AUDIT_KEY_ID)
        except SigningKeyMissing as error:
            raise AuditKeyMissing from error

    return read


def journal_of(settings: Settings, clock: Clock = system_clock) -> Journal:
    """The journal of this process; it begins a log with its first event."""
    limits = Limits(settings.audit_checkpoint_s, settings.audit_log_bytes, settings.audit_log_age_s)
    return Journal(settings.audit_directory, node_name(), limits, clock)


def _witness(token: Token, heads: AuditHeadStore, clock: Clock) -> Witness:
    """The token's audit key, and the other nodes by way of the database."""

    def tell(head: Head, before: Mapping[int, str]) -> bool:
        return heads.put(head.log, head.sequence, head.digest, clock(), closed=head.closed, before=before)

    def newest() -> list[Head]:
        return [Head(*one) for one in heads.newest(HEADS_TOLD)]

    def known(log: str) -> Head | None:
        one = heads.known(log)
        return None if one is None else Head(*one)

    return Witness(audit_public_key_of(token), partial(token.sign, AUDIT_KEY_ID), tell, newest, known)


def node_name() -> str:
    """This host in the names of audit logs."""
    return "".join(letter for letter in socket.gethostname()[:40] if letter.isalnum()) or "node"


def _shippers(settings: Settings) -> list[Shipper]:
    """One for each sink. Raises SettingsInvalid."""
    sinks = [_sink(one) for one in settings.audit_sinks]
    if len({sink.name for sink in sinks}) != len(sinks):
        raise SettingsInvalid("Two audit_sinks have one name. Give each a name of its own.")
    return [Shipper(settings.audit_directory, sink) for sink in sinks]


def _sink(one: StandardOutputSink | SyslogSink | HttpSink) -> Sink:
    name = one.name or one.kind
    try:
        match one:
            case StandardOutputSink():
                return StandardOutput(name)
            case SyslogSink():
                context = client_context(one.ca_file, one.cert_file, one.key_file)
                return Syslog(name, one.host, one.port, context, node_name())
            case HttpSink():
                if not is_private(one.url):
                    raise SettingsInvalid(f"The audit sink {name} needs an https URL, or an http URL on this host.")
                return HttpReceiver(name, one.url, client_context(one.ca_file, None, None), _bearer(one.bearer_file))
    except OSError as error:
        raise SettingsInvalid(f"The certificates or the key of the audit sink {name} cannot be read.") from error


def _bearer(path: Path | None) -> Callable[[], SecretText | None]:
    if path is None:
        return lambda: None
    read_secret("bearer_file", path)
    return partial(read_secret, "bearer_file", path)


def _import_rules(settings: Settings) -> ImportRules:
    return ImportRules(settings.import_by_process, settings.import_oaep_sha1)


def _require_own_token(token: Token, tenants: TenantStore) -> None:
    """A database with instances belongs to the token that holds their keys, and no other may seal it."""
    for sealed in tenants.instances():
        try:
            token.verify_key(sealed.instance.sealing_key)
        except (KeyMaterialMissing, TokenUnavailable) as error:
            raise TokenRefused("This token does not hold the keys of this database. Is it the right token?") from error


@dataclass(frozen=True, slots=True)
class _Stores:
    keys: KeyStore
    tenants: TenantStore
    records: RecordStore
    jobs: JobStore
    registrations: RegistrationStore
    events: EventStore
    deliveries: DeliveryStore
    import_tokens: ImportTokenStore


def _services(
    settings: Settings,
    token: Token,
    database: Database,
    stores: _Stores,
    grants: Grants,
    snapshot: Snapshot,
    bell: EventBell,
    trail: Trail,
    threads: ThreadPoolExecutor,
    lookups: ThreadPoolExecutor,
    material: Material,
    waits: Waits,
    clock: Clock,
) -> Services:
    any_region = settings.allow_authorizations_across_regions
    rights = RightsWriter(stores.records, grants, token.mac, snapshot, clock)
    account = AccountRecords(grants, snapshot)
    verifier = TokenVerifier(grants, settings.issuer, clock)
    outside = [
        OutsideIssuer(IssuerSettings(one.issuer, one.audience, one.ca_file, one.keys_max_age_s), clock)
        for one in settings.oidc_issuers
    ]
    access = KeyAccess(stores.keys, stores.tenants, snapshot, clock)
    instance_policies = InstancePolicyService(grants, rights, access, snapshot, clock)
    rules = _import_rules(settings)
    imports = ImportService(token, stores.import_tokens, instance_policies, material, access, trail, rules, clock)
    lifecycle = LifecycleService(token, stores.keys, access, waits, clock)
    callers = Callers(grants, verifier, outside, clock)
    tokens = TokenService(token, grants, rights, stores.records, snapshot, callers, verifier, Throttle(), clock)
    return Services(
        keys=KeyService(token, stores.keys, access, instance_policies, imports, material, waits, clock),
        imports=imports,
        adoption=AdoptionService(token, stores.keys, access, instance_policies, imports, material, clock),
        instance_policies=instance_policies,
        lifecycle=lifecycle,
        aliases=AliasService(stores.keys, access, clock),
        key_policies=KeyPolicyService(stores.keys, access, clock),
        registrations=RegistrationService(stores.registrations, access, clock),
        events=EventService(stores.events, access, clock),
        bell=bell,
        key_rings=KeyRingService(stores.tenants, snapshot, clock),
        crypto=CryptoService(token, snapshot, clock, threads, lookups),
        tokens=tokens,
        identities=IdentityService(grants, account, rights, clock),
        api_keys=ApiKeyService(token, grants, account, rights, stores.records, clock),
        groups=GroupService(grants, account, rights, clock),
        policies=PolicyService(grants, account, rights, snapshot, clock, any_region=any_region),
        instances=InstanceService(stores.tenants, stores.keys, material, token.mac, snapshot, clock),
        health=HealthService(token, database, snapshot, trail),
        snapshot=snapshot,
        trail=trail,
        places=ChangePlaces(),
        gate=Gate(
            snapshot,
            callers,
            grants.restrictions,
            RequestLimit("identity", settings.identity_requests_per_s, settings.identity_burst_requests),
            RequestLimit("instance", settings.instance_requests_per_s, settings.instance_burst_requests),
            lookups,
        ),
        jobs=JobService(stores.jobs, stores.keys, stores.events, material, lifecycle, snapshot, trail, waits, clock),
        webhooks=WebhookService(grants, rights, snapshot, stores.events, stores.deliveries, tokens, clock),
        waits=waits,
        clock=clock,
        base_url=settings.base_url,
    )


def backup_of(rooms: Rooms) -> BackupService:
    """What makes backups of open rooms."""
    return BackupService(
        rooms.token,
        rooms.database,
        rooms.services.tokens,
        rooms.heads,
        rooms.audit_directory,
        audit_public_key_of(rooms.token),
        rooms.services.clock,
    )


def pin_of(settings: Settings) -> Pins:
    """The PINs from files or environment; `Pins.of` refuses to give one that is not set. Raises SettingsInvalid."""
    found = {PRIMARY: settings.read_pin(), STANDBY: settings.read_standby_pin()}
    return Pins({part: pin for part, pin in found.items() if pin is not None})
