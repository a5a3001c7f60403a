"""`hsmkms iam`: identities, API keys, groups, policies and log-ins, as the operator on the host."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from hsmkms.cli.local import AccountOption, JsonOption, in_account, recorded, rooms, show
from hsmkms.domain.access import Role, Scope
from hsmkms.domain.identities import ApiKey, ApiKeyUse, Identity, IdentityKind, LoginMethod
from hsmkms.domain.policies import Policy, PolicyKind, PolicyWish, Subject
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import Invalid, SettingsInvalid
from hsmkms.settings import load
from hsmkms.wiring import configure_logs, open_rooms, pin_of

app = typer.Typer(help="Manage who may do what, on this host's deployment.", no_args_is_help=True)
users = typer.Typer(help="People.", no_args_is_help=True)
service_ids = typer.Typer(help="Programs.", no_args_is_help=True)
api_keys = typer.Typer(help="API keys.", no_args_is_help=True)
groups = typer.Typer(help="Access groups.", no_args_is_help=True)
policies = typer.Typer(help="Access policies.", no_args_is_help=True)
logins = typer.Typer(help="Outside tokens and client certificates that identities come in with.", no_args_is_help=True)
for name, part in (
    ("users", users),
    ("service-ids", service_ids),
    ("api-keys", api_keys),
    ("groups", groups),
    ("policies", policies),
    ("logins", logins),
):
    app.add_typer(part, name=name)

Name = Annotated[str, typer.Argument(help="Name.")]
Id = Annotated[str, typer.Argument(help="Id.")]
IamId = Annotated[str, typer.Argument(help="iam_id of the user or service id.")]


@app.command("recover")
def recover(account: AccountOption = None) -> None:
    """Make a new administrator when every key was lost. Needs the token's PIN; also seals instances that are not, and
    makes another audit key if the token's is lost."""
    configure_logs()
    settings = load()
    opened = open_rooms(settings, pin_of(settings), migrate=True, found=True, recover=True)
    with opened.close, recorded(opened):
        unsealed = opened.deployment.unsealed_instances()
        for instance in unsealed:
            typer.echo(
                f"not sealed: {instance.id} {instance.name!r}, region {instance.region}, {instance.account}", err=True
            )
        if unsealed:
            typer.confirm("Are these instances as you made them?", abort=True, err=True)
            opened.deployment.seal_instances(unsealed)
        known = list(dict.fromkeys(one.account for one in opened.services.snapshot.all_instances()))
        if account is None and len(known) != 1:
            raise SettingsInvalid(f"Choose an account with --account: {', '.join(known)}.")
        _show_secret("administrator key", opened.deployment.recover(account or known[0]))


@app.command("rotate-signing-key")
def rotate_signing_key(
    at_once: Annotated[bool, typer.Option("--at-once", help="Refuse every token issued until now.")] = False,
) -> None:
    """Sign tokens with a new key; those of the old one are good until they end, unless --at-once."""
    with rooms() as here:
        here.deployment.require_founded()
        tokens = here.services.tokens
        key = tokens.rotate_signing_key(overlap=timedelta(0)) if at_once else tokens.rotate_signing_key()
        typer.echo(key.id)


@app.command("end-tokens")
def end_tokens(iam_id: IamId, account: AccountOption = None) -> None:
    """Refuse every token that an identity was issued until now."""
    with in_account(account) as (here, operator):
        here.services.identities.end_tokens(operator, iam_id)


@users.command("list")
def list_users(account: AccountOption = None, json: JsonOption = False) -> None:
    """List users."""
    _list_identities(IdentityKind.USER, account, json)


@users.command("create")
def create_user(name: Name, account: AccountOption = None, json: JsonOption = False) -> None:
    """Create a user without rights."""
    with in_account(account) as (here, operator):
        show([_identity(here.services.identities.create(operator, IdentityKind.USER, name)[1])], json)


@service_ids.command("list")
def list_service_ids(account: AccountOption = None, json: JsonOption = False) -> None:
    """List service ids."""
    _list_identities(IdentityKind.SERVICE_ID, account, json)


@service_ids.command("create")
def create_service_id(
    name: Name,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="CRN of the source service's instance it acts for.")
    ] = None,
    account: AccountOption = None,
    json: JsonOption = False,
) -> None:
    """Create a service id without rights."""
    with in_account(account) as (here, operator):
        created = here.services.identities.create(operator, IdentityKind.SERVICE_ID, name, None, source or ())
        show([_identity(created[1])], json)


