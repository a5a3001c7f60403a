"""Query parameters of key lists: what clients really send, what is refused, and that no other error escapes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hsmkms.domain.query import (
    ALL_STATES,
    DATE_OPS,
    DATE_PROPS,
    SORT_PROPS,
    FilterTerm,
    KeyQuery,
    Search,
    SortTerm,
    VersionQuery,
    parse_key_query,
    parse_version_query,
)
from hsmkms.errors import InvalidQueryParam

DAY = datetime(2022, 2, 15, tzinfo=UTC)
DEFAULT = KeyQuery(
    limit=200,
    offset=0,
    states=frozenset({1, 2, 3}),
    extractable=None,
    search=None,
    sort=(SortTerm("id", descending=False),),
    filters=(),
)
BOTH = ("name", "alias")
KEY_PARAMS = ("limit", "offset", "state", "extractable", "search", "sort", "filter")
VERSION_PARAMS = ("limit", "offset", "totalCount", "allKeyStates")


def refusal(name: str, value: str) -> InvalidQueryParam:
    """The error that this one parameter of a key list raises."""
    with pytest.raises(InvalidQueryParam) as caught:
        parse_key_query({name: value})
    assert caught.value.target == name
    return caught.value


def filters(text: str) -> tuple[FilterTerm, ...]:
    return parse_key_query({"filter": text}).filters


def search(text: str) -> Search | None:
    return parse_key_query({"search": text}).search


def test_nothing_asked_gives_the_defaults() -> None:
    assert parse_key_query({}) == DEFAULT
    assert parse_version_query({}) == VersionQuery(200, 0, total_count=False, all_key_states=False)


@pytest.mark.parametrize("name", KEY_PARAMS)
def test_an_empty_value_means_absent(name: str) -> None:
    assert parse_key_query({name: ""}) == DEFAULT


@pytest.mark.parametrize("name", VERSION_PARAMS)
def test_an_empty_value_means_absent_for_versions(name: str) -> None:
    assert parse_version_query({name: ""}) == parse_version_query({})


def test_unknown_parameters_are_ignored() -> None:
    assert parse_key_query({"colour": "red", "State": "9", "totalCount": "perhaps"}) == DEFAULT
    assert parse_version_query({"state": "9"}) == parse_version_query({})


def test_results_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULT.limit = 1  # type: ignore[misc]


@pytest.mark.parametrize(("text", "limit"), [("0", 200), ("1", 1), ("5000", 5000), ("0005", 5)])
def test_limit(text: str, limit: int) -> None:
    assert parse_key_query({"limit": text, "offset": "0"}).limit == limit
    assert parse_version_query({"limit": text}).limit == limit


@pytest.mark.parametrize("text", ["5001", "-1", "+1", " 1", "1 ", "1.0", "1_0", "0x1", "ten", "٣", "²", "9" * 5000])
def test_limit_refused(text: str) -> None:
    refusal("limit", text)


def test_offset() -> None:
    assert parse_key_query({"offset": "2147483647"}).offset == 2**31 - 1
    assert parse_version_query({"offset": "7"}).offset == 7


@pytest.mark.parametrize("text", ["2147483648", "-1", "4294967295", "1e3", "9" * 5000])
def test_offset_refused(text: str) -> None:
    refusal("offset", text)


@pytest.mark.parametrize(
    ("text", "states"), [("5", {5}), ("1,5", {1, 5}), ("5,3,2,1,0", {0, 1, 2, 3, 5}), ("1,1", {1})]
)
def test_state(text: str, states: set[int]) -> None:
    assert parse_key_query({"state": text}).states == states


@pytest.mark.parametrize("text", ["4", "6", "1,", ",1", ",", "1, 5", " 1", "1;5", "01", "-1", "\uff11", "active"])
def test_state_refused(text: str) -> None:
    refusal("state", text)


@pytest.mark.parametrize(("text", "wanted"), [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_booleans(text: str, wanted: bool) -> None:
    assert parse_key_query({"extractable": text}).extractable is wanted
    versions = parse_version_query({"totalCount": text, "allKeyStates": text})
    assert (versions.total_count, versions.all_key_states) == (wanted, wanted)


@pytest.mark.parametrize("text", ["1", "yes", " true", "t", "none"])
def test_booleans_refused(text: str) -> None:
    refusal("extractable", text)
    for name in ("totalCount", "allKeyStates"):
        with pytest.raises(InvalidQueryParam) as caught:
            parse_version_query({name: text})
        assert caught.value.target == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("foobar", Search("foobar", BOTH, negated=False, exact=False)),
        ("foobar,", Search("foobar", BOTH, negated=False, exact=False)),
        ("foobar,,", Search("foobar,", BOTH, negated=False, exact=False)),
        ("Foo bar", Search("Foo bar", BOTH, negated=False, exact=False)),
        ("not:exact:foobar", Search("foobar", BOTH, negated=True, exact=True)),
        ("exact:not:foobar", Search("foobar", BOTH, negated=True, exact=True)),
        ("escape:not:", Search("not:", BOTH, negated=False, exact=False)),
        ("escape:escape:", Search("escape:", BOTH, negated=False, exact=False)),
        ("exact:escape:not:foobar,", Search("not:foobar", BOTH, negated=False, exact=True)),
        ("not:alias:foobar", Search("foobar", ("alias",), negated=True, exact=False)),
        ("alias:not:foobar", Search("foobar", ("alias",), negated=True, exact=False)),
        ("name:exact:foobar", Search("foobar", ("name",), negated=False, exact=True)),
        ("alias:name:foobar", Search("foobar", BOTH, negated=False, exact=False)),
        ("not:not:foobar", Search("foobar", BOTH, negated=True, exact=False)),
        ("NOT:foobar", Search("NOT:foobar", BOTH, negated=False, exact=False)),
        ("foo:not:bar", Search("foo:not:bar", BOTH, negated=False, exact=False)),
    ],
)
def test_search(text: str, expected: Search) -> None:
    assert search(text) == expected


def test_search_with_only_the_comma_of_go_is_absent() -> None:
    assert search(",") is None


@pytest.mark.parametrize("text", ["not:", "alias:name:,", "escape:", "a\x00b", "\ud800", "name:\udfff"])
def test_search_refused(text: str) -> None:
    refusal("search", text)


@pytest.mark.parametrize("prop", SORT_PROPS)
def test_sort_on_each_property(prop: str) -> None:
    assert parse_key_query({"sort": prop}).sort == (SortTerm(prop, descending=False),)
    assert parse_key_query({"sort": f"-{prop}"}).sort == (SortTerm(prop, descending=True),)


def test_sort_keeps_the_order_and_the_first_mention() -> None:
    expected = (SortTerm("state", descending=True), SortTerm("id", descending=False))
    assert parse_key_query({"sort": "-state,id"}).sort == expected
    assert parse_key_query({"sort": "-state,id,state,-id" + ",id" * 10_000}).sort == expected


@pytest.mark.parametrize("text", ["name", "ID", "id,", ",id", "-", "--id", "+id", "id, state", "id;drop table keys"])
def test_sort_refused(text: str) -> None:
    refusal("sort", text)


@pytest.mark.parametrize("prop", DATE_PROPS)
def test_filter_on_each_date(prop: str) -> None:
    assert filters(f'{prop}="2022-02-15T00:00:00Z"') == (FilterTerm(prop, "eq", DAY),)
    assert filters(f"{prop}=none") == filters(f"{prop}=NONE") == (FilterTerm(prop, "eq", None),)
    for op in DATE_OPS:
        assert filters(f'{prop}={op}:"2022-02-15T00:00:00Z"') == (FilterTerm(prop, op, DAY),)


def test_filter_with_several_terms_as_documented() -> None:
    assert filters('lastRotateDate="2022-02-15T00:00:00Z" state=0,1,2,3,5 extractable=False') == (
        FilterTerm("lastRotateDate", "eq", DAY),
        FilterTerm("state", "eq", frozenset({0, 1, 2, 3, 5})),
        FilterTerm("extractable", "eq", False),
    )


def test_filter_as_the_go_builder_writes_it() -> None:
    text = ' creationDate=gte:"2022-02-15T05:30:00.123456789+05:30" creationDate=lt:"2022-02-15T01:00:00.5-07:00"'
    first, second = filters(text)
    assert first == FilterTerm("creationDate", "gte", DAY.replace(microsecond=123456))
    assert second == FilterTerm("creationDate", "lt", DAY.replace(hour=8, microsecond=500_000))
    assert isinstance(first.value, datetime)
    assert first.value.tzinfo is UTC


@pytest.mark.parametrize("fraction", ["", ".9", ".99", ".9999999", ".999999999"])
@pytest.mark.parametrize("zone", ["Z", "z", "+00:00", "-00:00"])
def test_dates_are_cut_never_rounded(fraction: str, zone: str) -> None:
    (term,) = filters(f'creationDate="2022-02-15t00:00:00{fraction}{zone}"')
    assert term.value == DAY.replace(microsecond=int(fraction[1:7].ljust(6, "0")))


def test_filter_of_blanks_is_absent_and_blanks_may_be_many() -> None:
    assert filters("   ") == ()
    assert filters("  state=1   extractable=true ") == filters("state=1 extractable=true")


def test_filter_on_state_replaces_the_default_states() -> None:
    assert parse_key_query({"filter": "state=5", "state": ""}).states == ALL_STATES
    assert parse_key_query({"filter": "extractable=true", "state": "5"}).states == {5}


@pytest.mark.parametrize(
    "params", [{"state": "1", "filter": "state=1"}, {"extractable": "true", "filter": "extractable=true"}]
)
def test_filter_and_own_parameter_exclude_each_other(params: dict[str, str]) -> None:
    with pytest.raises(InvalidQueryParam) as caught:
        parse_key_query(params)
    assert caught.value.target == "filter"


@pytest.mark.parametrize("term", ["state=1", "extractable=true", "expirationDate=none"])
def test_filter_takes_a_property_three_times(term: str) -> None:
    assert len(filters(" ".join([term] * 3))) == 3
    refusal("filter", " ".join([term] * 4))


@pytest.mark.parametrize(
    "text",
    [
        "state",
        "state=",
        "state=1,",
        "state=gt:1",
        "state=none",
        "extractable=",
        "extractable=none",
        "extractable=gt:true",
        "=1",
        "name=foo",
        "CreationDate=none",
        "state=1\textractable=true",
        "creationDate",
        "creationDate=",
        "creationDate=gt:none",
        "creationDate=gt:",
        'creationDate="',
        'creationDate=""',
        "creationDate=2022-02-15T00:00:00Z",
        'creationDate="2022-02-15"',
        'creationDate="2022-02-15T00:00:00"',
        'creationDate="2022-02-15 00:00:00Z"',
        'creationDate="2022-02-15T00:00:00 05:30"',
        'creationDate="2022-02-15_00:00:00Z"',
        'creationDate="20220215T000000Z"',
        'creationDate="2022-W07-2T00:00:00Z"',
        'creationDate="2022-02-30T00:00:00Z"',
        'creationDate="2022-02-15T24:00:00Z"',
        'creationDate="2022-02-15T00:00:60Z"',
        'creationDate="2022-02-15T00:00:00+24:00"',
        'creationDate="2022-02-15T00:00:00+01:60"',
        'creationDate="2022-02-15T00:00:00+01:30:15"',
        'creationDate="2022-02-15T00:00:00.Z"',
        'creationDate="2022-02-15T00:00:00.1234567890Z"',
        'creationDate="0000-01-01T00:00:00Z"',
        'creationDate="0001-01-01T00:00:00+00:01"',
        'creationDate="9999-12-31T23:59:59-00:01"',
        'creationDate="\uff12022-02-15T00:00:00Z"',
        'creationDate=ne:"2022-02-15T00:00:00Z"',
        'creationDate=eq:"2022-02-15T00:00:00Z"',
        'creationDate=gt:lt:"2022-02-15T00:00:00Z"',
        "creationDate=“2022-02-15T00:00:00Z”",
    ],
)
def test_filter_refused(text: str) -> None:
    refusal("filter", text)


@given(
    moment=st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)),  # noqa: DTZ001
    offset=st.integers(-1439, 1439),
    nanos=st.integers(0, 999),
)
def test_a_date_of_any_zone_becomes_the_same_moment_in_utc(moment: datetime, offset: int, nanos: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    head, zone = aware.isoformat(timespec="microseconds")[:26], aware.isoformat()[-6:]
    assert filters(f'deletionDate=lt:"{head}{nanos:03}{zone}"') == (FilterTerm("deletionDate", "lt", aware),)


@pytest.mark.parametrize("name", KEY_PARAMS[:4] + KEY_PARAMS[5:])
@pytest.mark.parametrize("char", ["☃", "\ud800", "\n", "9"])
def test_messages_are_one_short_printable_sentence(name: str, char: str) -> None:
    message = refusal(name, char * 1000).message
    assert message.isascii()
    assert message.isprintable()
    assert message.endswith(".")
    assert ". " not in message
    assert message.count(ascii(char)[1:-1]) <= 42  # 40 of the input, and the digits of our own words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("search", "not:" * 500_000 + "x"),
        ("filter", " " * 1_000_000),
        ("filter", 'creationDate="' + "9" * 1_000_000),
        ("filter", 'creationDate="2022-02-15T00:00:00.' + "9" * 1_000_000 + '"'),
        ("state", "1," * 500_000 + "1"),
        ("sort", "id," * 300_000 + "id"),
    ],
)
def test_long_input_costs_linear_time(name: str, text: str) -> None:
    started = time.perf_counter()
    with suppress(InvalidQueryParam):
        parse_key_query({name: text})
    assert time.perf_counter() - started < 5  # a quadratic parser needs minutes for these


ANY_TEXT = st.text(st.characters(exclude_categories=()))
PREFIXES = ["not:", "exact:", "escape:", "alias:", "name:", "lt:", "gte:", "state=", "extractable=", "creationDate="]
VALUES = ["none", "true", "1", "5", "4", "id", "-state", '"', ",", ":", "=", " ", "\x00", "\ud800", "٣"]
DATES = ["2022-02-15T00:00:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59", ".123456789", "Z", "+05:30", "-23:59"]
NEAR_MISS = st.lists(st.sampled_from(PREFIXES + VALUES + DATES), max_size=12).map("".join)
HOSTILE = st.one_of(ANY_TEXT, NEAR_MISS)


@given(st.dictionaries(st.one_of(st.sampled_from(KEY_PARAMS + VERSION_PARAMS), ANY_TEXT), HOSTILE))
@example({"limit": "9" * 5000})
@example({"filter": 'creationDate="0001-01-01T00:00:00+23:59"'})
def test_only_the_refusal_escapes(params: dict[str, str]) -> None:
    for parse in (parse_key_query, parse_version_query):
        with suppress(InvalidQueryParam):
            query = parse(params)
            assert 1 <= query.limit <= 5000
            assert 0 <= query.offset < 2**31


@pytest.mark.parametrize("name", KEY_PARAMS)
@given(text=HOSTILE)
def test_what_one_parameter_yields_is_within_the_contract(name: str, text: str) -> None:
    try:
        query = parse_key_query({name: text})
    except InvalidQueryParam as refused:
        blamed, message = refused.target, refused.message
        assert (blamed, message.isascii()) == (name, True)
        return
    assert query.states
    assert query.states <= ALL_STATES
    assert query.sort
    assert {term.prop for term in query.sort} <= set(SORT_PROPS)
    assert len({term.prop for term in query.sort}) == len(query.sort)
    for term in query.filters:
        assert term.op in ("eq", *DATE_OPS)
        assert not isinstance(term.value, datetime) or term.value.tzinfo is UTC
    assert query.search is None or (query.search.query and query.search.query.encode())


@given(options=st.permutations(["not:", "exact:", "alias:", "name:"]), text=st.text("abc:,", min_size=1))
def test_search_options_have_no_order_and_escape_ends_them(options: list[str], text: str) -> None:
    assert search("".join(options) + "escape:" + text + ",") == Search(text, BOTH, negated=True, exact=True)
