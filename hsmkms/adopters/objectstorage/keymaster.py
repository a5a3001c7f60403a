"""Swift's keymaster whose secrets are DEKs of buckets: a paste filter, to the left of `encryption`.

    [filter:keymaster]
    use = egg:hsmkms#keymaster
    config = /etc/hsmkms/objectstorage.toml

Swift derives the keys of objects from the secret by their path, and stores with each object the id of the secret. Here
the secret is the bucket's DEK and the id is the DEK's own, so neither a rotation nor a rewrap changes what is stored.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import eventlet
from swift.common.middleware.crypto.crypto_utils import CRYPTO_KEY_CALLBACK
from swift.common.middleware.crypto.keymaster import BaseKeyMaster, KeyMasterContext
from swift.common.swob import (
    HTTPBadRequest,
    HTTPException,
    HTTPForbidden,
    HTTPInternalServerError,
    Request,
    wsgi_to_str,
)
from swift.common.utils import config_true_value, get_logger

from hsmkms.adopters.client import (
    CiphertextRefused,
    ConnectionInvalid,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
)
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core import memory
from hsmkms.adopters.objectstorage import notes
from hsmkms.adopters.objectstorage.bucket import BucketDeks, bucket_of, is_subsidiary, part_of
from hsmkms.adopters.objectstorage.configuration import Account, Configuration
from hsmkms.adopters.objectstorage.deks import DekCache
from hsmkms.adopters.objectstorage.lifecycle import AWAY, VERSIONED, Lifecycle, is_policy, wanted_key
from hsmkms.adopters.objectstorage.metadata import OVERRIDE, Metadata
from hsmkms.adopters.objectstorage.provisioning import Provisioner
from hsmkms.adopters.objectstorage.refusals import refusal, unavailable
from hsmkms.adopters.objectstorage.retention import RETAINED_UNTIL, RetentionRefused
from hsmkms.adopters.transport import Transport

StartResponse = Callable[..., Any]
_META_VERSION: Final = "3"
_EXPIRING: Final = ("X-Delete-At", "X-Delete-After")


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
        warn = self.logger.warning
        self._cache = DekCache(self._configuration.cache_s, self._configuration.away_limit_s, warn)
        self._provisioner = Provisioner(_connect, warn)
        self._metadata = Metadata(app)
        self._lifecycle = Lifecycle(app, self._metadata, self._provisioner, self._cache, self.logger)
        if not memory.guard():
            warn("DEKs may be swapped to disk: RLIMIT_MEMLOCK is too low to lock memory")

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
            if obj is None:
                return self._container(request, account, container, start_response)
            return self._object(request, account, container, obj, start_response)
        except HTTPException as refused:
            answer: Iterable[bytes] = refused(env, start_response)
            return answer

    def _elsewhere(self, request: Any, container: str | None, start_response: StartResponse) -> Iterable[bytes]:
        """An account that is not in the configuration: as if this filter were not there."""
        if container is not None and request.method == "PUT" and wanted_key(request) is not None:
            words = "This account has no key service: no bucket can be under a root key."
            raise refusal(request, HTTPBadRequest, words)
        if is_policy(request):
            raise refusal(request, HTTPBadRequest, "Nothing keeps objects in this account.")
        return self._unprotected(request.environ, start_response)

    def _container(
        self, request: Any, account: Account, container: str, start_response: StartResponse
    ) -> Iterable[bytes]:
        act = {"PUT": self._lifecycle.create, "DELETE": self._lifecycle.delete}.get(request.method)
        if request.method == "POST" and is_policy(request):
            act = self._lifecycle.retain
        elif request.method == "POST" and config_true_value(request.headers.get(VERSIONED, "")):
            act = self._lifecycle.version
        if act is not None:
            answer: Iterable[bytes] = act(request, account, container)(request.environ, start_response)
            return answer
        if request.method == "GET":
            # The ETags in a listing are encrypted.
            return self._keyed(request, account, container, None, start_response)
        if request.method == "HEAD":
            try:
                self._deks(request, account, container)
            except HTTPException as refused:
                self._require_deletion(request, refused)
        return self._passed(request.environ, start_response)

    def _object(
        self, request: Any, account: Account, container: str, obj: str, start_response: StartResponse
    ) -> Iterable[bytes]:
        if request.method in ("PUT", "POST", "DELETE") or notes.of(request.environ).deletes:
            self._heed_retention(request, account, container, obj)
        if request.method not in ("GET", "HEAD", "PUT", "POST"):
            return self._passed(request.environ, start_response)
        return self._keyed(request, account, container, obj, start_response)

    def _keyed(
        self, request: Any, account: Account, container: str, obj: str | None, start_response: StartResponse
    ) -> Iterable[bytes]:
        """A request that needs the bucket's DEK, if it has one."""
        try:
            deks = self._deks(request, account, container)
            bucket = None if deks is None else self._of_bucket(request, account, deks)
        except HTTPException as refused:
            self._require_deletion(request, refused)
            return self._looked_at_to_delete(request.environ, start_response)
        if bucket is None:
            return self._unprotected(request.environ, start_response)
        context = KeyMasterContext(bucket, account.name, container, obj, _META_VERSION)
        answer: Iterable[bytes] = context.handle_request(request, start_response)
        return answer

    def _deks(self, request: Any, account: Account, container: str) -> BucketDeks | None:
        deks = self._metadata.deks(request, account, container)
        if deks is not None and not is_subsidiary(container):
            notes.of(request.environ).key_crn = deks.active.key_crn
        return deks

    def _require_deletion(self, request: Any, refused: Any) -> None:
        """Data whose key is refused, or whose DEK is damaged, can still be thrown away. Raises HTTPException."""
        reads = request.method in ("GET", "HEAD")
        if refused.status_int == 503 or not reads or not notes.of(request.environ).deletes:
            raise refused
        notes.of(request.environ).refusal = None

    def _passed(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        answer: Iterable[bytes] = self.app(env, start_response)
        return answer

    def _unprotected(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Neither encrypt nor decrypt, unless a keymaster to the left of this one does."""
        if CRYPTO_KEY_CALLBACK not in env:
            env[OVERRIDE] = True
        return self._passed(env, start_response)

    def _looked_at_to_delete(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """What is read in order to delete it need not be decrypted."""

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            # The list of a large object's parts cannot be read, so it is deleted as any other object; the parts go
            # when the bucket goes.
            kept = [header for header in headers if header[0].lower() != "x-static-large-object"]
            return start_response(status, kept, exc_info)

        # Past `encryption`, which cannot show a listing as it is stored.
        answer: Iterable[bytes] = self._pipeline_final_app(env, start)
        return answer

    def _of_bucket(self, request: Any, account: Account, deks: BucketDeks) -> BucketKeyMaster:
        """This keymaster with the secrets of one bucket. Raises HTTPException."""
        secrets = {}
        for dek in deks.deks:
            try:
                secret = self._cache.get(dek.dek_id, partial(self._provisioner.open, account, dek))
            except KeyRefused as refused:
                raise refusal(request, HTTPForbidden, refused.message) from refused
            except CiphertextRefused as damaged:
                self.logger.error("%s: %s", dek.resource_crn, damaged.message)
                raise refusal(request, HTTPInternalServerError, damaged.message) from damaged
            except (KeyServiceAway, ConnectionInvalid) as away:
                self.logger.warning("%s", away.message)
                raise unavailable(request, AWAY) from away
            secrets[dek.dek_id] = secret.reveal()
        bucket = copy.copy(self)
        bucket._root_secrets, bucket.active_secret_id = secrets, deks.active.dek_id
        return bucket

    def _heed_retention(self, request: Any, account: Account, container: str, obj: str) -> None:
        """Refuse to delete or replace what is kept; say of what is written how long it is. Raises HTTPException."""
        request.headers.pop(RETAINED_UNTIL, None)
        policy = self._metadata.retention(request, account, container)
        if policy is None:
            return
        bucket, kept = bucket_of(container), obj
        if is_subsidiary(container):
            part = part_of(obj)
            if part is None or self._metadata.exists(request, account, container, part.upload):
                # Of an upload that is not complete everything can be changed.
                return
            kept = part.obj
        until = self._metadata.retained_until(request, account, bucket, kept)
        now = time.time()
        if until > now:
            moment = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise refusal(request, HTTPForbidden, f"The object is kept until {moment}.")
        if request.method != "PUT" or is_subsidiary(container):
            return
        if any(name in request.headers for name in _EXPIRING):
            raise refusal(request, HTTPBadRequest, "An object of a bucket with a retention policy cannot expire.")
        try:
            request.headers[RETAINED_UNTIL] = str(policy.until(request.headers, now))
        except RetentionRefused as refused:
            raise refusal(request, HTTPBadRequest, refused.message) from refused


def _require_instance(request: Any, account: Account, container: str | None) -> None:
    """IBM's clients say in which instance they make and list buckets; it has to be that of this account."""
    told = request.headers.get("ibm-service-instance-id")
    if told and told not in (account.instance_id, account.crn) and (container is None or request.method == "PUT"):
        raise refusal(request, HTTPForbidden, "ibm-service-instance-id is not the instance of this account.")


def _connect(connection: Connection) -> KeyServiceClient:
    # Swift patches sockets and locks to be green, but not time.
    return KeyServiceClient(connection, Transport(connection, sleep=eventlet.sleep))


def filter_factory(global_conf: dict[str, str], **local_conf: str) -> Callable[[Any], BucketKeyMaster]:
    """The paste filter `egg:hsmkms#keymaster`."""
    conf = {**global_conf, **local_conf}
    return lambda app: BucketKeyMaster(app, conf)
