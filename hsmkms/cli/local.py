"""What the commands share that work on this host's token and database without HTTP."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from hsmkms.cli.command import COMMAND
from hsmkms.cli.output import JsonOption as JsonOption
from hsmkms.cli.output import show as show
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.tenants import Instance
from hsmkms.errors import SettingsInvalid
from hsmkms.service.acts import Act
from hsmkms.settings import load
from hsmkms.wiring import Rooms, configure_logs, open_rooms, pin_of

InstanceOption = Annotated[str | None, typer.Option("--instance", help="GUID of the instance, if there are several.")]
AccountOption = Annotated[str | None, typer.Option("--account", help="Account, if there are several.")]


@dataclass(frozen=True, slots=True)
class Local:
    """Open rooms, the chosen instance, and the operator as its caller: who has the PIN and the files may do all."""

    rooms: Rooms
    instance: Instance
    caller: Caller
    act: Act

    def does(self, action: Action, reference: str | None = None) -> AbstractContextManager[Act]:
        """Record what the command does to a key or to the instance, as a call over HTTP would be."""
        return self.rooms.services.trail.operation(self.act, action, self.instance.id, reference)


@contextmanager
def rooms() -> Iterator[Rooms]:
    """The rooms of this host's deployment."""
    with _rooms() as (opened, _):
        yield opened


@contextmanager
def recorded(opened: Rooms) -> Iterator[Act]:
    """The command that runs, recorded around the block."""
    with opened.services.trail.operator(COMMAND.get(), getpass.getuser()) as act:
        yield act


@contextmanager
def _rooms() -> Iterator[tuple[Rooms, Act]]:
    settings = load()
    configure_logs(settings)
    opened = open_rooms(settings, pin_of(settings))
    with opened.close, recorded(opened) as act:
        yield opened, act


@contextmanager
def local(instance_id: str | None) -> Iterator[Local]:
    """The rooms and an instance. Raises SettingsInvalid when it is not clear which."""
    with _rooms() as (opened, act):
        opened.deployment.require_founded()
        instance = _choose(opened.services.snapshot.all_instances(), instance_id)
        act.instance_id = instance.id
        yield Local(opened, instance, opened.deployment.operator(instance.account), act)


@contextmanager
def in_account(account: str | None) -> Iterator[tuple[Rooms, Caller]]:
    """The rooms and the operator in an account. Raises SettingsInvalid when it is not clear which."""
    with rooms() as opened:
        opened.deployment.require_founded()
        known = list(dict.fromkeys(one.account for one in opened.services.snapshot.all_instances()))
        if account is None and len(known) != 1:
            raise SettingsInvalid(f"Choose an account with --account: {', '.join(known)}.")
        yield opened, opened.deployment.operator(account or known[0])


def _choose(instances: list[Instance], instance_id: str | None) -> Instance:
    if instance_id is None and len(instances) == 1:
        return instances[0]
    wanted = canonical_uuid(instance_id or "")
    found = [instance for instance in instances if instance.id == wanted]
    if not found:
        known = ", ".join(instance.id for instance in instances)
        raise SettingsInvalid(f"Choose an instance with --instance: {known}.")
    return found[0]
