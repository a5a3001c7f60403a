"""`hsmkms instances`: the tenants of this deployment."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hsmkms.cli.local import AccountOption, JsonOption, in_account, rooms, show
from hsmkms.domain.crn import instance_crn
from hsmkms.domain.tenants import Instance
from hsmkms.errors import NotFound

app = typer.Typer(help="Manage instances on this host's deployment.", no_args_is_help=True)

Guid = Annotated[str, typer.Argument(help="GUID of the instance.")]


@app.command("list")
def list_instances(json: JsonOption = False) -> None:
    """List the instances of every account."""
    with rooms() as here:
        show([_describe(instance) for instance in here.services.snapshot.all_instances()], json)


@app.command("show")
def show_instance(guid: Guid, json: JsonOption = False) -> None:
    """Show one instance."""
    with rooms() as here:
        found = here.services.snapshot.instance(guid.lower())
        if found is None:
            raise NotFound("instance")
        show([_describe(found)], json)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Name, 1 to 180 characters.")],
    region: Annotated[str, typer.Option(help="Region in its CRN.")] = "local",
    account: AccountOption = None,
    json: JsonOption = False,
) -> None:
    """Create an instance; --account may name a new account, whose administrator `hsmkms iam recover` makes."""
    with in_account(account) as (here, operator):
        show([_describe(here.services.instances.create(operator, name, region))], json)


@app.command("delete")
def delete(
    guid: Guid,
    force: Annotated[bool, typer.Option("--force", help="Also with keys in it.")] = False,
    confirm: Annotated[str | None, typer.Option(help="The instance's name, instead of being asked for it.")] = None,
) -> None:
    """Delete an instance. Its keys are out of reach at once; `restore` brings it back."""
    with rooms() as here:
        found = here.services.snapshot.instance(guid.lower())
        if found is None:
            raise NotFound("instance")
        typed = (
            confirm if confirm is not None else typer.prompt(f"Type the name of the instance ({found.name})", err=True)
        )
        if typed != found.name:
            raise typer.Abort
        operator = here.deployment.operator(found.account)
        here.services.instances.delete(operator, found.id, force=force, confirmation=found.id)


@app.command("restore")
def restore(guid: Guid, account: AccountOption = None) -> None:
    """Bring a deleted instance back with all its keys."""
    with in_account(account) as (here, operator):
        show([_describe(here.services.instances.restore(operator, guid.lower()))], json=False)


@app.command("open-network")
def open_network(guid: Guid) -> None:
    """Take away the policies allowedIP and allowedNetwork, for who locked himself out."""
    with rooms() as here:
        found = here.services.snapshot.instance(guid.lower())
        if found is None:
            raise NotFound("instance")
        here.services.instance_policies.open_network(here.deployment.operator(found.account), found.id)


def _describe(instance: Instance) -> dict[str, Any]:
    return {
        "guid": instance.id,
        "name": instance.name,
        "region": instance.region,
        "account": instance.account,
        "crn": instance_crn(instance.region, instance.account, instance.id),
    }
