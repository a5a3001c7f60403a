"""`hsmkms authorizations`: which source service may use the keys of which instance.

`create` without arguments on a terminal walks through the steps of the integration guide: source, target,
role, confirm.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from hsmkms.cli.local import AccountOption, JsonOption, in_account, show
from hsmkms.domain.access import Caller, Role, Scope
from hsmkms.domain.crn import SERVICE_ROLES, SOURCE_SERVICES
from hsmkms.domain.policies import Policy, PolicyKind, PolicyWish, Subject
from hsmkms.errors import SettingsInvalid
from hsmkms.wiring import Rooms

app = typer.Typer(help="Service-to-service authorizations on this host's deployment.", no_args_is_help=True)

_ALL = "all"


@app.command("list")
def list_authorizations(account: AccountOption = None, json: JsonOption = False) -> None:
    """List authorizations."""
    with in_account(account) as (here, operator):
        found = here.services.policies.list(operator, lambda policy: policy.kind is PolicyKind.AUTHORIZATION)
        show([_describe(policy) for _, policy in found], json)


@app.command("create")
def create(
    source: Annotated[str | None, typer.Option(help="Source service, such as cloud-object-storage.")] = None,
    source_instance: Annotated[str | None, typer.Option(help="Only this instance of the source service.")] = None,
    source_region: Annotated[str | None, typer.Option(help="Only instances of the source service there.")] = None,
    target: Annotated[
        str | None, typer.Option(help="GUID of the key instance; all of the account if left out.")
    ] = None,
    role: Annotated[list[Role] | None, typer.Option("--role", help="Role; Reader if left out.")] = None,
    account: AccountOption = None,
    json: JsonOption = False,
) -> None:
    """Let a source service use root keys."""
    with in_account(account) as (here, operator):
        if source is None:
            if not sys.stdin.isatty():
                raise SettingsInvalid("Name the source service with --source.")
            wish = _ask(here, operator)
        else:
            subject = Subject(service=source, service_instance_id=source_instance, region=source_region)
            wish = _wish(operator, subject, target, tuple(role or [Role.READER]))
        show([_describe(here.services.policies.create(operator, wish)[1])], json)


@app.command("delete")
def delete(
    policy_id: Annotated[str, typer.Argument(help="Id of the authorization.")], account: AccountOption = None
) -> None:
    """Delete an authorization: within a second the service is refused."""
    with in_account(account) as (here, operator):
        here.services.policies.delete(operator, policy_id)


def _ask(here: Rooms, operator: Caller) -> PolicyWish:
    source = _choose("1. Source service", sorted(SOURCE_SERVICES))
    instance = typer.prompt("2. Source instance (GUID)", default=_ALL, err=True)
    known = {one.id: one for one in here.services.snapshot.instances(operator.account)}
    for one in known.values():
        typer.echo(f"   {one.id}  {one.name}, region {one.region}", err=True)
    target = _choose("3. Target key instance", [*known, _ALL])
    role = _choose("4. Role", [role.value for role in SERVICE_ROLES])
    where = "every key instance" if target == _ALL else f"key instance {target}"
    who = f"every instance of {source}" if instance == _ALL else f"instance {instance} of {source}"
    typer.confirm(f"5. Give {who} the role {role} on {where}?", abort=True, err=True)
    subject = Subject(service=source, service_instance_id=None if instance == _ALL else instance)
    return _wish(operator, subject, None if target == _ALL else target, (Role(role),))


def _choose(question: str, choices: list[str]) -> str:
    for number, choice in enumerate(choices, 1):
        typer.echo(f"   {number}  {choice}", err=True)
    number = int(typer.prompt(question, type=int, default=1, err=True))
    if not 1 <= number <= len(choices):
        raise SettingsInvalid(f"Answer with a number from 1 to {len(choices)}.")
    return choices[number - 1]


def _wish(operator: Caller, subject: Subject, target: str | None, roles: tuple[Role, ...]) -> PolicyWish:
    return PolicyWish(
        account=operator.account,
        kind=PolicyKind.AUTHORIZATION,
        subject=subject,
        roles=roles,
        scope=Scope(target),
        service_type=None,
        description=None,
    )


def _describe(one: Policy) -> dict[str, Any]:
    return {
        "id": one.id,
        "source": one.subject.service,
        "source instance": one.subject.service_instance_id or _ALL,
        "region": one.subject.region or _ALL,
        "target": one.scope.instance_id or _ALL,
        "roles": ", ".join(role.value for role in one.roles),
        "state": one.state.value,
    }
