"""Commands whose modules are imported when they are asked for: a plugin beside kube-apiserver has no use for the rooms
of the service, and a process that loads them all takes a second to start."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup


def group_of(modules: Mapping[str, str]) -> type[TyperGroup]:
    """A group with these commands: `<module>:<attribute>` by name, where the attribute is a group or a function."""

    class LazyGroup(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [*modules, *super().list_commands(ctx)]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in self.commands and cmd_name in modules:
                self.commands[cmd_name] = _load(cmd_name, modules[cmd_name])
            return super().get_command(ctx, cmd_name)

    return LazyGroup


def _load(name: str, place: str) -> Any:
    module, attribute = place.split(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        command, found = found, typer.Typer(add_completion=False)
        found.command(name)(command)
    loaded = typer.main.get_command(found)
    loaded.name = name
    return loaded
