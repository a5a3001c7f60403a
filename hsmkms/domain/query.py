"""Query parameters of GET and HEAD /keys and of GET /keys/{id}/versions, parsed into values.

The grammar is contract section 1.1 ("List filters") and additions section 3.3; what clients really send is contract
section 0 trap 15 and additions section 1.4. Three of their habits shape the code: an empty value means absent (Python
sends `state=` on every list), `limit=0` means the default, and Go ends each search with a comma of its own making.

Nothing here matches, sorts or fetches. Every refusal is an InvalidQueryParam that names the parameter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hsmkms.errors import InvalidQueryParam

DEFAULT_LIMIT: Final = 200
MAX_LIMIT: Final = 5_000
MAX_OFFSET: Final = 2**31 - 1
ALL_STATES: Final = frozenset({0, 1, 2, 3, 5})
DEFAULT_STATES: Final = frozenset({1, 2, 3})
"""Pre-activation keys are never seen and destroyed keys are hidden unless asked for (additions section 3.3)."""

SEARCH_SCOPES: Final = ("name", "alias")
DATE_PROPS: Final = ("creationDate", "deletionDate", "expirationDate", "lastRotateDate", "lastUpdateDate")
FILTER_PROPS: Final = (*DATE_PROPS, "extractable", "state")
SORT_PROPS: Final = ("id", "state", "extractable", "imported", *DATE_PROPS)
DATE_OPS: Final = ("lt", "lte", "gt", "gte")
MAX_TERMS_PER_PROP: Final = 3

_SHOWN_CHARS: Final = 40
_SEARCH_PREFIXES: Final = ("not:", "exact:", "escape:", "alias:", "name:")
_STATE_BY_DIGIT: Final = {str(state): state for state in ALL_STATES}
_BOOLEANS: Final = {"true": True, "false": False}
_UNSTORABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
# datetime reads many more forms than RFC 3339, and not the same ones in each Python version: this lets only ours pass.
_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt](?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class SortTerm:
    """One property to sort on."""

    prop: str
    descending: bool


@dataclass(frozen=True, slots=True)
class FilterTerm:
    """One condition: `op` is eq, lt, lte, gt or gte; a `value` of None asks for keys that lack the property."""

    prop: str
    op: str
    value: datetime | bool | frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Search:
    """What metadata.searchQuery echoes: the bare text, and in which of name and alias to look (any one suffices)."""

    query: str
    scopes: tuple[str, ...]
    negated: bool
    exact: bool


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """A list of keys. A key has to satisfy `states`, `extractable`, `search` and every one of `filters`."""

    limit: int
    offset: int
    states: frozenset[int]
    extractable: bool | None
    search: Search | None
    sort: tuple[SortTerm, ...]
    filters: tuple[FilterTerm, ...]


@dataclass(frozen=True, slots=True)
class VersionQuery:
    """A list of a key's versions; without `all_key_states` the key has to be Active."""

    limit: int
    offset: int
    total_count: bool
    all_key_states: bool


def parse_key_query(params: Mapping[str, str]) -> KeyQuery:
    """The query of GET and HEAD /keys (contract section 1.1, additions section 3.3). Raises InvalidQueryParam.

    A filter on `state` replaces the default states, else `filter=state=5` could never find a key.
    """
    filters = _filters(params.get("filter", ""))
    filtered = {term.prop for term in filters}
    for name in ("extractable", "state"):
        if name in filtered and params.get(name):
            raise InvalidQueryParam("filter", f"Give {name} in filter or as its own parameter, not in both.")
    return KeyQuery(
        limit=_limit(params),
        offset=_offset(params),
        states=_states(params.get("state", ""), ALL_STATES if "state" in filtered else DEFAULT_STATES),
        extractable=flag_of(params, "extractable"),
        search=_search(params.get("search", "")),
        sort=_sort(params.get("sort", "")),
        filters=filters,
    )


def parse_version_query(params: Mapping[str, str]) -> VersionQuery:
    """The query of GET /keys/{id}/versions (contract section 1.1, additions section 0 row 10).

    Raises InvalidQueryParam.
    """
    return VersionQuery(
        limit=_limit(params),
        offset=_offset(params),
        total_count=flag_of(params, "totalCount") is True,
        all_key_states=flag_of(params, "allKeyStates") is True,
    )


def page_of(params: Mapping[str, str]) -> tuple[int, int]:
    """`limit` and `offset` of every list of the key API. Raises InvalidQueryParam."""
    return _limit(params), _offset(params)


def _limit(params: Mapping[str, str]) -> int:
    return integer_of(params, "limit", MAX_LIMIT) or DEFAULT_LIMIT


def _offset(params: Mapping[str, str]) -> int:
    return integer_of(params, "offset", MAX_OFFSET)


def integer_of(params: Mapping[str, str], name: str, greatest: int) -> int:
    """A whole number in plain ASCII digits; 0 when absent. Raises InvalidQueryParam."""
    text = params.get(name, "")
    if not text:
        return 0
    # Length and script come first: int() refuses thousands of digits with its own error and reads digits of any script.
    if len(text) <= len(str(greatest)) and text.isascii() and text.isdigit() and int(text) <= greatest:
        return int(text)
    raise InvalidQueryParam(name, f"Give {name} as a whole number from 0 to {greatest}.")


