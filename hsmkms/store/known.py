"""Values of a fixed set, as a column holds them: a damaged row is told apart from a fault of this program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hsmkms.errors import KeyIncomplete

Kind = TypeVar("Kind")


def known(kind: Callable[[Any], Kind], value: object) -> Kind:
    """A column's value as one of those that this version writes. Raises KeyIncomplete."""
    try:
        return kind(value)
    except ValueError as error:
        raise KeyIncomplete from error
