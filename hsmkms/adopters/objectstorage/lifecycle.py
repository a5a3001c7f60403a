"""Buckets under root keys are made, given a retention policy, and deleted."""

from __future__ import annotations

import copy
import threading
from typing import Any, Final

import eventlet
from swift.common.http import is_success
from swift.common.swob import HTTPBadRequest, HTTPConflict, HTTPForbidden, Request, wsgi_to_str

from hsmkms.adopters.client import AdopterError, ConnectionInvalid, KeyServiceAway
from hsmkms.adopters.core.dek_file import DekFileInvalid
from hsmkms.adopters.objectstorage.bucket import MARK, BucketDeks, header_of, is_subsidiary, segments_of
from hsmkms.adopters.objectstorage.configuration import Account
from hsmkms.adopters.objectstorage.deks import DekCache
from hsmkms.adopters.objectstorage.metadata import Metadata, stored
from hsmkms.adopters.objectstorage.provisioning import KeyNotFound, KeyNotUsable, Provisioner
from hsmkms.adopters.objectstorage.refusals import refusal, unavailable
from hsmkms.adopters.objectstorage.retention import POLICY

_LOCKS: Final = 64
VERSIONED: Final = "X-Container-Sysmeta-Versions-Enabled"
"""Swift's own, by which a bucket keeps old versions."""
_EITHER: Final = "A bucket has a retention policy or versions, not both."
AWAY: Final = "The key service does not answer. Try again."


class Lifecycle:
    """Each method answers a request with a response of Swift's. Raises HTTPException."""

    def __init__(self, app: Any, metadata: Metadata, provisioner: Provisioner, cache: DekCache, logger: Any) -> None:
        self._app, self._metadata, self._provisioner = app, metadata, provisioner
        self._cache, self._logger = cache, logger
        self._changing = [threading.Lock() for _ in range(_LOCKS)]

    def create(self, request: Any, account: Account, container: str) -> Any:
        """Make a bucket, under a root key if one is asked for or is the default."""
        wanted = wanted_key(request)
        if is_subsidiary(container):
            if wanted is not None:
                raise refusal(request, HTTPBadRequest, "A container of parts has the key of its bucket.")
            if self._metadata.deks(request, account, container) is not None:
                request.headers[MARK] = "true"
            return request.get_response(self._app)
        _authorize(request)
        with self._lock(account, container):
            key_crn = wanted or account.default_key
            if key_crn is None or self._metadata.newest(request, account, container) is not None:
                # Of a bucket that there is Swift would store the headers of this call.
                return request.get_response(self._app)
            return self._create_under(request, account, container, key_crn)

    def retain(self, request: Any, account: Account, container: str) -> Any:
        """Store a retention policy; from now on the root key cannot be deleted."""
        _authorize(request)
        if VERSIONED.lower().removeprefix("x-container-sysmeta-") in (
            self._metadata.newest(request, account, container) or {}
        ):
            raise refusal(request, HTTPBadRequest, _EITHER)
        deks = self._metadata.deks(request, account, container)
        try:
            for dek in () if deks is None else deks.deks:
                self._provisioner.keep_key(account, dek)
        except (KeyServiceAway, ConnectionInvalid) as away:
            self._logger.warning("%s", away.message)
            raise unavailable(request, AWAY) from away
        except AdopterError as refused:
            raise refusal(request, HTTPForbidden, refused.message) from refused
        return request.get_response(self._app)

    def version(self, request: Any, account: Account, container: str) -> Any:
        """Begin to keep old versions."""
        if self._metadata.retention(request, account, container) is not None:
            raise refusal(request, HTTPBadRequest, _EITHER)
        return request.get_response(self._app)

    def delete(self, request: Any, account: Account, container: str) -> Any:
        """Delete a bucket, then its registration."""
        if is_subsidiary(container):
            return request.get_response(self._app)
        _authorize(request)
        with self._lock(account, container):
            # What is damaged can be deleted too; the follower ends its registration.
            deks = _readable(account, container, self._metadata.newest(request, account, container) or {})
            segments = segments_of(container)
            if deks is not None and self._metadata.holds_objects(request, account, segments):
                raise refusal(request, HTTPConflict, f"Empty {segments} first: its objects need the bucket's DEK.")
            response = request.get_response(self._app)
        if deks is not None and is_success(response.status_int):
            # The bucket is gone whether or not the key service answers now.
            eventlet.spawn_n(self._after_delete, copy.copy(request.environ), account, container, deks)
        return response

    def _create_under(self, request: Any, account: Account, bucket: str, key_crn: str) -> Any:
        try:
            dek, secret = self._provisioner.make(account, bucket, key_crn)
        except (KeyNotFound, KeyNotUsable) as refused:
            raise refusal(request, HTTPBadRequest, refused.message) from refused
        except (KeyServiceAway, ConnectionInvalid) as away:
            self._logger.warning("%s", away.message)
            raise unavailable(request, AWAY) from away
        name, value = header_of(dek)
        request.headers[name] = value
        response = request.get_response(self._app)
        if not is_success(response.status_int):
            eventlet.spawn_n(self._provisioner.withdraw, account, dek)
            return response
        self._cache.put(dek.dek_id, secret)
        deks = stored(request, account, bucket, self._metadata.newest(request, account, bucket) or {})
        if deks is not None and deks.active.dek_id != dek.dek_id:
            # Another process made the bucket at the same moment, and its key is the one that counts.
            response.status_int = 202
        return response

    def _after_delete(self, env: dict[str, Any], account: Account, bucket: str, deks: BucketDeks) -> None:
        request = Request(env)
        with self._lock(account, bucket):
            again = _readable(account, bucket, self._metadata.newest(request, account, bucket) or {})
            kept = {dek.key_crn for dek in again.deks} if again is not None else set()
            for dek in deks.deks:
                # A bucket of this name that was made since has a registration of the same name.
                if dek.key_crn not in kept:
                    self._provisioner.withdraw(account, dek)

    def _lock(self, account: Account, bucket: str) -> threading.Lock:
        return self._changing[hash((account.name, bucket)) % _LOCKS]


def is_policy(request: Any) -> bool:
    """Whether a request stores a retention policy."""
    return POLICY in request.headers


def wanted_key(request: Any) -> str | None:
    """The root key that a call which makes a bucket names. Raises HTTPException when it does so by half."""
    algorithm = request.headers.get("ibm-sse-kp-encryption-algorithm")
    crn = request.headers.get("ibm-sse-kp-customer-root-key-crn")
    if algorithm is None and crn is None:
        return None
    if algorithm != "AES256":
        raise refusal(request, HTTPBadRequest, "ibm-sse-kp-encryption-algorithm has to be AES256.")
    if not crn:
        raise refusal(request, HTTPBadRequest, "ibm-sse-kp-customer-root-key-crn has to be the CRN of a root key.")
    return str(wsgi_to_str(crn))


def _authorize(request: Any) -> None:
    """May the caller do this? Asked before the key service is, and again by Swift."""
    authorize = request.environ.get("swift.authorize")
    denied = authorize(request) if authorize is not None else None
    if denied is not None:
        raise denied


def _readable(account: Account, bucket: str, sysmeta: dict[str, str]) -> BucketDeks | None:
    try:
        return BucketDeks.of(account, bucket, sysmeta)
    except DekFileInvalid:
        return None