def flag_of(params: Mapping[str, str], name: str) -> bool | None:
    """True, false, or None when absent. Raises InvalidQueryParam."""
    text = params.get(name, "")
    if not text:
        return None
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise InvalidQueryParam(name, f"Give {name} as true or false.")
    return value


def _states(text: str, default: frozenset[int]) -> frozenset[int]:
    return _state_list("state", text) if text else default


def _state_list(name: str, text: str) -> frozenset[int]:
    """Comma list of states; `name` is the parameter to blame, `state` or `filter`."""
    items = frozenset(text.split(","))
    if not items <= _STATE_BY_DIGIT.keys():
        raise InvalidQueryParam(
            name, "Give state as numbers out of 0, 1, 2, 3 and 5 with commas between, without blanks or a last comma."
        )
    return frozenset(_STATE_BY_DIGIT[item] for item in items)


def _search(text: str) -> Search | None:
    """Take the options off the front of a search term (contract section 1.1, trap 15)."""
    text = text.removesuffix(",")
    if not text:
        return None
    given: set[str] = set()
    start = 0
    # Moving an index, not cutting the text: a megabyte of prefixes costs one pass.
    while "escape:" not in given:
        prefix = next((p for p in _SEARCH_PREFIXES if text.startswith(p, start)), None)
        if prefix is None:
            break
        given.add(prefix)
        start += len(prefix)
    query = text[start:]
    if not query:
        raise InvalidQueryParam("search", "Put the text to look for after the search options.")
    if _UNSTORABLE.search(query):  # such text is in no key, and a database refuses to be asked for it
        raise InvalidQueryParam("search", "Take the characters that are not valid text out of search.")
    scopes = tuple(scope for scope in SEARCH_SCOPES if f"{scope}:" in given)
    return Search(query, scopes or SEARCH_SCOPES, negated="not:" in given, exact="exact:" in given)


def _sort(text: str) -> tuple[SortTerm, ...]:
    """Comma list of properties. Only a property's first mention has an effect, so the others are dropped."""
    terms: dict[str, SortTerm] = {}
    for item in (text or "id").split(","):
        prop = item.removeprefix("-")
        if prop not in SORT_PROPS:
            raise InvalidQueryParam(
                "sort", f"Replace {_shown(prop)} in sort by one of {', '.join(SORT_PROPS)}, with commas between."
            )
        terms.setdefault(prop, SortTerm(prop, descending=item != prop))
    return tuple(terms.values())


def _filters(text: str) -> tuple[FilterTerm, ...]:
    """Terms with blanks between; no value holds a blank, and Go's builder starts with one (contract trap 15)."""
    terms: list[FilterTerm] = []
    seen: Counter[str] = Counter()
    for item in filter(None, text.split(" ")):
        term = _filter_term(item)
        seen[term.prop] += 1
        if seen[term.prop] > MAX_TERMS_PER_PROP:
            raise InvalidQueryParam("filter", f"Give {term.prop} at most {MAX_TERMS_PER_PROP} times in filter.")
        terms.append(term)
    return tuple(terms)


def _filter_term(item: str) -> FilterTerm:
    prop, _, value = item.partition("=")
    if prop in DATE_PROPS:
        return _date_term(prop, value)
    if prop == "state":
        return FilterTerm(prop, "eq", _state_list("filter", value))
    if prop != "extractable":
        raise InvalidQueryParam(
            "filter", f"Replace {_shown(prop)} in filter by one of {', '.join(FILTER_PROPS)}, then = and a value."
        )
    wanted = _BOOLEANS.get(value.lower())
    if wanted is None:
        raise InvalidQueryParam("filter", "Give extractable in filter as true or false.")
    return FilterTerm(prop, "eq", wanted)


def _date_term(prop: str, value: str) -> FilterTerm:
    """`"date"`, `op:"date"` or `none`; nothing is before or after a date that is not there, so `none` takes no op."""
    if value.lower() == "none":
        return FilterTerm(prop, "eq", None)
    op, colon, date = value.partition(":")
    if not colon or op not in DATE_OPS:
        op, date = "eq", value
    moment = _moment(date[1:-1]) if len(date) > 1 and date[0] == date[-1] == '"' else None
    if moment is None:
        raise InvalidQueryParam(
            "filter",
            f'Give {prop} in filter as none or as an RFC 3339 date in double quotes, such as "2022-02-15T00:00:00Z",'
            " after lt:, lte:, gt:, gte: or no operator, with %2B for a plus sign.",
        )
    return FilterTerm(prop, op, moment)


def _moment(text: str) -> datetime | None:
    """An RFC 3339 date in UTC. Go sends nanoseconds, which datetime cuts to the microseconds that the store keeps."""
    if _RFC_3339.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # no such day, or the offset leads out of the years 1 to 9999
        return None


def _shown(text: str) -> str:
    """A caller's word, short and in ASCII: an answer or a log line must survive whatever it is."""
    return ascii(text[:_SHOWN_CHARS])
