"""The one place where errors become HTTP: status, body, headers (contract section 5, additions section 7).

An error that is not ours gives a fixed sentence; its cause goes to the log under the correlation id, without the
request's content.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, ParamSpec, TypeVar

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from hsmkms import errors
from hsmkms.telemetry.logs import place_of

P = ParamSpec("P")
T = TypeVar("T")

MORE_INFO: Final = "https://cloud.ibm.com/apidocs/key-protect"
ERROR_TYPE: Final = "application/vnd.ibm.kms.error+json"

_STATUS: Final[dict[type[errors.HsmkmsError], HTTPStatus]] = {
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.FeatureRestricted: HTTPStatus.FORBIDDEN,
    errors.KeyNotFound: HTTPStatus.NOT_FOUND,
    errors.KeyRingNotFound: HTTPStatus.NOT_FOUND,
    errors.KeyStateConflict: HTTPStatus.CONFLICT,
    errors.RotationTooEarly: HTTPStatus.CONFLICT,
    errors.TooEarly: HTTPStatus.CONFLICT,
    errors.NotDualAuth: HTTPStatus.CONFLICT,
    errors.AuthorizationsNotMet: HTTPStatus.CONFLICT,
    errors.AliasNotUnique: HTTPStatus.CONFLICT,
    errors.AliasQuota: HTTPStatus.CONFLICT,
    errors.AliasNotFound: HTTPStatus.NOT_FOUND,
    errors.KeyCreationForbidden: HTTPStatus.CONFLICT,
    errors.ImportTokenExpired: HTTPStatus.CONFLICT,
    errors.ServiceOnly: HTTPStatus.FORBIDDEN,
    errors.ResourceOwner: HTTPStatus.FORBIDDEN,
    errors.RegistrationNotFound: HTTPStatus.NOT_FOUND,
    errors.RegistrationExists: HTTPStatus.CONFLICT,
    errors.RegistrationKeyNotRoot: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.RegistrationKeyState: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.RegistrationVersion: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DeletionPrevented: HTTPStatus.CONFLICT,
    errors.ProtectedResource: HTTPStatus.CONFLICT,
    errors.TooManyWaiting: HTTPStatus.TOO_MANY_REQUESTS,
    errors.KeyRingNotEmpty: HTTPStatus.CONFLICT,
    errors.KeyRingExists: HTTPStatus.CONFLICT,
    errors.KeyRingQuota: HTTPStatus.CONFLICT,
    errors.KeyDeleted: HTTPStatus.GONE,
    errors.UnprocessableCiphertext: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.VersionRequired: HTTPStatus.PRECONDITION_REQUIRED,
    errors.VersionStale: HTTPStatus.PRECONDITION_FAILED,
    errors.TooManyAttempts: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Refusal: HTTPStatus.BAD_REQUEST,
    errors.KeyIncomplete: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    # An operator has to put the token right, such as after a key with unsafe attributes was found on it.
    errors.OperatorError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""By class, the most special first along the method resolution order; what is not here is an internal error."""

_INTERNAL: Final = "The service failed. The log has the cause under the Correlation-Id of this answer."

Problem = Callable[[Exception, str], Response]
"""(error, correlation id) → the answer in one of the three shapes below."""

_log = structlog.get_logger(__name__)


async def guard(answer: Awaitable[Response], problem: Problem, correlation_id: str) -> Response:
    """The answer, or the problem it ended in. Nothing but a lost client gets past this."""
    try:
        response = await answer
    except ClientDisconnect:
        raise
    except Exception as error:
        return problem(error, correlation_id)
    response.headers["Correlation-Id"] = correlation_id
    return response


