"""What the FastAPI routes share: the services of one process, guarded handlers, answers with vendor types.

A vendor type on success decides whether IBM's Python tests pass: its core parses `application/json` only, and those
tests want the raw response (additions section 1.3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from time import perf_counter
from typing import Any, ClassVar, Final

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute

from hsmkms.api import wire
from hsmkms.api.bodies import COLD_LIMIT, Model, decode_object, parse, read_body
from hsmkms.api.problems import guard, kms_problem, platform_problem, token_problem
from hsmkms.api.requests import (
    Envelope,
    address_of,
    authenticate,
    correlation_id,
    credential_of,
    envelope,
    header_map,
)
from hsmkms.api.services import Services
from hsmkms.correlation import correlated
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.importing import ImportToken
from hsmkms.domain.keys import Key
from hsmkms.domain.records import Record
from hsmkms.domain.tenants import Instance
from hsmkms.errors import InvalidQueryParam, NoBody, NotFound, Unauthorized
from hsmkms.service.acts import Act, acting
from hsmkms.service.authorize import require_any_in_account
from hsmkms.service.cadf import LOGIN, REVOKE
from hsmkms.service.rights import entity_tag
from hsmkms.service.trail import changes
from hsmkms.telemetry import metrics

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_UNKNOWN: Final = (
    ("/instance/policies", "kms.instance-policies.request"),
    ("/policies", "kms.policies.default"),
    ("/aliases", "kms.secrets-alias.request"),
    ("/key_rings", "kms.key-rings.request"),
    ("/import_token", "kms.import-token.request"),
    ("/registrations", "kms.registrations.default"),
    ("/kmip_adapters", "kms.kmip-management.default"),
)
_NOT_DONE: Final = "Action could not be performed"


class OpenRoute(APIRoute):
    """A route for anybody, whose refusals and failures become an error body."""

    authenticated: ClassVar[bool] = False

    def problem(self, error: Exception, correlation_id: str) -> Response:
        """An error in this family's shape."""
        return kms_problem(error, correlation_id)

    def audited_as(self, request: Request) -> str | None:
        """The action of the audit event; None for what is not audited, such as health."""
        return None

    async def enter(self, request: Request, *, again: bool = False) -> None:
        """Find out who is calling, and refuse who may not; `again` for a request that was let in before. Raises
        Unauthorized and as `authenticate`."""
        headers = header_map(request.scope["headers"])
        request.state.caller = await authenticate(services(request).gate, headers, request.scope)
        act: Act = request.state.act
        act.caller, act.credential = request.state.caller, credential_of(headers)
        self.admit(request, headers, again=again)

    def admit(self, request: Request, headers: Mapping[str, str], *, again: bool) -> None:
        """Refuse who has no right that could be enough; `again` after the body came. Raises Unauthorized."""

    @cached_property
    def action(self) -> Action:
        """The action that the route declares."""
        return Action((self.openapi_extra or {})["x-action"])

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind authentication and inside `problems.guard`."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if self.authenticated:
                request.state.route = self
                await self.enter(request)
            with_body = request.method in _WITH_BODY
            if with_body:
                request.state.body = await read_body(request.receive, request.scope["headers"], COLD_LIMIT)
            here, act = services(request), request.state.act
            change = act is not None and changes(act.action)
            async with here.places if change else contextlib.nullcontext():
                # Again: a body or a place may take its time, and a right that ended meanwhile must not count.
                if self.authenticated and (with_body or change):
                    await self.enter(request, again=True)
                if act is not None:
                    await here.trail.begin(act)
                return await handler(request)

        async def recorded(request: Request, act: Act, response: Response) -> Response:
            await services(request).trail.end(act, response.status_code)
            return response

        async def guarded(request: Request) -> Response:
            began, status = perf_counter(), metrics.CUT_OFF
            with correlated(correlation_id(request.headers)) as current:
                act = request.state.act = self._act(request, current)
                try:
                    # Without an act nobody looks at what is noted.
                    with contextlib.nullcontext() if act is None else acting(act):
                        response = await guard(answer(request), self.problem, current)
                    if act is not None:
                        response = await guard(recorded(request, act, response), self.problem, current)
                    status = response.status_code
                    return response
                finally:
                    metrics.answered(self.name if act is None else act.action, status, began)

        return guarded

    def _act(self, request: Request, correlation_id: str) -> Act | None:
        action = self.audited_as(request)
        if action is None:
            return None
        path, address = request.scope["path"], address_of(request.scope)
        named = request.path_params
        return Act(action, correlation_id, path, address, reference=named.get("id") or named.get("group_id"))


class TokenRoute(OpenRoute):
    """The token endpoint's family."""

    def problem(self, error: Exception, correlation_id: str) -> Response:
        """An error as the Go client reads it."""
        return token_problem(error, correlation_id)

    def audited_as(self, request: Request) -> str | None:
        """Log-ins and their ends; the public keys are anybody's."""
        if request.method != "POST":
            return None
        return REVOKE if request.scope["path"].endswith("/revoke") else LOGIN