@users.command("delete")
@service_ids.command("delete")
def delete_identity(iam_id: IamId, account: AccountOption = None) -> None:
    """Delete an identity with its API keys and rights."""
    with in_account(account) as (here, operator):
        here.services.identities.delete(operator, iam_id)


@users.command("lock")
@service_ids.command("lock")
def lock_identity(iam_id: IamId, account: AccountOption = None) -> None:
    """Refuse all its keys and tokens, and every change of it."""
    with in_account(account) as (here, operator):
        here.services.identities.set_locked(operator, iam_id, locked=True)


@users.command("unlock")
@service_ids.command("unlock")
def unlock_identity(iam_id: IamId, account: AccountOption = None) -> None:
    """Let it in again."""
    with in_account(account) as (here, operator):
        here.services.identities.set_locked(operator, iam_id, locked=False)


@api_keys.command("list")
def list_api_keys(
    iam_id: Annotated[str | None, typer.Option(help="Only those of this identity.")] = None,
    account: AccountOption = None,
    json: JsonOption = False,
) -> None:
    """List API keys, without their secrets."""
    with in_account(account) as (here, operator):
        found = [one for _, one in here.services.api_keys.list(operator, iam_id)]
        show([_api_key(one, here.services.api_keys.last_use(operator, one.id)) for one in found], json)


@api_keys.command("create")
def create_api_key(
    iam_id: IamId,
    name: Name,
    days: Annotated[int | None, typer.Option(help="Days until it expires.", min=1)] = None,
    account: AccountOption = None,
) -> None:
    """Create an API key; its secret is shown once."""
    with in_account(account) as (here, operator):
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = here.services.api_keys.create(operator, iam_id, name, None, expires_at)
        _show_secret(made.api_key.id, made.secret)


@api_keys.command("rotate")
def rotate_api_key(key_id: Id, account: AccountOption = None) -> None:
    """Give a key a new secret, shown once; the old one and its tokens are refused."""
    with in_account(account) as (here, operator):
        made = here.services.api_keys.rotate(operator, key_id)
        _show_secret(made.api_key.id, made.secret)


@api_keys.command("lock")
def lock_api_key(key_id: Id, account: AccountOption = None) -> None:
    """Refuse the key and every change of it."""
    with in_account(account) as (here, operator):
        here.services.api_keys.set_locked(operator, key_id, locked=True)


@api_keys.command("unlock")
def unlock_api_key(key_id: Id, account: AccountOption = None) -> None:
    """Accept the key again."""
    with in_account(account) as (here, operator):
        here.services.api_keys.set_locked(operator, key_id, locked=False)


@api_keys.command("delete")
def delete_api_key(key_id: Id, account: AccountOption = None) -> None:
    """Delete a key; tokens made from it are refused."""
    with in_account(account) as (here, operator):
        here.services.api_keys.delete(operator, key_id)


@groups.command("list")
def list_groups(account: AccountOption = None, json: JsonOption = False) -> None:
    """List access groups."""
    with in_account(account) as (here, operator):
        found = [one for _, one in here.services.groups.list(operator)]
        show([{"id": one.id, "name": one.name, "members": len(one.members)} for one in found], json)


@groups.command("create")
def create_group(name: Name, account: AccountOption = None, json: JsonOption = False) -> None:
    """Create an access group."""
    with in_account(account) as (here, operator):
        _, group = here.services.groups.create(operator, name, None)
        show([{"id": group.id, "name": group.name}], json)


@groups.command("add")
def add_to_group(group_id: Id, iam_id: IamId, account: AccountOption = None) -> None:
    """Add an identity to a group."""
    with in_account(account) as (here, operator):
        here.services.groups.add_members(operator, group_id, [iam_id])


@groups.command("remove")
def remove_from_group(group_id: Id, iam_id: IamId, account: AccountOption = None) -> None:
    """Remove an identity from a group."""
    with in_account(account) as (here, operator):
        here.services.groups.remove_member(operator, group_id, iam_id)


@groups.command("delete")
def delete_group(
    group_id: Id,
    force: Annotated[bool, typer.Option("--force", help="Also with members.")] = False,
    account: AccountOption = None,
) -> None:
    """Delete a group with its policies."""
    with in_account(account) as (here, operator):
        here.services.groups.delete(operator, group_id, force=force)


