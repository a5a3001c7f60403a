"""Paging of the platform's lists: a page size, and a token that says where to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from fastapi import Request
from starlette.datastructures import URL

from hsmkms.errors import Invalid

T = TypeVar("T")

MAX_PAGE: Final = 1_000


def page_of(
    request: Request, found: Sequence[T], *, size: str, start: str, default: int, plain: bool = False
) -> tuple[Sequence[T], dict[str, Any]]:
    """One page of `found` and the members that lead on: `limit`, `offset`, `first` and, if there is more, `next`.

    `size` and `start` are the names of the query parameters; `plain` links are texts, as IAM Identity has them, the
    others objects. Raises Invalid.
    """
    limit, offset = _number(request, size, default), _number(request, start, 0)
    if not 1 <= limit <= MAX_PAGE:
        raise Invalid(f"The parameter {size} is a number from 1 to {MAX_PAGE}.")
    first = request.url.remove_query_params(start).include_query_params(**{size: limit})
    places: dict[str, Any] = {"limit": limit, "offset": offset, "first": _link(first, plain)}
    following = offset + limit
    if following < len(found):
        places["next"] = _link(first.include_query_params(**{start: following}), plain, start=str(following))
    return found[offset:following], places


def _link(url: URL, plain: bool, **more: str) -> str | dict[str, str]:
    href = f"{url.path}?{url.query}"
    return href if plain else {"href": href, **more}


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Invalid(f"The parameter {name} is a number.")
    return int(text)
