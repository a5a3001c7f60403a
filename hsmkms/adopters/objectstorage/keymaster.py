"""Swift's keymaster whose secrets are DEKs of buckets: a paste filter, to the left of `encryption`.

    [filter:keymaster]
    use = egg:hsmkms#keymaster
    config = /etc/hsmkms/objectstorage.toml

Swift derives the keys of objects from the secret by their path, and stores with each object the id of the secret. Here
the secret is the bucket's DEK and the id is the DEK's own, so neither a rotation nor a rewrap changes what is stored.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import eventlet
from swift.common.http import is_success
from swift.common.middleware.crypto.crypto_utils import CRYPTO_KEY_CALLBACK
from swift.common.middleware.crypto.keymaster import BaseKeyMaster, KeyMasterContext
from swift.common.swob import (
    HTTPBadRequest,
    HTTPConflict,
    HTTPException,
    HTTPForbidden,
    HTTPInternalServerError,
    HTTPServiceUnavailable,
    Request,
    str_to_wsgi,
    wsgi_to_str,
)
from swift.common.utils import get_logger
from swift.common.wsgi import make_pre_authed_request
from swift.proxy.controllers.base import get_account_info, get_container_info

from hsmkms.adopters.client import (
    AdopterError,
    CiphertextRefused,
    ConnectionInvalid,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
)
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core import memory
from hsmkms.adopters.core.dek_file import DekFileInvalid
from hsmkms.adopters.objectstorage import notes
from hsmkms.adopters.objectstorage.bucket import (
    MARK,
    BucketDeks,
    bucket_of,
    header_of,
    is_subsidiary,
    segments_of,
)
from hsmkms.adopters.objectstorage.configuration import Account, Configuration
from hsmkms.adopters.objectstorage.deks import DekCache
from hsmkms.adopters.objectstorage.provisioning import KeyNotFound, KeyNotUsable, Provisioner
from hsmkms.adopters.transport import Transport

StartResponse = Callable[..., Any]
_OVERRIDE: Final = "swift.crypto.override"
_META_VERSION: Final = "3"
_LOCKS: Final = 64
_RETRY_AFTER_S: Final = 5


class BucketKeyMaster(BaseKeyMaster):  # type: ignore[misc]  # Swift has no types
    """Gives each bucket its own root secret."""

    log_route = "hsmkms-keymaster"
    keymaster_opts = ()
    keymaster_conf_section = "hsmkms_keymaster"

    def __init__(self, app: Any, conf: dict[str, str]) -> None:
        # The base would ask for one secret of the whole cluster, which there is not.
        self.app = app
        self.logger = get_logger(conf, log_route=self.log_route)
        self.active_secret_id: str | None = None
        self.meta_version_to_write = _META_VERSION
        self._root_secrets: dict[str, bytes] = {}
        self._configuration = Configuration.read(Path(conf["config"]))
        self._provisioner = Provisioner(_connect, self.logger.warning)
        self._cache = DekCache(self._configuration.cache_s, self._configuration.away_limit_s, self.logger.warning)
        self._changing = [threading.Lock() for _ in range(_LOCKS)]
        if not memory.guard():
            self.logger.warning("DEKs may be swapped to disk: RLIMIT_MEMLOCK is too low to lock memory")

    def __call__(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request = Request(env)
        try:
            _, name, container, obj = (part and wsgi_to_str(part) for part in request.split_path(2, 4, True))
        except ValueError:
            return self._passed(env, start_response)
        account = self._configuration.accounts.get(name)
        try:
            if account is None:
                return self._elsewhere(request, container, start_response)
            _require_instance(request, account, container)
            if container is None:
                return self._passed(env, start_response)
            if obj is None and request.method == "PUT":
                return self._create(request, account, container)(env, start_response)
            if obj is None and request.method == "DELETE":
                return self._delete(request, account, container)(env, start_response)
            if request.method in ("GET", "HEAD", "PUT", "POST"):
                return self._keyed(request, account, container, obj, start_response)
            return self._passed(env, start_response)
        except HTTPException as refusal:
            return _wsgi(refusal(env, start_response))

    def _passed(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return _wsgi(self.app(env, start_response))

    def _elsewhere(self, request: Any, container: str | None, start_response: StartResponse) -> Iterable[bytes]:
        """An account that is not in the configuration: as if this filter were not there."""
        if container is not None and request.method == "PUT" and _wanted_key(request) is not None:
            raise _refusal(
                request, HTTPBadRequest, "This account has no key service: no bucket can be under a root key."
            )
        return self._unprotected(request.environ, start_response)

    def _unprotected(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Neither encrypt nor decrypt, unless a keymaster to the left of this one does."""
        if CRYPTO_KEY_CALLBACK not in env:
            env[_OVERRIDE] = True
        return self._passed(env, start_response)

    def _keyed(
        self, request: Any, account: Account, container: str, obj: str | None, start_response: StartResponse
    ) -> Iterable[bytes]:
        """A request to which the bucket's DEK may matter."""
        env = request.environ
        found = self._deks(request, account, container)
        if found is None:
            return self._unprotected(env, start_response)
        if obj is None and not is_subsidiary(container):
            notes.of(env).key_crn = found.active.key_crn
        if obj is None and request.method != "GET":
            return self._passed(env, start_response)
        try:
            bucket = self._of_bucket(request, account, found)
        except HTTPException as refusal:
            if refusal.status_int != 403 or not notes.of(env).deletes:
                raise
            return self._looked_at_to_delete(env, start_response)
        context = KeyMasterContext(bucket, account.name, container, obj, _META_VERSION)
        return _wsgi(context.handle_request(request, start_response))

    def _looked_at_to_delete(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """What is read in order to delete it need not be decrypted: data without a key can still be thrown away."""

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            # The list of a large object's parts cannot be read, so it is deleted as any other object; the parts go
            # when the bucket goes.
            kept = [header for header in headers if header[0].lower() != "x-static-large-object"]
            return start_response(status, kept, exc_info)

        # Past `encryption`, which cannot show a listing as it is stored.
        return _wsgi(self._pipeline_final_app(env, start))

    def _of_bucket(self, request: Any, account: Account, deks: BucketDeks) -> BucketKeyMaster:
        """This keymaster with the secrets of one bucket. Raises HTTPException."""
        secrets = {}
        for dek in deks.deks:
            try:
                secret = self._cache.get(dek.dek_id, lambda dek=dek: self._provisioner.open(account, dek))  # type: ignore[misc]
            except KeyRefused as refused:
                raise _refusal(request, HTTPForbidden, refused.message) from refused
            except CiphertextRefused as refused:
                self.logger.error("%s: %s", dek.resource_crn, refused.message)
                raise _refusal(request, HTTPInternalServerError, refused.message) from refused
            except (KeyServiceAway, ConnectionInvalid) as away:
                raise self._away(request, away) from away
            secrets[dek.dek_id] = secret.reveal()
        bucket = copy.copy(self)
        bucket._root_secrets, bucket.active_secret_id = secrets, deks.active.dek_id
        return bucket

    def _deks(self, request: Any, account: Account, container: str) -> BucketDeks | None:
        """The DEKs of the bucket that a container belongs to. Raises HTTPException when nobody knows."""
        bucket = bucket_of(container)
        deks = self._stored(request, account, bucket, self._info(request, account, bucket))
        if (
            deks is None
            and bucket != container
            and MARK.lower().removeprefix("x-container-sysmeta-") in self._info(request, account, container)
        ):
            raise _refusal(request, HTTPServiceUnavailable, f"The bucket {bucket} cannot be found at present.")
        return deks

    def _info(self, request: Any, account: Account, container: str) -> dict[str, str]:
        """System metadata of a container, as Swift caches them; none if there is no such container."""
        request.environ.setdefault("swift.infocache", {})
        env = {**request.environ, "PATH_INFO": _path(account, container)}
        info = get_container_info(env, self.app, swift_source="KMS")
        status = int(info["status"])
        if is_success(status):
            return dict(info["sysmeta"])
        if status == 404 or (not status and get_account_info(env, self.app, swift_source="KMS")["status"] == 404):
            return {}
        raise _refusal(request, HTTPServiceUnavailable, "The bucket's metadata cannot be read at present.")

    def _stored(self, request: Any, account: Account, bucket: str, sysmeta: dict[str, str]) -> BucketDeks | None:
        try:
            return BucketDeks.of(account, bucket, sysmeta)
        except DekFileInvalid as invalid:
            self.logger.error("%s", invalid.message)
            raise _refusal(request, HTTPInternalServerError, invalid.message) from invalid

    def _create(self, request: Any, account: Account, container: str) -> Any:
        """Make a bucket, under a root key if one is asked for or is the default."""
        wanted = _wanted_key(request)
        if is_subsidiary(container):
            if wanted is not None:
                raise _refusal(request, HTTPBadRequest, "A container of parts has the key of its bucket.")
            if self._deks(request, account, container) is not None:
                request.headers[MARK] = "true"
            return request.get_response(self.app)
        self._authorize(request)
        with self._lock(account, container):
            if self._newest(request, account, container) is not None:
                # Swift would store the headers of this call with the bucket that there is.
                return request.get_response(self.app)
            key_crn = wanted or account.default_key
            if key_crn is None:
                return request.get_response(self.app)
            return self._create_under(request, account, container, key_crn)

    def _create_under(self, request: Any, account: Account, bucket: str, key_crn: str) -> Any:
        try:
            dek, secret = self._provisioner.make(account, bucket, key_crn)
        except (KeyNotFound, KeyNotUsable) as refused:
            raise _refusal(request, HTTPBadRequest, refused.message) from refused
        except (KeyServiceAway, ConnectionInvalid) as away:
            raise self._away(request, away) from away
        name, value = header_of(dek)
        request.headers[name] = value
        response = request.get_response(self.app)
        if not is_success(response.status_int):
            eventlet.spawn_n(self._provisioner.withdraw, account, dek)
            return response
        self._cache.put(dek.dek_id, secret)
        sysmeta = self._newest(request, account, bucket)
        stored = None if sysmeta is None else self._stored(request, account, bucket, sysmeta)
        if stored is not None and stored.active.dek_id != dek.dek_id:
            # Another call made the bucket at the same moment, and its key is the one that counts.
            response.status_int = 202
        return response

    def _delete(self, request: Any, account: Account, container: str) -> Any:
        """Delete a bucket, then its registration."""
        if is_subsidiary(container):
            return request.get_response(self.app)
        self._authorize(request)
        with self._lock(account, container):
            sysmeta = self._newest(request, account, container)
            # What is damaged can be deleted too; the follower ends its registration.
            deks = _readable(account, container, sysmeta or {})
            if deks is not None and self._holds_objects(request, account, segments_of(container)):
                raise _refusal(request, HTTPConflict, f"Empty {segments_of(container)} first: its DEK is the bucket's.")
            response = request.get_response(self.app)
        if deks is not None and is_success(response.status_int):
            eventlet.spawn_n(self._after_delete, copy.copy(request.environ), account, container, deks)
        return response

    def _after_delete(self, env: dict[str, Any], account: Account, bucket: str, deks: BucketDeks) -> None:
        request = Request(env)
        with self._lock(account, bucket):
            again = _readable(account, bucket, self._newest(request, account, bucket) or {})
            kept = {dek.key_crn for dek in again.deks} if again is not None else set()
            for dek in deks.deks:
                # A bucket of this name that was made since has a registration of the same name.
                if dek.key_crn not in kept:
                    self._provisioner.withdraw(account, dek)

    def _newest(self, request: Any, account: Account, container: str) -> dict[str, str] | None:
        """System metadata of a container as all its replicas know it, past every cache; None if it does not exist."""
        headers = self._head(request, account, container)
        if headers is None:
            return None
        prefix = "x-container-sysmeta-"
        return {
            name.lower().removeprefix(prefix): value
            for name, value in headers.items()
            if name.lower().startswith(prefix)
        }

    def _holds_objects(self, request: Any, account: Account, container: str) -> bool:
        headers = self._head(request, account, container)
        return headers is not None and headers.get("X-Container-Object-Count") != "0"

    def _head(self, request: Any, account: Account, container: str) -> Any:
        """A container's headers, past every cache, or None."""
        path = quote(f"/v1/{account.name}/{container}")
        head = make_pre_authed_request(request.environ, "HEAD", path, headers={"X-Newest": "true"}, swift_source="KMS")
        head.environ.pop("swift.infocache", None)
        response = head.get_response(self.app)
        if response.status_int == 404:
            return None
        if not is_success(response.status_int):
            raise _refusal(request, HTTPServiceUnavailable, "The bucket's metadata cannot be read at present.")
        return response.headers

    def _authorize(self, request: Any) -> None:
        """May the caller do this? Asked before the key service is, and again by Swift."""
        authorize = request.environ.get("swift.authorize")
        denied = authorize(request) if authorize is not None else None
        if denied is not None:
            raise denied

    def _lock(self, account: Account, bucket: str) -> threading.Lock:
        return self._changing[hash((account.name, bucket)) % _LOCKS]

    def _away(self, request: Any, away: AdopterError) -> HTTPException:
        self.logger.warning("%s", away.message)
        refusal = _refusal(request, HTTPServiceUnavailable, "The key service does not answer. Try again.")
        refusal.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return refusal


def _require_instance(request: Any, account: Account, container: str | None) -> None:
    """IBM's clients say in which instance they make and list buckets; it has to be that of this account."""
    told = request.headers.get("ibm-service-instance-id")
    if told and told not in (account.instance_id, account.crn) and (container is None or request.method == "PUT"):
        raise _refusal(request, HTTPForbidden, "ibm-service-instance-id is not the instance of this account.")


def _wanted_key(request: Any) -> str | None:
    """The root key that a call which makes a bucket names. Raises HTTPBadRequest when it does so by half."""
    algorithm = request.headers.get("ibm-sse-kp-encryption-algorithm")
    crn = request.headers.get("ibm-sse-kp-customer-root-key-crn")
    if algorithm is None and crn is None:
        return None
    if algorithm != "AES256":
        raise _refusal(request, HTTPBadRequest, "ibm-sse-kp-encryption-algorithm has to be AES256.")
    if not crn:
        raise _refusal(request, HTTPBadRequest, "ibm-sse-kp-customer-root-key-crn has to be the CRN of a root key.")
    return wsgi_to_str(crn)


def _refusal(request: Any, kind: Callable[..., Any], words: str) -> Any:
    """A refusal with its reason, which also stands where the S3 filter finds it: S3's own errors have no room for it."""
    notes.of(request.environ).refusal = words
    return kind(body=words, request=request, content_type="text/plain")


def _readable(account: Account, bucket: str, sysmeta: dict[str, str]) -> BucketDeks | None:
    try:
        return BucketDeks.of(account, bucket, sysmeta)
    except DekFileInvalid:
        return None


def _path(account: Account, container: str) -> str:
    return str(str_to_wsgi(f"/v1/{account.name}/{container}"))


def _connect(connection: Connection) -> KeyServiceClient:
    # Swift patches sockets and locks to be green, but not time.
    return KeyServiceClient(connection, Transport(connection, sleep=eventlet.sleep))


def _wsgi(body: Any) -> Iterable[bytes]:
    return body  # type: ignore[no-any-return]


def filter_factory(global_conf: dict[str, str], **local_conf: str) -> Callable[[Any], BucketKeyMaster]:
    """The paste filter `egg:hsmkms#keymaster`."""
    conf = {**global_conf, **local_conf}
    return lambda app: BucketKeyMaster(app, conf)
