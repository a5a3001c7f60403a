"""Builds the rooms of one process in order, and closes them in reverse."""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import structlog
from starlette.types import ASGIApp

from hsmkms.api.app import create_app
from hsmkms.api.cold import Services
from hsmkms.clock import system_clock
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import SettingsInvalid, StoreRefused
from hsmkms.iam.bearer import BearerVerifier
from hsmkms.service.crypto import CryptoService
from hsmkms.service.deployment import Deployment
from hsmkms.service.doctor import Doctor
from hsmkms.service.health import HealthService
from hsmkms.service.key_rings import KeyRingService
from hsmkms.service.keys import KeyService
from hsmkms.service.material import Material
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.tokens import TokenService
from hsmkms.settings import Settings, load
from hsmkms.store.changes import changes_since
from hsmkms.store.engine import Database
from hsmkms.store.keys import KeyStore
from hsmkms.store.tenants import TenantStore
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything of one process. `close` ends it in reverse order of building."""

    services: Services
    deployment: Deployment
    doctor: Doctor
    token: Token
    tenants: TenantStore
    keys: KeyStore
    close: ExitStack


def configure_logs() -> None:
    """One JSON line an event, on standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def address_of(settings: Settings) -> TokenAddress:
    """The token that the settings name. Also points SoftHSM at its configuration file."""
    if settings.softhsm2_conf is not None:
        os.environ["SOFTHSM2_CONF"] = str(settings.softhsm2_conf)
    if settings.token_label is None and settings.token_serial is None:
        raise SettingsInvalid("Set token_label or token_serial: slot numbers move, so they cannot name a token.")
    return TokenAddress(settings.pkcs11_module, settings.token_label, settings.token_serial)


def open_rooms(settings: Settings, pin: SecretText, *, migrate: bool = False) -> Rooms:
    """Token, store, services; with `migrate` the schema is brought to this version's revision first.

    Raises OperatorError or Unavailable with everything closed again.
    """
    with ExitStack() as stack:
        pool = SessionPool(
            address_of(settings),
            pin,
            size=settings.sessions,
            wait_s=settings.session_wait_s,
            recycle_after=settings.recycle_after_objects,
        )
        stack.callback(pool.close)
        token = Token(pool)
        database = Database(settings.database)
        stack.callback(database.close)
        if migrate:
            database.migrate()
        elif database.revision() != database.newest_revision():
            raise StoreRefused("The database is not of this version. Run `hsmkms init` (new) or `hsmkms serve` (old).")
        keys, tenants = KeyStore(database), TenantStore(database)
        snapshot = Snapshot(keys.get, tenants.instances, partial(changes_since, database))
        snapshot.start()
        stack.callback(snapshot.stop)
        threads = ThreadPoolExecutor(max_workers=settings.sessions, thread_name_prefix="token")
        stack.callback(threads.shutdown)
        material = Material(token, keys, system_clock)
        services = Services(
            keys=KeyService(token, keys, tenants, snapshot, material, system_clock),
            key_rings=KeyRingService(tenants, snapshot, system_clock),
            crypto=CryptoService(token, snapshot, system_clock, threads),
            tokens=TokenService(token, tenants, settings.issuer, system_clock),
            health=HealthService(token, database),
            snapshot=snapshot,
            verifier=BearerVerifier(tenants.signing_keys, settings.issuer, system_clock),
            clock=system_clock,
        )
        return Rooms(
            services=services,
            deployment=Deployment(token, tenants, material, system_clock),
            doctor=Doctor(token, database, keys, material, system_clock),
            token=token,
            tenants=tenants,
            keys=keys,
            close=stack.pop_all(),
        )


def pin_of(settings: Settings) -> SecretText:
    """The PIN from file or environment. Raises SettingsInvalid when neither is set."""
    pin = settings.read_pin()
    if pin is None:
        raise SettingsInvalid("The token's PIN is not known. Set pin_file or HSMKMS_PIN.")
    return pin


def worker() -> ASGIApp:
    """One worker's application; uvicorn calls this in each process."""
    configure_logs()
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    rooms.deployment.require_founded()
    return create_app(rooms.services, rooms.close.close)
