"""A parsed KeyQuery as SQL conditions and order."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, exists, func, literal, not_, or_, select

from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.keys import KeyState
from hsmkms.domain.query import FilterTerm, KeyQuery, Search
from hsmkms.store import tables as t

_DATES: Final[dict[str, ColumnElement[Any]]] = {
    "creationDate": t.key.c.created_at,
    "deletionDate": t.key.c.deleted_at,
    "expirationDate": t.key.c.expires_at,
    "lastRotateDate": t.key.c.rotated_at,
    # A key that was never changed shows its creation as its last update.
    "lastUpdateDate": func.coalesce(t.key.c.updated_at, t.key.c.created_at, type_=t.UtcTime()),
}
_PLAIN: Final[dict[str, ColumnElement[Any]]] = {
    "id": t.key.c.id,
    "extractable": t.key.c.extractable,
    "imported": t.key.c.imported,
}
_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "eq": operator.eq,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


def key_conditions(instance_id: str, query: KeyQuery, now: datetime) -> list[ColumnElement[bool]]:
    """Everything a key must satisfy to be in the answer to `query` at `now`."""
    here = (t.key.c.instance_id == instance_id, t.key.c.purge_began_at.is_(None))
    conditions = [*here, _in_states(query.states, now)]
    if query.extractable is not None:
        conditions.append(t.key.c.extractable == query.extractable)
    conditions += [_filter(term, now) for term in query.filters]
    if query.search is not None:
        conditions.append(_search(query.search))
    return conditions


def key_order(query: KeyQuery, now: datetime) -> list[ColumnElement[Any]]:
    """Direct hits of a search first, then the sort terms, then the id so that pages never overlap."""
    order: list[ColumnElement[Any]] = []
    if query.search is not None and not query.search.negated:
        order.append(case((_direct_hit(query.search), 0), else_=1))
    for term in query.sort:
        column = _DATES.get(term.prop, _PLAIN.get(term.prop, _effective_state(now)))
        order.append((column.desc() if term.descending else column.asc()).nulls_last())
    return [*order, t.key.c.id.asc()]


def _expired(now: datetime) -> ColumnElement[bool]:
    """An Active key whose expiration date has passed counts as Deactivated at once."""
    return and_(t.key.c.state == int(KeyState.ACTIVE), t.key.c.expires_at.is_not(None), t.key.c.expires_at <= now)


def _effective_state(now: datetime) -> ColumnElement[int]:
    return case((_expired(now), int(KeyState.DEACTIVATED)), else_=t.key.c.state)


def _in_states(states: frozenset[int], now: datetime) -> ColumnElement[bool]:
    expired = _expired(now)
    conditions = [and_(t.key.c.state.in_(sorted(states)), not_(expired))]
    if KeyState.DEACTIVATED in states:
        conditions.append(expired)
    return or_(*conditions)


def _filter(term: FilterTerm, now: datetime) -> ColumnElement[bool]:
    if isinstance(term.value, frozenset):
        return _in_states(term.value, now)
    column = _DATES.get(term.prop, t.key.c.extractable)
    if term.value is None:
        return column.is_(None)
    condition: ColumnElement[bool] = _OPERATORS[term.op](column, term.value)
    return condition


def _search(search: Search) -> ColumnElement[bool]:
    folded = search.query.casefold()
    aliases = t.key_alias.c
    alias = func.lower(aliases.alias)
    in_name = t.key.c.name_folded == folded if search.exact else t.key.c.name_folded.contains(folded, autoescape=True)
    in_alias = alias == folded if search.exact else alias.contains(folded, autoescape=True)
    found: list[ColumnElement[bool]] = []
    if "name" in search.scopes:
        found.append(in_name)
    if "alias" in search.scopes:
        found.append(exists(select(literal(1)).where(aliases.key_id == t.key.c.id, in_alias)))
    found.append(_direct_hit(search))
    matched = or_(*found)
    return not_(matched) if search.negated else matched


def _direct_hit(search: Search) -> ColumnElement[bool]:
    """The search text is a whole key id or an alias (additions section 3.3)."""
    hit = exists(select(literal(1)).where(t.key_alias.c.key_id == t.key.c.id, t.key_alias.c.alias == search.query))
    key_id = canonical_uuid(search.query)
    return hit if key_id is None else or_(hit, t.key.c.id == key_id)
