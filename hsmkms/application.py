"""What a worker process has beside its rooms: the application over them, and the jobs."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import fields
from http import HTTPStatus
from inspect import isfunction
from typing import Final

from starlette.types import ASGIApp

from hsmkms.api.app import create_app
from hsmkms.api.closed import create_closed_app
from hsmkms.api.hot import ACTIONS as HOT_ACTIONS
from hsmkms.api.observed import AccessLog, Traced
from hsmkms.api.problems import status_of
from hsmkms.api.services import Services
from hsmkms.api.warm import WarmPath
from hsmkms.audit.journal import Journal
from hsmkms.clock import system_clock
from hsmkms.domain.waits import Waits
from hsmkms.iam.callers import Callers
from hsmkms.jobs.runner import Job, JobRunner
from hsmkms.opening import Pins
from hsmkms.service.bell import EventBell
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.trail import Trail
from hsmkms.settings import Settings
from hsmkms.store.engine import Database
from hsmkms.telemetry import logs, metrics
from hsmkms.token.room import Token
from hsmkms.wiring import Rooms, open_rooms

_TRACED_OF_TOKEN: Final = (
    "check",
    "create_key",
    "destroy_key",
    "generate_key",
    "mac",
    "open",
    "random",
    "seal",
    "sign",
)


def open_worker(settings: Settings, pins: Pins, journal: Journal) -> Rooms:
    """The rooms of one worker process, its jobs running. Raises as `open_rooms`."""
    rooms = open_rooms(settings, pins, migrate=True, serves=True, stays=True, journal=journal)
    with ExitStack() as stack:
        stack.push(rooms.close)
        rooms.deployment.require_founded()
        # From here on the token has a canary in this process, and so the breaker something that can close it.
        rooms.services.health.readiness()
        metrics.bind({action.value: HTTPStatus.OK for action in HOT_ACTIONS.values()})
        rooms.close.callback(metrics.Reporter(rooms.gauges).close)
        for runner in _runners(rooms.services, f"{socket.gethostname()[:40]}-{os.getpid()}"):
            rooms.close.callback(runner.stop)
            runner.start()
        stack.pop_all()
    return rooms


def application_of(rooms: Rooms, settings: Settings) -> tuple[ASGIApp, WarmPath | None]:
    """The application over open rooms, and its short way; there is none where something looks at every request."""
    services = rooms.services
    app = create_app(services)
    if settings.otlp_endpoint is not None:
        app = _traced(app, settings, settings.otlp_endpoint, rooms)
    if settings.access_log:
        app = AccessLog(app)
    watched = settings.otlp_endpoint is not None or settings.access_log
    return app, None if watched else WarmPath(
        services.crypto, services.tokens, services.gate, services.trail, services.clock
    )


def closed_application_of(journal: Journal) -> ASGIApp:
    """The application of a process that waits for its rooms; it records what it refuses."""
    return create_closed_app(Trail(journal, lambda _: None, lambda *_: None, Waits(), system_clock, status_of))


def _traced(app: ASGIApp, settings: Settings, endpoint: str, rooms: Rooms) -> ASGIApp:
    """The application in traces. What makes them is imported only here: it takes memory and a third of a second."""
    from hsmkms.telemetry.tracing import Tracing, with_trace_id

    tracing = Tracing(endpoint, settings.trace_ratio, f"{socket.gethostname()}-{os.getpid()}")
    rooms.close.callback(tracing.close)
    logs.configure(settings.log_format, settings.log_level, with_trace_id)
    tracing.instrument("iam", Callers, ("known", "resolve"))
    tracing.instrument("token", Token, _TRACED_OF_TOKEN)
    tracing.instrument("store", Database, ("read", "write"))
    tracing.instrument("audit", Journal, ("record", "record_blocking"))
    for field in fields(rooms.services):
        service = type(getattr(rooms.services, field.name))
        if service.__module__.startswith("hsmkms.service.") and service not in (Snapshot, EventBell, Trail):
            use_cases = [name for name, one in vars(service).items() if isfunction(one) and not name.startswith("_")]
            tracing.instrument(f"service.{field.name}", service, use_cases)
    return Traced(app, tracing.request)


def _runners(services: Services, holder: str) -> list[JobRunner]:
    """The jobs of a process. Webhooks have a lease of their own: a receiver that hangs must not keep a key from its
    rotation."""
    jobs, webhooks = services.jobs, services.webhooks
    by_lease: dict[str, tuple[float, dict[str, Job]]] = {
        "jobs": (
            5.0,
            {
                "expiry": jobs.expire_due,
                "rotation": jobs.rotate_due,
                "purge": jobs.purge_due,
                "events": jobs.forget_events,
                "overdue": jobs.tell_overdue,
                "import_tokens": services.imports.expire_due,
            },
        ),
        "webhooks": (1.0, {"webhooks": webhooks.deliver_due}),
    }
    return [JobRunner(name, work, period_s, jobs, holder, system_clock) for name, (period_s, work) in by_lease.items()]
