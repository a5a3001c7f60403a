"""Rules of keys: what each state permits, expiry, rotation, names (contract section 3, additions sections 4 and 5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.domain.ids import RESERVED_ALIASES, canonical_uuid, is_alias, is_key_ring_id, is_uuid, new_id
from hsmkms.domain.keys import (
    Key,
    KeyAction,
    KeyState,
    KeyVersion,
    effective_state,
    require_usable,
)
from hsmkms.domain.lifecycle import require_rotation_due
from hsmkms.domain.new_key import NewKey, require_valid
from hsmkms.domain.waits import Waits
from hsmkms.errors import HsmkmsError, InvalidField, KeyDeleted, KeyRootRequired, KeyStateConflict, RotationTooEarly

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
OLD = KeyVersion("00000000-0000-4000-8000-000000000001", NOW - 2 * HOUR, bytes(8), "instance key")
NEW = KeyVersion("00000000-0000-4000-8000-000000000002", NOW - HOUR, bytes(8), "instance key")

KEY = Key(
    id="00000000-0000-4000-8000-0000000000aa",
    instance_id="00000000-0000-4000-8000-0000000000bb",
    key_ring_id="default",
    name="a root key",
    description=None,
    tags=(),
    aliases=(),
    extractable=False,
    imported=False,
    state=KeyState.ACTIVE,
    created_at=NOW - 2 * HOUR,
    created_by="iam-ServiceId-1",
    updated_at=None,
    rotated_at=None,
    expires_at=None,
    deleted_at=None,
    deleted_by=None,
    versions=(NEW, OLD),
)

OK, CONFLICT, GONE = None, KeyStateConflict, KeyDeleted
STATE_TABLE: dict[KeyAction, tuple[type[HsmkmsError] | None, ...]] = {
    #                   Active, Suspended, Deactivated, Destroyed: states 1, 2, 3 and 5
    KeyAction.WRAP: (OK, CONFLICT, CONFLICT, GONE),
    KeyAction.UNWRAP: (OK, CONFLICT, OK, GONE),
    KeyAction.REWRAP: (OK, CONFLICT, OK, GONE),
    KeyAction.ROTATE: (OK, CONFLICT, OK, GONE),
    KeyAction.DISABLE: (OK, CONFLICT, CONFLICT, GONE),
    KeyAction.ENABLE: (CONFLICT, OK, CONFLICT, GONE),
}
"""Contract section 3 and additions section 4, copied by hand."""

CELLS = [
    pytest.param(action, KeyState(state), wanted, id=f"{action.value} in state {state}")
    for action, row in STATE_TABLE.items()
    for state, wanted in zip((1, 2, 3, 5), row, strict=True)
]
actions = pytest.mark.parametrize("action", list(KeyAction))


@pytest.mark.parametrize(("action", "state", "wanted"), CELLS)
def test_state_table(action: KeyAction, state: KeyState, wanted: type[HsmkmsError] | None) -> None:
    key = replace(KEY, state=state)
    if wanted is None:
        require_usable(key, action, NOW)
    else:
        with pytest.raises(wanted):
            require_usable(key, action, NOW)


def test_state_table_has_every_action() -> None:
    assert set(STATE_TABLE) == set(KeyAction)


@actions
def test_key_that_is_not_active_yet_does_nothing(action: KeyAction) -> None:
    with pytest.raises(KeyStateConflict):
        require_usable(replace(KEY, state=KeyState.PRE_ACTIVATION), action, NOW)


def test_conflict_reads_as_in_the_contract() -> None:
    with pytest.raises(KeyStateConflict) as caught:
        require_usable(replace(KEY, state=KeyState.SUSPENDED), KeyAction.WRAP, NOW)
    assert (caught.value.message, caught.value.code) == ("Key is not in active state", "KEY_ACTION_INVALID_STATE_ERR")


@actions
@pytest.mark.parametrize("state", [KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.DEACTIVATED])
def test_standard_key_is_no_root_key(action: KeyAction, state: KeyState) -> None:
    """400 KEY_ROOT_REQ_ERR, whatever the state."""
    with pytest.raises(KeyRootRequired):
        require_usable(replace(KEY, extractable=True, versions=(), state=state), action, NOW)


@actions
def test_deleted_standard_key_is_gone(action: KeyAction) -> None:
    with pytest.raises(KeyDeleted):
        require_usable(replace(KEY, extractable=True, versions=(), state=KeyState.DESTROYED), action, NOW)


def test_key_expires_at_its_date_not_after_it() -> None:
    """No job has to run for this: the date decides."""
    key = replace(KEY, expires_at=NOW)
    require_usable(key, KeyAction.WRAP, NOW - MOMENT)
    with pytest.raises(KeyStateConflict):
        require_usable(key, KeyAction.WRAP, NOW)
    require_usable(key, KeyAction.UNWRAP, NOW)
    assert (effective_state(key, NOW - MOMENT), effective_state(key, NOW)) == (KeyState.ACTIVE, KeyState.DEACTIVATED)


@pytest.mark.parametrize("state", [KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.DESTROYED])
def test_expiry_changes_active_keys_only(state: KeyState) -> None:
    assert effective_state(replace(KEY, state=state, expires_at=NOW - HOUR), NOW) is state


def test_rotation_needs_an_hour_since_the_last_one() -> None:
    require_rotation_due(replace(KEY, rotated_at=NOW - HOUR), Waits(), NOW)
    with pytest.raises(RotationTooEarly, match="after 2026-07-01T12:00:00Z"):
        require_rotation_due(replace(KEY, rotated_at=NOW - HOUR + MOMENT), Waits(), NOW)


def test_creation_is_no_rotation() -> None:
    require_rotation_due(replace(KEY, created_at=NOW, rotated_at=None), Waits(), NOW)


def test_newest_version_wraps_and_all_are_found() -> None:
    assert KEY.current is NEW
    assert (KEY.version(OLD.id), KEY.version(NEW.id), KEY.version(KEY.id)) == (OLD, NEW, None)
    assert KEY.is_root
    assert not replace(KEY, extractable=True).is_root


# What a caller may ask for when creating a key (contract section 1.1).

WISH = NewKey(name="a root key", description=None, tags=(), aliases=(), extractable=False, expires_at=None)


@pytest.mark.parametrize(
    "wish",
    [
        WISH,
        replace(WISH, name="ab"),
        replace(WISH, name="é" * 90),
        replace(WISH, description="ab"),
        replace(WISH, description="x" * 240),
        replace(WISH, tags=("t" * 30,) * 30),
        replace(WISH, aliases=("a1", "b-", "c_", "d" * 90, "E5")),
        replace(WISH, expires_at=NOW + MOMENT),
    ],
)
def test_wishes_at_the_bounds_are_granted(wish: NewKey) -> None:
    require_valid(wish, NOW)


@pytest.mark.parametrize(
    ("field", "wish"),
    [
        ("name", replace(WISH, name="")),
        ("name", replace(WISH, name="a")),
        ("name", replace(WISH, name="x" * 91)),
        ("name", replace(WISH, name="nul\0")),
        ("name", replace(WISH, name="half a pair \ud83d")),
        ("description", replace(WISH, description="")),
        ("description", replace(WISH, description="x" * 241)),
        ("tags", replace(WISH, tags=("t",) * 31)),
        ("tags", replace(WISH, tags=("t" * 31,))),
        *(("tags", replace(WISH, tags=(f"a{forbidden}b",))) for forbidden in "<>,:&|\0"),
        ("aliases", replace(WISH, aliases=("a1", "a2", "a3", "a4", "a5", "a6"))),
        ("aliases", replace(WISH, aliases=("same", "same"))),
        ("aliases", replace(WISH, aliases=("a",))),
        ("aliases", replace(WISH, aliases=("x" * 91,))),
        ("aliases", replace(WISH, aliases=("with space",))),
        ("aliases", replace(WISH, aliases=("ümlaut",))),
        ("aliases", replace(WISH, aliases=(KEY.id.upper(),))),
        ("expirationDate", replace(WISH, expires_at=NOW)),
    ],
)
def test_wishes_past_the_bounds_name_their_member(field: str, wish: NewKey) -> None:
    with pytest.raises(InvalidField) as caught:
        require_valid(wish, NOW)
    assert caught.value.target == field


# Identifiers: an alias can never be taken for an id or for a path of the API (contract section 1.5).


@given(st.uuids())
def test_no_uuid_is_an_alias(value: object) -> None:
    text = str(value)
    assert is_uuid(text)
    assert not is_alias(text)
    assert not is_alias(text.upper())
    assert canonical_uuid(text.upper()) == text


@pytest.mark.parametrize("word", sorted(RESERVED_ALIASES))
def test_reserved_words_are_no_aliases(word: str) -> None:
    assert not is_alias(word)
    assert not is_alias(word.upper())


def test_new_ids_are_canonical_and_differ() -> None:
    ids = {new_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(is_uuid(one) for one in ids)


@pytest.mark.parametrize(
    "text",
    ["", KEY.id[:-1], KEY.id + "0", "{" + KEY.id + "}", KEY.id.replace("-", ""), "urn:uuid:" + KEY.id, KEY.id + "\n"],
)
def test_only_canonical_text_is_a_uuid(text: str) -> None:
    assert not is_uuid(text)
    assert canonical_uuid(text) is None


@pytest.mark.parametrize(("text", "good"), [("ab", True), ("x" * 100, True), ("a-1", True), ("a", False)])
def test_key_ring_ids(text: str, good: bool) -> None:
    """2 to 100 letters, digits and `-`."""
    assert is_key_ring_id(text) is good
    assert not is_key_ring_id(text + "_")
    assert not is_key_ring_id(text + "\n")
    assert not is_key_ring_id("x" * 101)