@policies.command("list")
def list_policies(account: AccountOption = None, json: JsonOption = False) -> None:
    """List access policies; `hsmkms authorizations list` shows those of services."""
    with in_account(account) as (here, operator):
        found = here.services.policies.list(operator, lambda policy: policy.kind is PolicyKind.ACCESS)
        show([_policy(policy) for _, policy in found], json)


@policies.command("create")
def create_policy(
    subject: Annotated[str, typer.Argument(help="iam_id of an identity, or id of an access group.")],
    role: Annotated[list[Role], typer.Option("--role", help="Role; may be repeated.")],
    instance: Annotated[str | None, typer.Option(help="Only in this instance.")] = None,
    key_ring: Annotated[str | None, typer.Option(help="Only in this key ring.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key.")] = None,
    account: AccountOption = None,
    json: JsonOption = False,
) -> None:
    """Grant roles to an identity or a group."""
    with in_account(account) as (here, operator):
        group = subject.startswith("AccessGroupId-")
        wish = PolicyWish(
            account=operator.account,
            kind=PolicyKind.ACCESS,
            subject=Subject(access_group_id=subject) if group else Subject(iam_id=subject),
            roles=tuple(role),
            scope=Scope(instance, key_ring, key),
            service_type=None,
            description=None,
        )
        show([_policy(here.services.policies.create(operator, wish)[1])], json)


@policies.command("delete")
def delete_policy(policy_id: Id, account: AccountOption = None) -> None:
    """Delete a policy."""
    with in_account(account) as (here, operator):
        here.services.policies.delete(operator, policy_id)


@logins.command("list")
def list_logins(account: AccountOption = None, json: JsonOption = False) -> None:
    """List logins."""
    with in_account(account) as (here, operator):
        found = here.services.identities.logins(operator)
        columns = ("id", "method", "issuer", "claim", "value", "iam_id")
        show([{column: _text(getattr(one, column)) for column in columns} for one in found], json)


@logins.command("add")
def add_login(
    iam_id: IamId,
    claim: Annotated[str, typer.Argument(help="OIDC: a claim such as sub. Certificate: sha256, san:dns or san:uri.")],
    value: Annotated[str, typer.Argument(help="Its exact value.")],
    issuer: Annotated[str | None, typer.Option(help="URL of the OIDC issuer; left out for a certificate.")] = None,
    account: AccountOption = None,
) -> None:
    """Let who shows this claim in as this identity."""
    method = LoginMethod.CERTIFICATE if issuer is None else LoginMethod.OIDC
    if issuer is not None and issuer not in {one.issuer for one in load().oidc_issuers}:
        raise Invalid(f"{issuer} is not among the setting oidc_issuers. Add it there first.")
    with in_account(account) as (here, operator):
        typer.echo(here.services.identities.add_login(operator, iam_id, method, issuer or "", claim, value).id)


@logins.command("remove")
def remove_login(login_id: Id, account: AccountOption = None) -> None:
    """Remove a login."""
    with in_account(account) as (here, operator):
        here.services.identities.remove_login(operator, login_id)


def _list_identities(kind: IdentityKind, account: str | None, json: bool) -> None:
    with in_account(account) as (here, operator):
        show([_identity(one) for _, one in here.services.identities.list(operator, kind)], json)


def _identity(one: Identity) -> dict[str, Any]:
    return {
        "iam_id": one.iam_id,
        "name": one.name,
        "locked": one.locked,
        "acts for": ", ".join(one.source_crns),
        "created_at": one.created_at,
    }


def _api_key(one: ApiKey, use: ApiKeyUse | None) -> dict[str, Any]:
    return {
        "id": one.id,
        "iam_id": one.iam_id,
        "name": one.name,
        "locked": one.locked,
        "disabled": one.disabled,
        "expires_at": one.expires_at,
        "last_use": None if use is None else use.last_at,
    }


def _policy(one: Policy) -> dict[str, Any]:
    return {
        "id": one.id,
        "subject": one.subject.iam_id or one.subject.access_group_id,
        "roles": ", ".join(role.value for role in one.roles),
        "instance": one.scope.instance_id or "all",
        "key ring": one.scope.key_ring_id or "all",
        "key": one.scope.key_id or "all",
        "state": one.state.value,
    }


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _show_secret(label: str, secret: SecretText) -> None:
    typer.echo(f"{label}  {secret.reveal()}   (shown once)")
