"""The application of a process whose rooms are not open: the same calls, each refused with 503 and recorded."""

from __future__ import annotations

from typing import NoReturn, cast

from starlette.types import ASGIApp

from hsmkms.api.app import create_app
from hsmkms.api.services import Services
from hsmkms.errors import NotOpen
from hsmkms.service.trail import Trail


class _Closed:
    """A room: nothing of it is there."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotOpen


class _ClosedRooms(_Closed):
    """All rooms but the trail. Those that are asked for before the first request are there, and closed."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.crypto = self.gate = _Closed()


def create_closed_app(trail: Trail) -> ASGIApp:
    """Raises nothing: what it cannot record it answers with 503 as well."""
    return create_app(cast(Services, _ClosedRooms(trail)))
