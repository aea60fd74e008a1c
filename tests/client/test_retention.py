"""Durations and sizes as they are typed, and what may be kept together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.errors import InvalidArgument
from sharedlog.retention import (
    NO_LIMIT,
    RETENTION_MAX,
    Retention,
    bytes_text,
    check_retention,
    duration_text,
    parse_bytes,
    parse_duration,
    retention_sources,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604_800), ("12h", 43_200), ("30m", 1_800), ("90s", 90), ("none", NO_LIMIT)],
)
def test_durations_that_can_be_typed(text: str, seconds: int) -> None:
    """A whole number with its unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("10GiB", 10 << 30), ("500MB", 500_000_000), ("1TiB", 1 << 40), ("7B", 7), ("none", 0)],
)
def test_sizes_that_can_be_typed(text: str, count: int) -> None:
    """Units of 1,000 and of 1,024 are told apart."""
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    ["", "7", "d", "7 d", "7D", "-7d", "+7d", "1.5h", "1d12h", "7d\n", "7w", "\u0667d", "None"],
)
def test_what_is_no_duration_says_what_is(text: str) -> None:
    """Nothing is guessed, a unit least of all."""
    with pytest.raises(InvalidArgument, match="a number with d, h, m or s is needed"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "10", "10 GiB", "10gib", "10G", "10GIB", "0x1B", "1e3MB"])
def test_what_is_no_size_says_what_is(text: str) -> None:
    """A letter's case matters: MB is not Mb."""
    with pytest.raises(InvalidArgument, match="a number with its unit is needed"):
        parse_bytes(text)


def test_amounts_that_no_log_can_have() -> None:
    """Nothing, which may be meant as no limit, and more than can be counted."""
    with pytest.raises(InvalidArgument, match="keep nothing; no limit is said by none"):
        parse_duration("0d")
    for text in ("9223372036854775808B", "9999999TiB"):
        with pytest.raises(InvalidArgument, match="too much"):
            parse_bytes(text)


@given(st.integers(1, RETENTION_MAX) | st.integers(1, 10**6).map(lambda it: it * 86_400))
def test_an_amount_is_read_as_it_is_told(amount: int) -> None:
    """Exactly, whichever unit it is told in."""
    assert parse_duration(duration_text(amount)) == amount
    assert parse_bytes(bytes_text(amount)) == amount


def test_amounts_are_told_in_the_largest_unit_in_which_they_are_whole() -> None:
    """As somebody may have typed them."""
    assert [duration_text(it) for it in (604_800, 5_400, 61)] == ["7d", "90m", "61s"]
    found = [bytes_text(it) for it in (10 << 30, 1_536, 500_000_000, 1_001)]
    assert found == ["10GiB", "1536B", "500MB", "1001B"]


def test_the_ages_go_together_only_one_way() -> None:
    """What is gone from the log can't be on its servers; a limit that is not there does no harm."""
    check_retention(Retention(local_age_s=60, total_age_s=60))
    check_retention(Retention(local_age_s=60, total_age_s=0))
    check_retention(Retention(local_age_s=0, total_age_s=1, local_bytes=1))
    with pytest.raises(InvalidArgument, match="total age of 59s is less than the local age of 1m"):
        check_retention(Retention(local_age_s=60, total_age_s=59))
    with pytest.raises(InvalidArgument, match="local_bytes is -1"):
        check_retention(Retention(local_bytes=-1))


def test_a_setting_comes_from_where_it_was_until_it_is_changed() -> None:
    """A log that was created without any has them by default."""
    created_with = [
        ("replicas", "3", "default"),
        ("local_age", "7d", "namespace:team/"),
        ("total_age", "30d", "create"),
    ]
    assert retention_sources(
        Retention(local_age_s=604_800, total_age_s=86_400 * 31), created_with
    ) == [
        ("local_bytes", "", "default"),
        ("local_age", "7d", "namespace:team/"),
        ("total_age", "31d", "log"),
    ]
