"""A parsed KeyQuery as SQL conditions, and the ids of one page of it.

With 100,000 keys a page from the middle costs a sort of them all, unless an index has their order. There is one for the
id and one for each date (store/tables.py). What else leads an order (a state, a flag, whether there is a date) has few
values: keys are parted by them, and the sizes of the parts tell in which of them a page lies.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Select,
    String,
    and_,
    any_,
    case,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
)

from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.keys import KeyState
from hsmkms.domain.query import ALL_STATES, FilterTerm, KeyQuery, Search, SortTerm
from hsmkms.store import tables as t

Conditions = Sequence[ColumnElement[bool]]

_DATES: Final[dict[str, ColumnElement[Any]]] = {
    "creationDate": t.key.c.created_at,
    "deletionDate": t.key.c.deleted_at,
    "expirationDate": t.key.c.expires_at,
    "lastRotateDate": t.key.c.rotated_at,
    "lastUpdateDate": t.last_update,
}
_FLAGS: Final[dict[str, ColumnElement[bool]]] = {"extractable": t.key.c.extractable, "imported": t.key.c.imported}
_INDEXES: Final[dict[str, str]] = {
    "id": "ix_key_listing",
    "creationDate": "ix_key_listing_created",
    "deletionDate": "ix_key_listing_deleted",
    "expirationDate": "ix_key_listing_expires",
    "lastRotateDate": "ix_key_listing_rotated",
    "lastUpdateDate": "ix_key_listing_updated",
}
_NULLABLE: Final = ("deletionDate", "expirationDate", "lastRotateDate")
_STATES: Final = (KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.DESTROYED)
"""Of rows, in order: no key is in another one."""
_ID: Final = SortTerm("id", descending=False)
_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "eq": operator.eq,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}


def key_conditions(
    instance_id: str, query: KeyQuery, now: datetime, ring_ids: Iterable[str] | None
) -> list[ColumnElement[bool]]:
    """Everything a key must satisfy to be in the answer to `query` at `now`. `ring_ids` None means every ring."""
    conditions = [t.key.c.instance_id == instance_id, t.SEEN, *_in_states(query.states, now)]
    if ring_ids is not None:
        conditions.append(t.key.c.key_ring_id.in_(list(ring_ids)))
    if query.extractable is not None:
        conditions.append(t.key.c.extractable == query.extractable)
    for term in query.filters:
        conditions += _filter(term, now)
    if query.search is not None:
        conditions.append(_search(query.search))
    return conditions


def count_keys(connection: Connection, where: Conditions, most: int | None = None) -> int:
    """How many keys satisfy `where`; no more than `most` are counted."""
    if most is None:
        return int(connection.execute(_over("id", func.count()).where(*where)).scalar_one())
    some = _over("id", t.key.c.id).where(*where).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def key_ids(
    connection: Connection, where: Conditions, query: KeyQuery, now: datetime
) -> tuple[Sequence[str], int | None]:
    """The ids of one page of the keys that satisfy `where`, in order, and how many do where that is known by the way.

    Direct hits of a search come first, then the sort terms decide, then the id, so that pages never overlap.
    """
    if query.search is None:
        ids, counted = _page(connection, where, query.sort, query.limit, query.offset, now)
        is_last = len(ids) < query.limit and (ids or not query.offset)
        return ids, query.offset + len(ids) if is_last else counted
    # Few enough to read them all (KEY_SEARCH_TOO_BROAD).
    hit_first = [] if query.search.negated else [case((_direct_hit(query.search), 0), else_=1)]
    statement = _over("id", t.key.c.id).where(*where).order_by(*hit_first, *_order(query.sort, now))
    found = connection.execute(statement).scalars().all()
    return found[query.offset : query.offset + query.limit], len(found)


def among(connection: Connection, column: ColumnElement[str], ids: Sequence[str]) -> ColumnElement[bool]:
    """That a column has one of these values. PostgreSQL takes them as one parameter, which thousands need."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(ids), ARRAY(String)))
    return column.in_(ids)


def _over(prop: str, column: ColumnElement[Any]) -> Select[tuple[Any]]:
    """A statement over the index that has the order of `prop`. SQLite is told so, because it keeps no statistics and
    would rather take an index that a filter fits and sort what it finds; PostgreSQL has its own judgement."""
    return select(column).select_from(t.key).with_hint(t.key, f"INDEXED BY {_INDEXES[prop]}", "sqlite")


