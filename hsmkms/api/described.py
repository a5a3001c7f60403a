"""The OpenAPI description of every call, true to what the handlers read and send.

Handlers parse raw bodies and headers themselves, because Key Protect's rules (any Content-Type, any case, `null`) are
not those of a framework; so the description is written here, from the same models.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import pydantic
from pydantic.json_schema import models_json_schema

from hsmkms.api import iam_wire, policy_wire, registration_wire, wire
from hsmkms.api.problems import ERROR_TYPE
from hsmkms.domain.query import MAX_LIMIT

_JSON: Final = "application/json"
_MODELS: Final[list[type[pydantic.BaseModel]]] = [
    wire.KeyCreateBody,
    wire.KeyWithPoliciesBody,
    wire.KeyPolicyBody,
    wire.KeyPolicyCollection,
    wire.InstancePolicyBody,
    wire.InstancePolicyCollection,
    wire.AllowedIpCollection,
    wire.AliasCollection,
    wire.KeyPatchBody,
    wire.WrapBody,
    wire.UnwrapBody,
    wire.BulkWrapBody,
    wire.BulkUnwrapBody,
    wire.RotateBody,
    registration_wire.RegistrationBody,
    registration_wire.RegistrationCollection,
    registration_wire.AcknowledgementBody,
    registration_wire.EventCollection,
    wire.KeyCollection,
    wire.VersionCollection,
    wire.KeyRingCollection,
    wire.ImportTokenBody,
    wire.ImportTokenAnswer,
    wire.WrapAnswer,
    wire.UnwrapAnswer,
    wire.RewrapAnswer,
    wire.BulkWrapAnswer,
    wire.BulkUnwrapAnswer,
    wire.ErrorCollection,
    wire.AccessTokenAnswer,
    wire.IamError,
    wire.PlatformError,
    iam_wire.ApiKeyInsideServiceId,
    iam_wire.MemberBody,
    policy_wire.PolicyBodyV1,
    policy_wire.PolicyBodyV2,
    wire.JsonWebKeySet,
    wire.Health,
    wire.Readiness,
    wire.Version,
]

_ERRORS: Final = {
    400: "The request breaks a rule of the contract",
    401: "No valid token, or no access",
    403: "The feature is not available",
    404: "The key or key ring does not exist",
    409: "The key's state or another resource forbids it",
    410: "The key was deleted",
    422: "The ciphertext does not belong to this key and AAD",
    429: "Too many requests of this identity or instance; see Retry-After",
    500: "What is stored of the key is damaged",
    503: "HSM or database do not answer; see Retry-After",
}


_PLATFORM_ERRORS: Final = {
    400: "A member or parameter is not possible",
    401: "No valid token",
    403: "The caller may not do this",
    404: "It does not exist in the caller's account",
    409: "It exists already, is locked, or something forbids it",
    412: "It was changed since it was read",
    428: "If-Match is missing",
    503: "HSM or database do not answer; see Retry-After",
}


def _header(name: str, description: str, *, required: bool = False, uuid: bool = False) -> dict[str, Any]:
    schema = {"type": "string", "format": "uuid"} if uuid else {"type": "string"}
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def _query(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema or {"type": "string"}}


_INSTANCE: Final = [
    _header("Bluemix-Instance", "GUID of the instance", required=True, uuid=True),
    _header("Correlation-Id", "UUID, echoed in the answer", uuid=True),
]
_RING: Final = _header("X-Kms-Key-Ring", "Key ring: where to create, or to narrow a look-up")
_PREFER: Final = _header("Prefer", "return=minimal or return=representation")
REFERENCE: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Key id or alias",
    "schema": {"type": "string", "minLength": 1},
}
ALIAS: Final = {
    "name": "alias",
    "in": "path",
    "required": True,
    "description": "Alias",
    "schema": {"type": "string", "minLength": 1},
}
CRN: Final = {
    "name": "crn",
    "in": "path",
    "required": True,
    "description": "CRN of the resource, percent-encoded",
    "schema": {"type": "string", "minLength": 1},
}
RING_ID: Final = {
    "name": "key_ring_id",
    "in": "path",
    "required": True,
    "description": "Key ring id",
    "schema": {"type": "string", "minLength": 1},
}
_PAGE: Final = [
    _query("limit", "1 to 5,000; 0 means 200", {"type": "integer", "minimum": 0, "maximum": MAX_LIMIT}),
    _query("offset", "Rows to skip", {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}),
]
KEY_FILTERS: Final = [
    _query("state", "Comma list of 0, 1, 2, 3, 5; default 1,2,3"),
    _query("extractable", "true: standard keys; false: root keys"),
    _query("filter", "Blank-separated property=value or property=op:value"),
]
KEY_LISTING: Final = [
    *_PAGE,
    *KEY_FILTERS,
    _query("search", "Part of a name or alias; prefixes not: exact: escape: alias: name:"),
    _query("sort", "Comma list of properties, - descends"),
]
VERSION_LISTING: Final = [
    *_PAGE,
    _query("totalCount", "true: metadata.totalCount"),
    _query("allKeyStates", "true: also for keys that are not Active"),
]
KEY_POLICY: Final = _query("policy", "rotation or dualAuthDelete; without it all of them")
INSTANCE_POLICY: Final = _query("policy", "Name of one policy; without it all of them")
REGISTRATION_LISTING: Final = [
    *_PAGE,
    _query("urlEncodedResourceCRNQuery", "A CRN with `*` for any value of a segment, or behind the start of the last"),
    _query("preventKeyDeletion", "true or false: only those that prevent, or do not prevent, the deletion of the key"),
    _query("totalCount", "true: metadata.totalCount"),
]
EVENT_LIMIT: Final = _query("limit", "1 to 1,000; 0 means 100", {"type": "integer", "minimum": 0, "maximum": 1_000})
EVENT_LISTING: Final = [
    _query("after", "Cursor: metadata.cursor of the answer before", {"type": "integer", "minimum": 0}),
    _query("wait", "Seconds to wait for an event", {"type": "integer", "minimum": 0, "maximum": 60}),
    EVENT_LIMIT,
]
DELETE_FORCE: Final = _query("force", "true: also a key that protects resources")
FORCE: Final = _query("force", "true: move deleted keys to the ring default")
RING_LISTING: Final = [*_PAGE, _query("totalCount", "true: metadata.totalCount")]


Operation: TypeAlias = dict[str, Any]


def json_body(model: type[pydantic.BaseModel], *, required: bool = True) -> Operation:
    """The part of an operation that says what it takes."""
    return {"requestBody": {"required": required, "content": {_JSON: {"schema": _reference(model)}}}}


def operation(
    summary: str,
    *,
    ok: int,
    kind: str = "",
    answer: type[pydantic.BaseModel] | None = None,
    body: type[pydantic.BaseModel] | None = None,
    body_required: bool = True,
    parameters: tuple[dict[str, Any], ...] = (),
    ring: bool = True,
    prefer: bool = False,
    also: dict[int, str] | None = None,
) -> dict[str, Any]:
    """A call of the key API. `kind` is the media type of a successful answer, `also` further answers without body."""
    described: dict[str, Any] = {
        "summary": summary,
        "tags": ["Key Protect"],
        "security": [{"bearer": []}],
        "parameters": [*parameters, *_INSTANCE, *([_RING] if ring else []), *([_PREFER] if prefer else [])],
        "responses": {
            str(ok): _content("Done", kind, answer),
            **{str(status): {"description": text} for status, text in (also or {}).items()},
            **{str(status): _content(text, ERROR_TYPE, wire.ErrorCollection) for status, text in _ERRORS.items()},
        },
    }
    return described if body is None else described | json_body(body, required=body_required)


def plain(
    summary: str, tag: str, answer: type[pydantic.BaseModel], *, statuses: tuple[int, ...] = (200,)
) -> dict[str, Any]:
    """A call without a token and without an instance."""
    return {
        "summary": summary,
        "tags": [tag],
        "responses": {str(status): _content("Answer", _JSON, answer) for status in statuses},
    }


def platform(
    summary: str,
    tag: str,
    *,
    ok: int,
    body: type[pydantic.BaseModel] | None = None,
    path: tuple[str, ...] = (),
    query: tuple[str, ...] = (),
    if_match: bool = False,
) -> dict[str, Any]:
    """A call of IAM or of the Resource Controller."""
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in path
    ]
    parameters += [_query(name, "See docs/iam.md") for name in query]
    if if_match:
        parameters.append(_header("If-Match", "ETag of the version that was read", required=True))
    answer = {"description": "Done", "content": {_JSON: {"schema": {"type": "object"}}}}
    described: dict[str, Any] = {
        "summary": summary,
        "tags": [tag],
        "security": [{"bearer": []}],
        "parameters": parameters,
        "responses": {
            str(ok): {"description": "Done"} if ok == 204 else answer,
            **{str(status): _content(text, _JSON, wire.PlatformError) for status, text in _PLATFORM_ERRORS.items()},
        },
    }
    if body is not None:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return described


def token_endpoint() -> dict[str, Any]:
    """POST /identity/token and /oidc/token."""
    grant = {"type": "string", "enum": ["urn:ibm:params:oauth:grant-type:apikey", "refresh_token"]}
    names = ("apikey", "refresh_token", "response_type")
    fields = {"grant_type": grant, **{name: {"type": "string"} for name in names}}
    schema = {"type": "object", "required": ["grant_type"], "properties": fields}
    return {
        "summary": "Exchange an API key for an access token",
        "tags": ["Identity"],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}},
        "responses": {
            "200": _content("An access token, valid for an hour", _JSON, wire.AccessTokenAnswer),
            "400": _content("Unknown API key or grant", _JSON, wire.IamError),
            "429": _content("Too many failed log-ins; see Retry-After", _JSON, wire.IamError),
            "503": _content("HSM or database do not answer; see Retry-After", _JSON, wire.IamError),
        },
    }


def revocation() -> dict[str, Any]:
    """POST /identity/revoke."""
    schema = {"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}}
    return {
        "summary": "End the log-in that a token belongs to (RFC 7009)",
        "tags": ["Identity"],
        "requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}},
        "responses": {
            "200": {"description": "The token counts nowhere any more"},
            "400": _content("No token was given", _JSON, wire.IamError),
            "503": _content("HSM or database do not answer; see Retry-After", _JSON, wire.IamError),
        },
    }


_SUMMARIES: Final = {
    "bulk_wrap": "Wrap up to 1,000 data encryption keys; an item that fails has an error in its place",
    "bulk_unwrap": "Unwrap up to 1,000 data encryption keys; an item that fails has an error in its place",
}


def hot_paths() -> dict[str, Any]:
    """The calls that `hot` serves, which FastAPI does not know."""
    bodies: dict[str, tuple[type[pydantic.BaseModel], type[pydantic.BaseModel], bool]] = {
        "wrap": (wire.WrapBody, wire.WrapAnswer, False),
        "unwrap": (wire.UnwrapBody, wire.UnwrapAnswer, True),
        "rewrap": (wire.UnwrapBody, wire.RewrapAnswer, True),
        "bulk_wrap": (wire.BulkWrapBody, wire.BulkWrapAnswer, True),
        "bulk_unwrap": (wire.BulkUnwrapBody, wire.BulkUnwrapAnswer, True),
    }
    return {
        f"/api/v2/keys/{{id}}/actions/{action}": {
            "post": operation(
                _SUMMARIES.get(action) or f"{action.capitalize()} a data encryption key",
                ok=200,
                kind=wire.KEY_ACTION_TYPE,
                answer=answer,
                body=body,
                body_required=required,
                parameters=(REFERENCE,),
            )
            | {"x-action": f"kms.secrets.{action.removeprefix('bulk_')}"}
        }
        for action, (body, answer, required) in bodies.items()
    }


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description of the cold routes with the hot ones, the models and the bearer scheme."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    schema["paths"] = {**schema["paths"], **hot_paths()}
    schema["components"] = {
        "schemas": definitions["$defs"],
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
    }
    return schema


def _reference(model: type[pydantic.BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _content(text: str, kind: str, model: type[pydantic.BaseModel] | None) -> dict[str, Any]:
    if model is None:
        return {"description": text}
    return {"description": text, "content": {kind: {"schema": _reference(model)}}}
