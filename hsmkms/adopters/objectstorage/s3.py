"""Swift's S3 API for clients of IBM's: a paste filter in the place of `egg:swift#s3api`, with all of its settings.

    [filter:s3api]
    use = egg:hsmkms#s3api
    config = /etc/hsmkms/objectstorage.toml

What is added: access tokens instead of signatures, the answer's headers about a bucket's root key, and reasons in
words; retention policies.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from swift.common.middleware.s3api import s3api, s3request
from swift.common.middleware.s3api.exception import NotS3Request
from swift.common.middleware.s3api.s3response import (
    AccessDenied,
    ErrorResponse,
    InternalError,
    MethodNotAllowed,
    ServiceUnavailable,
)

from hsmkms.adopters.client import ConnectionInvalid, KeyServiceAway
from hsmkms.adopters.objectstorage import notes
from hsmkms.adopters.objectstorage.configuration import Configuration, User
from hsmkms.adopters.objectstorage.protection import ProtectionController
from hsmkms.adopters.objectstorage.tokens import TokenRefused, Tokens
from hsmkms.domain.secrets import SecretText

StartResponse = Callable[..., Any]
_SCHEME: Final = "bearer "
_SIGNED_AT: Final = "hsmkms.signed_at"
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"


class KeyProtectS3Api(s3api.S3ApiMiddleware):  # type: ignore[misc]  # Swift has no types
    """S3 with `ibm-sse-kp-*` and access tokens."""

    def __init__(self, app: Any, conf: dict[str, str]) -> None:
        super().__init__(app, conf)
        self._tokens = Tokens(Configuration.read(Path(conf["config"])).accounts)

    def __call__(self, env: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        # Swift's own way of deleting comes through here as well.
        notes.of(env).deletes = env["REQUEST_METHOD"] == "DELETE" or (
            env["REQUEST_METHOD"] == "POST" and _asks(env, "delete")
        )
        authorization = env.get("HTTP_AUTHORIZATION", "")
        if authorization[: len(_SCHEME)].lower() == _SCHEME:
            try:
                user = self._tokens.user(authorization[len(_SCHEME) :].strip())
                self._sign_as(env, user, user.secret_key())
            except TokenRefused as refused:
                return _wsgi(AccessDenied(refused.message)(env, start_response))
            except (KeyServiceAway, ConnectionInvalid) as away:
                self.logger.warning("%s", away.message)
                return _wsgi(ServiceUnavailable("Access tokens cannot be checked now. Try again.")(env, start_response))
        return _wsgi(super().__call__(env, start_response))

    def handle_request(self, req: Any) -> Any:
        """Raises ErrorResponse."""
        told = notes.of(req.environ)
        try:
            answer = self._answered(req)
        except ErrorResponse as error:
            if told.refusal is not None and isinstance(error, AccessDenied | ServiceUnavailable | InternalError):
                raise type(error)(told.refusal) from error
            raise
        if told.key_crn is not None and req.is_bucket_request and req.method in ("GET", "HEAD"):
            answer.headers["ibm-sse-kp-enabled"] = "true"
            # One name is in IBM's documents and SDK, the other was seen in an answer.
            answer.headers["ibm-sse-kp-crk-id"] = told.key_crn
            answer.headers["ibm-sse-kp-customer-root-key-crn"] = told.key_crn
        return answer

    def _answered(self, req: Any) -> Any:
        if "protection" not in req.params or not req.is_bucket_request:
            return super().handle_request(req)
        controller = ProtectionController(self.app, self.conf, self.logger)
        handler = {"GET": controller.GET, "PUT": controller.PUT}.get(req.method)
        if handler is None:
            raise MethodNotAllowed(req.method, controller.resource_type)
        req.set_acl_handler(controller.acl_handler(req, self.logger))
        return handler(req)

    def _sign_as(self, env: dict[str, Any], user: User, secret_key: SecretText) -> None:
        """Make a request with an access token one with a signature of the user that the token stands for."""
        _put_headers(env, user, self.conf.location, "0" * 64)
        try:
            # Swift itself works out what is signed, so that both sides cannot differ.
            request = s3request.SigV4Request(dict(env), self.app, self.conf)
        except (ErrorResponse, NotS3Request):
            # It will be refused again, and answered, where every request is.
            return
        key = f"AWS4{secret_key.reveal()}".encode()
        for part in request.scope.values():
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        string_to_sign = request.environ["s3api.auth_details"]["string_to_sign"]
        _put_headers(env, user, self.conf.location, hmac.new(key, string_to_sign, hashlib.sha256).hexdigest())


def _put_headers(env: dict[str, Any], user: User, location: str, signature: str) -> None:
    """AWS Signature Version 4 in the headers of a request, without one of its body."""
    now = env.setdefault(_SIGNED_AT, datetime.now(UTC))
    raw = env.get("headers_raw", ())
    names = {name.lower() for name, _ in raw if name.lower().startswith("x-amz-")}
    signed = ";".join(sorted({*names, "host", "x-amz-content-sha256", "x-amz-date"}))
    ours = {
        "authorization": (
            f"AWS4-HMAC-SHA256 Credential={user.access_key}/{now:%Y%m%d}/{location}/s3/aws4_request, "
            f"SignedHeaders={signed}, Signature={signature}"
        ),
        "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
        "x-amz-content-sha256": _UNSIGNED,
    }
    # Swift looks at the headers as they came where it can, and at those of WSGI elsewhere.
    env["headers_raw"] = (*((name, value) for name, value in raw if name.lower() not in ours), *ours.items())
    env.update({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in ours.items()})


def _asks(env: dict[str, Any], subresource: str) -> bool:
    return subresource in {part.partition("=")[0] for part in env.get("QUERY_STRING", "").split("&")}


def _wsgi(body: Any) -> Iterable[bytes]:
    return body  # type: ignore[no-any-return]


def filter_factory(global_conf: dict[str, str], **local_conf: str) -> Callable[[Any], KeyProtectS3Api]:
    """The paste filter `egg:hsmkms#s3api`."""
    # What Swift's own factory announces about the S3 API is true of this one, too.
    s3api.filter_factory(global_conf, **local_conf)
    conf = {**global_conf, **local_conf}
    return lambda app: KeyProtectS3Api(s3api.ListingEtagMiddleware(app), conf)
