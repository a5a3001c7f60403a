"""What Swift knows of containers and objects, asked with the operator's rights from inside a request."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from swift.common.http import is_success
from swift.common.swob import HTTPInternalServerError, HTTPNotFound, str_to_wsgi
from swift.common.wsgi import make_pre_authed_request
from swift.proxy.controllers.base import get_account_info, get_container_info

from hsmkms.adopters.core.dek_file import DekFileInvalid
from hsmkms.adopters.objectstorage import notes
from hsmkms.adopters.objectstorage.bucket import MARK, BucketDeks, bucket_of
from hsmkms.adopters.objectstorage.configuration import Account
from hsmkms.adopters.objectstorage.refusals import refusal, unavailable
from hsmkms.adopters.objectstorage.retention import RETAINED_UNTIL, Retention, RetentionRefused

OVERRIDE: Final = "swift.crypto.override"
"""Tells Swift's encryption to leave a request alone."""
_SOURCE: Final = "KMS"
_PREFIX: Final = "x-container-sysmeta-"


class Metadata:
    """Raises HTTPException when nobody knows: what has a root key must never be taken for what has none."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def sysmeta(self, request: Any, account: Account, container: str) -> dict[str, str] | None:
        """System metadata of a container as Swift caches them, names in lower case; None if it does not exist."""
        request.environ.setdefault("swift.infocache", {})
        env = {**request.environ, "PATH_INFO": str_to_wsgi(f"/v1/{account.name}/{container}")}
        info = get_container_info(env, self._app, swift_source=_SOURCE)
        status = int(info["status"])
        if is_success(status):
            return dict(info["sysmeta"])
        if status == 404 or (not status and get_account_info(env, self._app, swift_source=_SOURCE)["status"] == 404):
            return None
        raise unavailable(request, "The bucket's metadata cannot be read at present.")

    def deks(self, request: Any, account: Account, container: str) -> BucketDeks | None:
        """The DEKs that the objects of a container are under, which are those of its bucket."""
        bucket = bucket_of(container)
        sysmeta = self.sysmeta(request, account, bucket)
        if sysmeta is not None:
            return stored(request, account, bucket, sysmeta)
        mark = MARK.lower().removeprefix(_PREFIX)
        if bucket != container and mark in (self.sysmeta(request, account, container) or {}):
            words = f"The bucket {bucket} cannot be found at present."
            # What a bucket left behind that is really gone can be thrown away.
            raise (
                refusal(request, HTTPNotFound, words)
                if notes.of(request.environ).deletes
                else unavailable(request, words)
            )
        return None

    def retention(self, request: Any, account: Account, container: str) -> Retention | None:
        """The policy of the bucket that a container belongs to."""
        try:
            return Retention.stored_in(self.sysmeta(request, account, bucket_of(container)) or {})
        except RetentionRefused as damaged:
            raise refusal(request, HTTPInternalServerError, damaged.message) from damaged

    def newest(self, request: Any, account: Account, container: str) -> dict[str, str] | None:
        """Like `sysmeta`, as all replicas know it, past every cache; None if the container does not exist."""
        headers = self._head(request, f"/v1/{account.name}/{container}")
        if headers is None:
            return None
        return {
            name.lower().removeprefix(_PREFIX): value
            for name, value in headers.items()
            if name.lower().startswith(_PREFIX)
        }

    def holds_objects(self, request: Any, account: Account, container: str) -> bool:
        """Whether a container exists and is not empty."""
        headers = self._head(request, f"/v1/{account.name}/{container}")
        return headers is not None and headers.get("X-Container-Object-Count") != "0"

    def exists(self, request: Any, account: Account, container: str, obj: str) -> bool:
        """Whether an object does."""
        return self._head(request, f"/v1/{account.name}/{container}/{obj}") is not None

    def retained_until(self, request: Any, account: Account, container: str, obj: str) -> float:
        """Until when an object is kept, in seconds since 1970; 0 if there is none or nothing keeps it."""
        headers = self._head(request, f"/v1/{account.name}/{container}/{obj}")
        text = "" if headers is None else headers.get(RETAINED_UNTIL, "")
        return float(text) if text.isdecimal() else 0.0

    def _head(self, request: Any, path: str) -> Any:
        head = make_pre_authed_request(
            request.environ, "HEAD", quote(path), headers={"X-Newest": "true"}, swift_source=_SOURCE
        )
        head.environ.pop("swift.infocache", None)
        # What is asked for is not encrypted, and the DEK may not be had.
        head.environ[OVERRIDE] = True
        response = head.get_response(self._app)
        if response.status_int == 404:
            return None
        if not is_success(response.status_int):
            raise unavailable(request, "The bucket's metadata cannot be read at present.")
        return response.headers


def stored(request: Any, account: Account, bucket: str, sysmeta: dict[str, str]) -> BucketDeks | None:
    """DEKs out of system metadata."""
    try:
        return BucketDeks.of(account, bucket, sysmeta)
    except DekFileInvalid as invalid:
        raise refusal(request, HTTPInternalServerError, invalid.message) from invalid
