"""What was read or made last, kept in memory up to so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The values that were used last, by key.

    Args:
        limit: bytes that they may take together; what was not used for longest goes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def get(self, key: str) -> T | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def find(self, wanted: Callable[[T], bool]) -> T | None:
        """The first value that is wanted."""
        return next((self.get(key) for key, (value, _) in self._values.items() if wanted(value)), None)

    def put(self, key: str, value: T, size: int) -> None:
        """Keeps a value of so many bytes, unless it alone is over the limit."""
        self.drop(key)
        if size > self.limit:
            return
        self._values[key] = value, size
        self.size += size
        while self.size > self.limit:
            self.drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        _, size = self._values.pop(key, (None, 0))
        self.size -= size
