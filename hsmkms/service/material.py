"""Make a token object and commit its row, in an order that loses no key that a caller was told about.

    1  commit a pending row that names the version id
    2  generate the object, and prove it on every token that should hold it
    3  commit the real row and take the pending one away, in one transaction

After a crash a pending row says exactly which object nobody was told about; `doctor` settles it. An object that no row
and no pending row names was not left by a crash (perhaps the database is an old backup): it is never destroyed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from hsmkms.clock import Clock
from hsmkms.domain.events import EventType
from hsmkms.domain.ids import new_id
from hsmkms.domain.importing import is_transport_owner
from hsmkms.domain.keys import Key, KeyVersion, key_owner
from hsmkms.domain.tenants import PendingObject
from hsmkms.domain.waits import Waits
from hsmkms.errors import Refusal, Unavailable
from hsmkms.service.notices import notice_of
from hsmkms.store.import_tokens import ImportTokenStore
from hsmkms.store.keys import KeyStore
from hsmkms.token.room import Token

T = TypeVar("T")
Bring = Callable[[str, str, datetime], KeyVersion]
"""(version id, owner, now) → a new object on the token."""


class _NothingMade(Exception):
    """There is nothing to settle; the cause is why."""


class Material:
    """Root key material: token object first, then the row."""

    def __init__(
        self, token: Token, keys: KeyStore, import_tokens: ImportTokenStore, waits: Waits, clock: Clock
    ) -> None:
        self._token = token
        self._keys = keys
        self._import_tokens = import_tokens
        self._waits = waits
        self._clock = clock

    def while_possible(self, go_on: Callable[[], bool]) -> Callable[[], bool]:
        """The same question for work that would fail while a token is known to be away."""
        return lambda: not self._token.is_away and go_on()

    def make(self, owner: str, commit: Callable[[KeyVersion], T], bring: Bring | None = None) -> T:
        """Generate an object of `owner`, or have `bring` make it, then call `commit`, which must commit its row.

        Whatever either raises is raised here after the object was destroyed, unless its row was committed all the same.
        """
        produce = bring or self._token.generate_key

        def act(version_id: str, now: datetime) -> T:
            try:
                version = produce(version_id, owner, now)
            except Refusal as refusal:
                # What was brought did not fit, so there is no object. To look for it would open the token anew, and
                # nobody shall bring that about by sending rubbish.
                raise _NothingMade from refusal
            self._token.prove_key(version)
            return commit(version)

        try:
            return self.settled(owner, act)
        except _NothingMade as error:
            raise error.__cause__ or error from None

    def settled(self, owner: str, act: Callable[[str, datetime], T]) -> T:
        """Call `act` with a new id, under which it makes a token object of `owner` and commits its row."""
        pending = PendingObject(new_id(), owner, self._clock())
        self._keys.add_pending(pending)
        settled = False
        try:
            result = act(pending.version_id, pending.created_at)
            settled = True
            return result
        except _NothingMade:
            self._keys.remove_pending(pending.version_id)
            settled = True
            raise
        finally:
            if not settled:
                # What cannot be settled now stays pending, and `doctor` settles it.
                with contextlib.suppress(Unavailable):
                    self.settle(pending)

    def rotate(self, key: Key, bring: Bring | None = None) -> None:
        """Give a root key a new version. Raises StaleKey when somebody changed the key meanwhile."""

        def commit(version: KeyVersion) -> None:
            self._keys.rotate(key, version, notice_of(EventType.ROTATE, self._waits, version.created_at))

        self.make(key_owner(key.instance_id, key.id), commit, bring)

    def settle(self, pending: PendingObject) -> bool:
        """Resolve a pending object: keep it if a row names it, else destroy it. True if an object was destroyed."""
        destroyed = False
        if is_transport_owner(pending.purpose):
            if not self._import_tokens.has(pending.version_id):
                destroyed = self._token.destroy_transport_key(pending.version_id)
        elif not self._keys.has_version(pending.version_id):
            destroyed = self._token.destroy_key(pending.version_id)
        self._keys.remove_pending(pending.version_id)
        return destroyed
