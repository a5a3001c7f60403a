"""Which tokens this deployment's are: their serial numbers, in records that only their own keys can seal.

A token of other keys cannot seal these records, so it is noticed without them (`deployment.require_founded`). They
notice the one that has the keys and is another all the same: a copy or a restored backup that was put in its place.
"""

from __future__ import annotations

import structlog

from hsmkms.clock import Clock
from hsmkms.domain.known_tokens import KnownToken
from hsmkms.errors import TokenRefused
from hsmkms.iam.grants import Grants
from hsmkms.service.rights import Insert, RightsWriter
from hsmkms.token.room import Token

_log = structlog.get_logger(__name__)


class KnownTokens:
    """For the operator and the start of a process."""

    def __init__(self, token: Token, grants: Grants, rights: RightsWriter, clock: Clock) -> None:
        self._token = token
        self._grants = grants
        self._rights = rights
        self._clock = clock

    def require(self) -> None:
        """Have tokens refused that are not known, now and whenever they are opened. Raises TokenRefused, Unavailable.

        A deployment of an older version knows none; then its tokens are accepted as they are.
        """
        known = frozenset(one.id for one in self._grants.about(KnownToken))
        if not known:
            self.accept()
            return
        for part, token in self._token.parts.items():
            try:
                token.expect(known)
            except TokenRefused as error:
                if part == "primary":
                    raise
                # The primary serves alone.
                token.refuse()
                _log.critical("the standby is refused", reason=error.message)

    def accept(self) -> list[str]:
        """Remember the tokens that are open and have the same keys; the serials that were new. Raises Unavailable."""
        known = {one.id for one in self._grants.about(KnownToken)}
        infos = {token.info.serial: token.info for token in self._token.parts.values() if token.is_usable}
        new = [info for serial, info in infos.items() if serial not in known]
        now = self._clock()
        self._rights.commit("", [Insert(KnownToken(id=info.serial, label=info.label, accepted_at=now)) for info in new])
        return [info.serial for info in new]
