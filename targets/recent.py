"""What stays in memory: what was read or made last, up to so many bytes; what is free goes back to the system."""

from __future__ import annotations

import ctypes
import resource
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
STATUS, PAGE = Path("/proc/self/statm"), resource.getpagesize()
LARGE = 2**30  # bytes from which on a process gives back what is free between the parts of its work


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


def give_back(beyond: int = 0) -> None:
    """Gives the system back the memory that is free in this process.

    The C library keeps the many pieces that activations of a large network leave behind, gigabytes of them, for the
    rest of the process's life, while the other processes need them.

    Args:
        beyond: only where the process holds more bytes than this; it is looked up in microseconds, on Linux.
    """
    if beyond and STATUS.exists() and int(STATUS.read_text().split()[1]) * PAGE <= beyond:
        return
    trim = getattr(_c_library(), "malloc_trim", None)  # glibc's; other libraries have none
    if trim is not None:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
