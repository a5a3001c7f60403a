"""The state table and the waits of contract section 3 and additions section 5, as plain rules against the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.domain import lifecycle
from hsmkms.domain.key_policies import KeyPolicy, KeyPolicyKind, KeyPolicyWish, merged
from hsmkms.domain.keys import Key, KeyAction, KeyState, KeyVersion, require_usable
from hsmkms.domain.waits import Waits
from hsmkms.errors import (
    AuthorizationsNotMet,
    HsmkmsError,
    InvalidField,
    KeyDeleted,
    KeyExpired,
    KeyRestoreExpired,
    KeyStateConflict,
    NotDualAuth,
    TooEarly,
)

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
WAITS = Waits()
DUAL = KeyPolicy("p", KeyPolicyKind.DUAL_AUTH_DELETE, True, None, NOW, "x", NOW, "x")
KEY = Key(
    id="00000000-0000-4000-8000-000000000003",
    instance_id="i",
    key_ring_id="default",
    name="key",
    description=None,
    tags=(),
    aliases=(),
    extractable=False,
    imported=False,
    state=KeyState.ACTIVE,
    created_at=NOW - timedelta(days=400),
    created_by="x",
    updated_at=None,
    rotated_at=None,
    expires_at=None,
    deleted_at=None,
    deleted_by=None,
    versions=(KeyVersion("00000000-0000-4000-8000-000000000001", NOW, bytes(8), "i k"),),
)
SECOND = timedelta(seconds=1)
STATES = [KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.DEACTIVATED, KeyState.DESTROYED]


def outcome(check: Callable[[], object]) -> type[HsmkmsError] | None:
    """What a check raises, if anything."""
    try:
        check()
    except HsmkmsError as error:
        return type(error)
    return None


@pytest.mark.parametrize("state", STATES)
def test_state_table(state: KeyState) -> None:
    """Each action in each state, long after everything; the table of contract section 3."""
    deleted_at = NOW - timedelta(days=1) if state is KeyState.DESTROYED else None
    key = replace(KEY, state=state, deleted_at=deleted_at, policies=(DUAL,))
    found = {
        "disable": outcome(lambda: require_usable(key, KeyAction.DISABLE, NOW)),
        "enable": outcome(lambda: lifecycle.require_enable(key, WAITS, NOW)),
        "restore": outcome(lambda: lifecycle.require_restore(key, WAITS, NOW)),
        "purge": outcome(lambda: lifecycle.require_purge(key, WAITS, NOW)),
        "delete": outcome(lambda: lifecycle.require_deletion(replace(key, policies=()), "x", WAITS, NOW)),
        "set": outcome(lambda: lifecycle.require_set_for_deletion(key, NOW)),
    }
    conflict, deleted = KeyStateConflict, KeyDeleted
    table: dict[KeyState, tuple[type[HsmkmsError] | None, ...]] = {
        KeyState.ACTIVE: (None, conflict, conflict, conflict, None, None),
        KeyState.SUSPENDED: (conflict, None, conflict, conflict, None, conflict),
        KeyState.DEACTIVATED: (conflict, conflict, conflict, conflict, None, conflict),
        KeyState.DESTROYED: (deleted, deleted, None, None, deleted, deleted),
    }
    assert tuple(found.values()) == table[state]


@given(st.integers(0, 200 * 24 * 3600), st.none() | st.integers(1, 200 * 24 * 3600))
def test_restore_and_purge_by_the_time_since_deletion(seconds: int, life: int | None) -> None:
    """The windows of the contract, whatever the moment; an expiry within them ends the time to restore."""
    since = timedelta(seconds=seconds)
    expires_at = None if life is None else NOW - since + timedelta(seconds=life)
    key = replace(KEY, state=KeyState.DESTROYED, deleted_at=NOW - since, expires_at=expires_at)
    expected: type[HsmkmsError] | None = None
    if since < timedelta(seconds=30):
        expected = TooEarly
    elif expires_at is not None and expires_at <= NOW:
        expected = KeyExpired
    elif since >= timedelta(days=30):
        expected = KeyRestoreExpired
    assert outcome(lambda: lifecycle.require_restore(key, WAITS, NOW)) is expected
    too_early = since < timedelta(hours=4)
    assert outcome(lambda: lifecycle.require_purge(key, WAITS, NOW)) is (TooEarly if too_early else None)


def test_enable_waits_thirty_seconds() -> None:
    key = replace(KEY, state=KeyState.SUSPENDED, disabled_at=NOW)
    with pytest.raises(TooEarly, match="until at least 2026-07-01T12:00:30Z"):
        lifecycle.require_enable(key, WAITS, NOW + timedelta(seconds=29))
    lifecycle.require_enable(key, WAITS, NOW + timedelta(seconds=30))


def test_two_people_delete_within_seven_days() -> None:
    """Somebody else, in time; nobody at all without the policy's first word."""
    key = replace(KEY, policies=(DUAL,))
    said = replace(key, deletion_set_at=NOW, deletion_set_by="first")
    week = timedelta(days=7)
    for one, by, at in ((key, "second", NOW), (said, "first", NOW), (said, "second", NOW + week)):
        with pytest.raises(AuthorizationsNotMet, match="1 prior authorization"):
            lifecycle.require_deletion(one, by, WAITS, at)
    lifecycle.require_deletion(said, "second", WAITS, NOW + week - SECOND)
    with pytest.raises(NotDualAuth):
        lifecycle.require_set_for_deletion(KEY, NOW)


@given(
    st.none() | st.booleans(), st.none() | st.integers(-5, 20), st.none() | st.tuples(st.booleans(), st.integers(1, 12))
)
def test_rotation_policy_merges(enabled: bool | None, interval: int | None, held: tuple[bool, int] | None) -> None:
    """Left out means: enabled, and the interval there was."""
    before = (
        None if held is None else replace(DUAL, kind=KeyPolicyKind.ROTATION, enabled=held[0], interval_month=held[1])
    )
    wish = KeyPolicyWish(KeyPolicyKind.ROTATION, enabled, interval)
    on = enabled is not False
    months = interval if interval is not None else (held[1] if held else None)
    possible = (months is None and not on) or (months is not None and 1 <= months <= 12)
    if not possible:
        with pytest.raises(InvalidField):
            merged(wish, before)
        return
    assert merged(wish, before) == (on, months)


def test_dual_authorization_is_never_taken_off() -> None:
    off = KeyPolicyWish(KeyPolicyKind.DUAL_AUTH_DELETE, False, None)
    assert merged(off, None) == (False, None)
    with pytest.raises(InvalidField):
        merged(off, DUAL)
