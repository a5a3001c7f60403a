"""Request limits against a bucket written as text books do, and what they hold in memory."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.errors import TooManyRequests
from hsmkms.iam.limits import RequestLimit

SECOND_NS = 1_000_000_000
RATES = st.sampled_from([0.01, 0.5, 1.0, 3.2, 1_000.0, 1_000_000.0])
OWNERS = ("a", "b", "c")


class Bucket:
    """Tokens that drop in one by one, up to `burst`."""

    def __init__(self, each_ns: int, burst: int, now: int) -> None:
        self.each_ns, self.burst, self.now = each_ns, burst, now
        self.tokens = Fraction(burst)

    def take(self, now: int) -> int | None:
        """None when a token was there; otherwise whole seconds until there is one."""
        self.tokens = min(Fraction(self.burst), self.tokens + Fraction(now - self.now, self.each_ns))
        self.now = now
        if self.tokens >= 1:
            self.tokens -= 1
            return None
        return math.ceil((1 - self.tokens) * self.each_ns / SECOND_NS)


class Clock:
    """Nanoseconds that tests move."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@given(
    RATES,
    st.integers(1, 5),
    st.integers(0, 10**18),
    st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(0, 40)), max_size=60),
)
def test_like_a_bucket_of_tokens(rate: float, burst: int, start: int, calls: list[tuple[str, int]]) -> None:
    """`calls` are (owner, tenths of the time of one token since the call before)."""
    clock = Clock(start)
    limit = RequestLimit("identity", rate, burst, clock)
    each_ns = round(SECOND_NS / rate)
    model = {owner: Bucket(each_ns, burst, start) for owner in OWNERS}
    for owner, tenths in calls:
        clock.now += tenths * each_ns // 10
        refused_for_s: int | None = None
        try:
            limit.take(owner)
        except TooManyRequests as error:
            refused_for_s = error.retry_after_s
        assert refused_for_s == model[owner].take(clock.now)


@pytest.mark.parametrize("rate", [0.25, 3.0, 1_000.0])
def test_who_waits_as_told_is_let_in(rate: float) -> None:
    clock = Clock(10**15)
    limit = RequestLimit("instance", rate, 2, clock)
    for _ in range(20):
        limit.take("x")
        limit.take("x")
        with pytest.raises(TooManyRequests) as refused:
            limit.take("x")
        assert refused.value.retry_after_s == math.ceil(1 / rate)
        assert f" {refused.value.retry_after_s} s" in refused.value.message
        clock.now += refused.value.retry_after_s * SECOND_NS
        limit.take("x")
        clock.now += 12 * SECOND_NS


def test_zero_is_no_limit_and_holds_nothing() -> None:
    limit = RequestLimit("identity", 0, 1)
    for _ in range(10_000):
        limit.take("x")
    assert len(limit) == 0


def test_idle_buckets_are_dropped_and_busy_ones_are_not() -> None:
    clock = Clock()
    limit = RequestLimit("identity", 1, 3, clock)
    for number in range(100_000):
        clock.now += SECOND_NS // 100
        limit.take(f"passing {number}")
        assert len(limit) <= 1_024
    for _ in range(3):
        limit.take("busy")
    for number in range(100_000):
        limit.take(f"at once {number}")
    assert len(limit) > 100_000
    with pytest.raises(TooManyRequests):
        limit.take("busy")
    clock.now += 10 * SECOND_NS
    for number in range(200_000):
        clock.now += SECOND_NS // 100
        limit.take(f"later {number}")
    assert len(limit) < 2_000
