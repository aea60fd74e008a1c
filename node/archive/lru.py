"""A bounded cache: what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Lru(Generic[Key, Value]):
    """Values by key, of a total size of at most `size_max`, in whatever unit they are put in."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.size = 0

    def get(self, key: Key) -> Value | None:
        """The value, which is the newest then; None if it is not here."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Key, value: Value, size: int = 1) -> None:
        """Keep it. One that is too large for the cache is not kept."""
        self.drop(key)
        if size > self._size_max:
            return
        self._values[key] = value, size
        self.size += size
        while self.size > self._size_max:
            _, (_, freed) = self._values.popitem(last=False)
            self.size -= freed

    def drop(self, key: Key) -> None:
        """Forget it, if it is here."""
        found = self._values.pop(key, None)
        if found is not None:
            self.size -= found[1]
