"""What the commands share that work on this host's token and database without HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

import typer

from hsmkms.domain.access import Caller
from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.tenants import Instance
from hsmkms.errors import SettingsInvalid
from hsmkms.settings import load
from hsmkms.wiring import Rooms, configure_logs, open_rooms, pin_of

InstanceOption = Annotated[str | None, typer.Option("--instance", help="GUID of the instance, if there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Local:
    """Open rooms, the chosen instance, and the operator as its caller: who has the PIN and the files may do all."""

    rooms: Rooms
    instance: Instance
    caller: Caller


@contextmanager
def rooms() -> Iterator[Rooms]:
    """The rooms of this host's deployment."""
    configure_logs()
    settings = load()
    opened = open_rooms(settings, pin_of(settings))
    with opened.close:
        yield opened


@contextmanager
def local(instance_id: str | None) -> Iterator[Local]:
    """The rooms and an instance. Raises SettingsInvalid when it is not clear which."""
    with rooms() as opened:
        opened.deployment.require_founded()
        instance = _choose(opened.tenants.instances(), instance_id)
        expires_at = opened.services.clock() + timedelta(hours=1)
        yield Local(opened, instance, Caller("operator", "operator", instance.account, True, expires_at))


def _choose(instances: list[Instance], instance_id: str | None) -> Instance:
    if instance_id is None and len(instances) == 1:
        return instances[0]
    wanted = canonical_uuid(instance_id or "")
    found = [instance for instance in instances if instance.id == wanted]
    if not found:
        known = ", ".join(instance.id for instance in instances)
        raise SettingsInvalid(f"Choose an instance with --instance: {known}.")
    return found[0]
