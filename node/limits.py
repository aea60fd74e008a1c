"""Places: how many of one kind may run at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sharedlog.errors import Overloaded

_RETRY_AFTER_S = 1.0


class Places:
    """Counts what runs and refuses one too many, at once and with a hint when to come again."""

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._most = most
        self.taken = 0
        # Invariant: 0 <= taken <= most.

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Overloaded: all are taken.
        """
        if self.taken >= self._most:
            raise Overloaded(
                f"{self.taken:,} {self._what} are open on this node, the most it takes",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            assert self.taken >= 0
