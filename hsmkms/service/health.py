"""Is the service ready: does the token wrap and unwrap, does the database answer, can be recorded what happens."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkms.errors import Unavailable
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.trail import Trail
from hsmkms.store.engine import Database
from hsmkms.token.room import Token


@dataclass(frozen=True, slots=True)
class Readiness:
    """True for each part that answers."""

    token: bool
    database: bool
    audit: bool

    @property
    def ready(self) -> bool:
        """True if every part answers."""
        return self.token and self.database and self.audit


class HealthService:
    """Asked by load balancers, so without a caller; the answer names no tenant."""

    def __init__(self, token: Token, database: Database, snapshot: Snapshot, trail: Trail) -> None:
        self._token = token
        self._database = database
        self._snapshot = snapshot
        self._trail = trail

    def readiness(self) -> Readiness:
        """Ask token and database now; the journal tells how its last write went."""
        token = True
        try:
            self._token.check()
        except Unavailable:
            token = False
        # Asked for by the second, so nobody waits here for a database that others wait for already.
        database = self._snapshot.fresh
        try:
            if database:
                self._database.check()
        except Unavailable:
            database = False
        return Readiness(token, database, self._trail.writes)