def guard_now(
    problem: Problem, correlation_id: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | Response:
    """What `call` returns, or the problem it ended in."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return problem(error, correlation_id)


def status_of(error: Exception) -> HTTPStatus:
    """The HTTP status of an error."""
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code)
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def kms_problem(error: Exception, correlation_id: str, failed: str = "Action could not be performed") -> Response:
    """Key Protect's error body. `failed` says what could not be done."""
    body = {
        "metadata": {"collectionType": ERROR_TYPE, "collectionTotal": 1},
        "resources": [kms_resource(error, correlation_id, failed)],
    }
    status = status_of(error)
    return Response(msgspec.json.encode(body), status, _headers(error, status, correlation_id), ERROR_TYPE)


def kms_resource(error: Exception, correlation_id: str, failed: str) -> dict[str, object]:
    """The one resource of that body, which stands alone for an item of a bulk."""
    status, message, code = _describe(error, correlation_id)
    resource: dict[str, object] = {"errorMsg": f"{status.phrase}: {message}"}
    # A refusal of access carries no reasons, and neither does what has no code in the contract (additions section 6.1).
    if code is not None and status is not HTTPStatus.UNAUTHORIZED:
        reason: dict[str, object] = {
            "code": code,
            "message": message,
            "status": int(status),
            "moreInfo": MORE_INFO,
        }
        if isinstance(error, errors.InvalidField):
            reason["target"] = {"type": "field", "name": error.target}
        elif isinstance(error, errors.InvalidQueryParam):
            reason["target"] = {"type": "query_param", "name": error.target}
        resource["errorMsg"] = f"{status.phrase}: {failed}: Please see `reasons` for more details ({code})"
        resource["reasons"] = [reason]
    return resource


def token_problem(error: Exception, correlation_id: str) -> Response:
    """The token endpoint's error body, as the Go client reads it (additions section 6.2)."""
    status, message, code = _describe(error, correlation_id)
    body = {
        "errorCode": code or "BXNIM0000E",
        "errorMessage": message,
        "context": {"requestId": correlation_id},
    }
    headers = _headers(error, status, correlation_id)
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def platform_problem(error: Exception, correlation_id: str) -> Response:
    """The error body of IAM and of the Resource Controller (contract section 4). Unlike Key Protect they tell apart who
    is unknown (401) and who may not (403)."""
    status, message, code = _describe(error, correlation_id)
    if isinstance(error, errors.Unauthorized):
        # IBM's own spelling, on which clients may match.
        status, code = HTTPStatus.FORBIDDEN, "insufficent_permissions"
    elif isinstance(error, errors.BadBody | errors.NoBody):
        code = errors.Invalid.code
    body = {
        "trace": correlation_id,
        "status_code": int(status),
        "errors": [{"code": code or status.phrase.lower().replace(" ", "_"), "message": message}],
    }
    headers = _headers(error, status, correlation_id)
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def _describe(error: Exception, correlation_id: str) -> tuple[HTTPStatus, str, str | None]:
    status = status_of(error)
    if isinstance(error, errors.KeyIncomplete):
        _log.error("damaged key", place=place_of(error.__traceback__), correlation_id=correlation_id)
        return status, error.message, error.code
    if isinstance(error, errors.HsmkmsError) and status is not HTTPStatus.INTERNAL_SERVER_ERROR:
        if isinstance(error, errors.Unavailable | errors.OperatorError) and not isinstance(
            error, errors.TokenAway | errors.AuditUnavailable
        ):
            _log.warning("unavailable", reason=error.message, correlation_id=correlation_id)
        return status, error.message, error.code
    if isinstance(error, HTTPException):
        return status, "There is no such call. See /openapi.json for those there are.", None
    # Where it happened, never what it said: a foreign exception's text may quote the request.
    _log.error(
        "internal error", kind=type(error).__name__, place=place_of(error.__traceback__), correlation_id=correlation_id
    )
    return HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL, None


def _headers(error: Exception, status: HTTPStatus, correlation_id: str) -> dict[str, str]:
    headers = {"Correlation-Id": correlation_id}
    if isinstance(error, errors.Unavailable | errors.TooManyAttempts | errors.TooManyRequests | errors.TooManyWaiting):
        headers["Retry-After"] = str(error.retry_after_s)
    elif status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(errors.Unavailable.retry_after_s)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="hsmkms"'
    if isinstance(error, BodyTooLarge):
        # The rest of the body is still on its way and nobody will read it.
        headers["Connection"] = "close"
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return headers


class BodyTooLarge(errors.BadBody):
    """The body is longer than any request of this API can be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes.")
