"""An object's bytes on their way to the store: gathered where they are small, else as they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loglet.archive.writer import gathered


@given(st.lists(st.binary(max_size=12), max_size=30), st.integers(1, 10))
def test_nothing_is_lost_and_only_the_last_is_small(parts: list[bytes], size: int) -> None:
    pieces = list(gathered(parts, size))
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) >= size for piece in pieces[:-1])


def test_large_parts_are_not_copied() -> None:
    small, large = b"abc", bytes(100)
    pieces = list(gathered([large, small, large, large], 50))
    assert pieces == [large, small + large, large]
    assert pieces[0] is large
    assert pieces[2] is large
