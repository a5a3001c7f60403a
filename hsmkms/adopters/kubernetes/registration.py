"""Keeps the cluster registered with its root key, so that the key is not deleted by mistake, and answers its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from hsmkms.adopters.client import (
    AdopterError,
    AdopterKeyState,
    Event,
    KeyRefused,
    KeyServiceClient,
    KeyState,
)
from hsmkms.adopters.core.notices import Notices
from hsmkms.adopters.kubernetes.health import Condition, Verdict

_CALL_S: Final = 2.0
_REGISTER_EVERY_S: Final = 3600.0
_AGAIN_S: Final = 60.0
_GONE: Final = {
    KeyState.SUSPENDED: AdopterKeyState.DEK_DISABLED,
    KeyState.DESTROYED: AdopterKeyState.DEK_DELETED,
}

_log = structlog.get_logger(__name__)


class Registration:
    """One cluster's, of one root key. One thread uses it.

    Every control-plane node's plugin does the same; saying a thing twice is no error.
    """

    def __init__(
        self,
        client: KeyServiceClient,
        root_key: str,
        cluster_crn: str,
        *,
        prevent_deletion: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._root_key, self._crn = client.within(_CALL_S), root_key, cluster_crn
        self._prevent_deletion, self._monotonic = prevent_deletion, monotonic
        self._notices = Notices(self._client, root_key, cluster_crn)
        self._version: str | None = None
        self._register_at = 0.0
        self.registered = False

    def take(self, events: Iterable[Event]) -> None:
        """Note what has to be acknowledged."""
        self._notices.take(events)

    def follow(self, verdict: Verdict) -> None:
        """Say what the plugin came to: registered, under which version it encrypts, what it did about events."""
        try:
            if verdict.condition is Condition.HEALTHY and verdict.key_id is not None:
                self._register(verdict.key_id.version)
                self._notices.acknowledge(AdopterKeyState.DEK_ENABLED, verdict.key_id.version)
            elif verdict.condition is Condition.REFUSED and verdict.key_state in _GONE:
                self._notices.acknowledge(_GONE[verdict.key_state], None)
        except AdopterError as away:
            _log.warning("the key service was not told", resource=self._crn, reason=away.message)

    def _register(self, version: str) -> None:
        """Now and then again: somebody may have taken the registration away."""
        now = self._monotonic()
        try:
            if now >= self._register_at:
                self._client.register(
                    self._root_key,
                    self._crn,
                    prevent_deletion=self._prevent_deletion,
                    description="hsmkms kubernetes-plugin",
                )
                if not self.registered:
                    _log.info("cluster registered", resource=self._crn, root_key=self._root_key)
                self.registered, self._register_at, self._version = True, now + _REGISTER_EVERY_S, None
        except KeyRefused as refused:
            _log.error("the cluster is not registered with its root key", resource=self._crn, reason=refused.message)
            self.registered, self._register_at = False, now + _AGAIN_S
        if self.registered and self._version != version:
            self._tell_version(version)

    def _tell_version(self, version: str) -> None:
        try:
            self._client.registered_version(self._root_key, self._crn, version)
        except KeyRefused as refused:
            if refused.reason_code == "REGISTRATION_NOT_FOUND_ERR":
                self._register_at = 0.0
                return
            # Such as an older version than another node's plugin has told already.
            _log.warning("the registration does not show the key version", reason=refused.message)
        self._version = version
