"""Who keeps the parts of long work in a test, as an audit does."""

from __future__ import annotations

import numpy as np

from crushproof.targets.steps import Arrays, Check


class KilledError(Exception):
    pass


class Folder:
    """Keeps parts as an audit does; a kill comes before it keeps one part too many."""

    def __init__(self, room: int = 1000) -> None:
        self.room, self.parts, self.order, self.told = room, dict[str, Arrays](), list[str](), list[tuple[int, int]]()

    def at(self, what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.told.append((done, total))

    def part(self, name: str, check: Check) -> Arrays | None:
        found = self.parts.get(name)
        if found is not None:
            check(found)
        return found

    def keep(self, name: str, arrays: Arrays) -> None:
        assert name not in self.parts, "a part was computed twice"
        if len(self.parts) == self.room:
            raise KilledError
        self.parts[name] = {key: np.array(array) for key, array in arrays.items()}
        self.order.append(name)