class KmsRoute(OpenRoute):
    """A call of the key API."""

    authenticated = True

    @cached_property
    def actions(self) -> dict[str, Action]:
        """The actions of a route whose parameter `action` names one."""
        return {name: Action(value) for name, value in (self.openapi_extra or {}).get("x-actions", {}).items()}

    def action_of(self, request: Request) -> Action:
        """The action that a request asks for. Raises InvalidQueryParam."""
        if not self.actions:
            return self.action
        named = request.query_params.getlist("action")
        if len(named) != 1 or named[0] not in self.actions:
            known = ", ".join(("wrap", "unwrap", "rewrap", *self.actions))
            raise InvalidQueryParam("action", f"The parameter `action` must be one of {known}.")
        return self.actions[named[0]]

    def admit(self, request: Request, headers: Mapping[str, str], *, again: bool) -> None:
        """By the instance; a bad instance header comes first. Raises Unauthorized, TooManyRequests, InvalidInstance,
        and InvalidQueryParam where the query names the action and names none."""
        call = request.state.call = envelope(headers, caller_of(request))
        act: Act = request.state.act
        act.instance_id, act.key_ring_id = call.instance_id, call.key_ring_id
        gate, action = services(request).gate, self.action_of(request)
        gate.admit(call.caller, action, call.instance_id, act.address, again=again)

    def audited_as(self, request: Request) -> str | None:
        """The action that is asked for, or that none is."""
        if not self.actions:
            return str(self.action.value)
        try:
            return str(self.action_of(request).value)
        except InvalidQueryParam:
            return unknown_action(request.scope["path"])

    def problem(self, error: Exception, correlation_id: str) -> Response:
        """Key Protect's error body, which begins with what could not be done."""
        return kms_problem(error, correlation_id, (self.openapi_extra or {}).get("x-failed", _NOT_DONE))


class PlatformRoute(OpenRoute):
    """A call of IAM or of the Resource Controller."""

    authenticated = True

    def admit(self, request: Request, headers: Mapping[str, str], *, again: bool) -> None:
        """By the account. Raises Unauthorized."""
        require_any_in_account(caller_of(request), self.action)

    def audited_as(self, request: Request) -> str | None:
        """The action that the route declares."""
        return str(self.action.value)

    def problem(self, error: Exception, correlation_id: str) -> Response:
        """The platform's error body."""
        return platform_problem(error, correlation_id)


def unknown_action(path: str) -> str | None:
    """How the audit trail names a call that there is not (contract section 7); None for a path of no API of ours."""
    if path.startswith(("/v1/", "/v2/", "/identity/", "/oidc/")):
        return "iam.request.default"
    if not path.startswith("/api/v2/"):
        return None
    return next((action for part, action in _UNKNOWN if part in path), "kms.secrets.default")


def services(request: Request) -> Services:
    """The services of this process."""
    found: Services = request.app.state.services
    return found


async def enter(request: Request) -> None:
    """Decide again whether the caller of a request that has been waiting may go on. Raises as the route's `enter`."""
    route: OpenRoute = request.state.route
    await route.enter(request, again=True)


def caller_of(request: Request) -> Caller:
    """Who the route's authentication found."""
    found: Caller = request.state.caller
    return found


def call_of(request: Request) -> Envelope:
    """Caller and headers of a call of the key API."""
    found: Envelope = request.state.call
    return found


def own_account_of(request: Request) -> Caller:
    """The caller, unless the parameter `account_id` names another account: that one does not exist. Raises NotFound."""
    caller = caller_of(request)
    if request.query_params.get("account_id", caller.account) != caller.account:
        raise NotFound("account")
    return caller


def instance_of(request: Request, call: Envelope) -> Instance:
    """The instance of a call that the service has authorized. Raises Unauthorized."""
    instance = services(request).snapshot.instance(call.instance_id)
    if instance is None:
        raise Unauthorized
    return instance


def raw_body_of(request: Request) -> bytes:
    """The body of a POST, PUT or PATCH, which was read before its handler was called."""
    found: bytes = request.state.body
    return found


def body_of(request: Request, model: type[Model]) -> Model:
    """The body as a model. Raises NoBody, BadBody."""
    body = decode_object(raw_body_of(request))
    if body is None:
        raise NoBody
    return parse(model, body)


def optional_body_of(request: Request, model: type[Model]) -> Model | None:
    """The body as a model, or None if there is none. Raises BadBody."""
    body = decode_object(raw_body_of(request))
    return None if body is None else parse(model, body)


def answer(content: dict[str, Any], kind: str, status: int = 200) -> Response:
    """A JSON answer of a media type."""
    return Response(msgspec.json.encode(content), status, media_type=kind)


def note_total(request: Request, total: int) -> None:
    """Tell the audit trail how much was listed."""
    request.state.act.total = total


def note_import_token(request: Request, token: ImportToken) -> None:
    """Tell the audit trail until when and how often an import token may be used."""
    request.state.act.import_token = token


def key_answer(request: Request, key: Key, status: int = 200, **shown: Any) -> Response:
    """One key in its envelope; `shown` as `wire.key_resource` takes it."""
    here = services(request)
    resource = wire.key_resource(key, instance_of(request, call_of(request)), here.waits, here.clock(), **shown)
    return answer(wire.collection(wire.KEY_TYPE, [resource]), wire.KEY_TYPE, status)


def tagged(content: dict[str, Any], record: Record, status: int = 200) -> Response:
    """An answer of IAM with the ETag of its record."""
    response = answer(content, "application/json", status)
    response.headers["ETag"] = f'"{entity_tag(record)}"'
    response.headers["Cache-Control"] = "no-store"
    return response


def described(operation: dict[str, Any], action: Action, failed: str = _NOT_DONE) -> dict[str, Any]:
    """An OpenAPI operation with the action that it needs and the sentence that its errors begin with."""
    return {**operation, "x-action": action.value, "x-failed": failed}


def by_query(actions: Mapping[str, Action], failed: str) -> dict[str, Any]:
    """The same for a call whose parameter `action` names what it does."""
    return {"x-actions": {name: action.value for name, action in actions.items()}, "x-failed": failed}


def path_id(request: Request, name: str = "id") -> str:
    """A path parameter."""
    return str(request.path_params[name])