def _page(
    connection: Connection, where: Conditions, sort: Sequence[SortTerm], limit: int, offset: int, now: datetime
) -> tuple[list[str], int | None]:
    """The ids, and how many keys there are if they were counted."""
    first, rest = sort[0], sort[1:] or (_ID,)
    if first.prop in _INDEXES and first.prop not in _NULLABLE:
        return _straight(connection, where, sort, limit, offset, now), None
    parts = _parts(first, now)
    found: list[str] = []
    sizes = _sizes(connection, where, parts) if offset else [0] * len(parts)
    total = sum(sizes) if offset else None
    for part, size in zip(parts, sizes, strict=True):
        if offset and offset >= size:
            offset -= size
            continue
        inside, left = [*where, part], limit - len(found)
        if part is parts[0] and first.prop in _NULLABLE:
            found += _straight(connection, inside, sort, left, offset, now)
        else:
            found += _page(connection, inside, rest, left, offset, now)[0]
        offset = 0
        if len(found) == limit:
            break
    return found, total


def _straight(
    connection: Connection, where: Conditions, sort: Sequence[SortTerm], limit: int, offset: int, now: datetime
) -> list[str]:
    """A page in an order whose first term has an index."""
    ids = _over(sort[0].prop, t.key.c.id).where(*where).order_by(*_order(sort, now)).limit(limit).offset(offset)
    return list(connection.execute(ids).scalars())


def _parts(term: SortTerm, now: datetime) -> list[ColumnElement[bool]]:
    """What parts keys by a term, in its order. Keys without a date come last either way."""
    if term.prop in _NULLABLE:
        date = _DATES[term.prop]
        return [date.is_not(None), date.is_(None)]
    if term.prop in _FLAGS:
        flag = _FLAGS[term.prop]
        parts: list[ColumnElement[bool]] = [not_(flag), flag]
    else:
        parts = [and_(*_in_states(frozenset({int(state)}), now)) for state in _STATES]
    return parts[::-1] if term.descending else parts


def _sizes(connection: Connection, where: Conditions, parts: Conditions) -> list[int]:
    """How many keys are in each part."""
    counts = [func.coalesce(func.sum(case((part, 1), else_=0)), 0) for part in parts]
    statement = _over("id", counts[0]).add_columns(*counts[1:]).where(*where)
    return list(connection.execute(statement).one())


def _order(sort: Sequence[SortTerm], now: datetime) -> list[ColumnElement[Any]]:
    order: list[ColumnElement[Any]] = []
    for term in sort:
        if term.prop == "id":
            break
        column = _DATES.get(term.prop, _FLAGS.get(term.prop, _effective_state(now)))
        directed = column.desc() if term.descending else column.asc()
        order.append(directed.nulls_last() if term.prop in _NULLABLE else directed)
    by_id = t.key.c.id.desc() if any(term == SortTerm("id", descending=True) for term in sort) else t.key.c.id.asc()
    return [*order, by_id]


def _expired(now: datetime) -> ColumnElement[bool]:
    """An Active key whose expiration date has passed counts as Deactivated at once."""
    return and_(t.key.c.state == int(KeyState.ACTIVE), t.key.c.expires_at.is_not(None), t.key.c.expires_at <= now)


def _effective_state(now: datetime) -> ColumnElement[int]:
    return case((_expired(now), int(KeyState.DEACTIVATED)), else_=t.key.c.state)


def _in_states(states: frozenset[int], now: datetime) -> list[ColumnElement[bool]]:
    if states == ALL_STATES:
        return []
    stored = t.key.c.state.in_(sorted(states))
    # Whether an Active key has expired matters only to who asks for one of the two.
    if (KeyState.ACTIVE in states) == (KeyState.DEACTIVATED in states):
        return [stored]
    if KeyState.DEACTIVATED in states:
        return [or_(stored, _expired(now))]
    return [stored, not_(_expired(now))]


def _filter(term: FilterTerm, now: datetime) -> list[ColumnElement[bool]]:
    if isinstance(term.value, frozenset):
        return _in_states(term.value, now)
    column = _DATES.get(term.prop, t.key.c.extractable)
    if term.value is None:
        return [column.is_(None)]
    condition: ColumnElement[bool] = _OPERATORS[term.op](column, term.value)
    return [condition]


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
