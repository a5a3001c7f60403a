"""Is the service ready: does the token wrap and unwrap, does the database answer."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkms.errors import Unavailable
from hsmkms.store.engine import Database
from hsmkms.token.room import Token


@dataclass(frozen=True, slots=True)
class Readiness:
    """True for each part that answers."""

    token: bool
    database: bool

    @property
    def ready(self) -> bool:
        """True if every part answers."""
        return self.token and self.database


class HealthService:
    """Asked by load balancers, so without a caller; the answer names no tenant."""

    def __init__(self, token: Token, database: Database) -> None:
        self._token = token
        self._database = database

    def readiness(self) -> Readiness:
        """Ask both parts now."""
        token = database = True
        try:
            self._token.check()
        except Unavailable:
            token = False
        try:
            self._database.check()
        except Unavailable:
            database = False
        return Readiness(token, database)
