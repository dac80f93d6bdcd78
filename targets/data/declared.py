"""What a user declares of the values of a record, in the user's words; read without torch, as plans are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Column = int | str  # a position, a name, or a stretch of positions such as "6-14"
Categories = tuple[str, ...] | Literal["one-hot", "codes"]

STRETCH = re.compile(r"(\d{1,6})-(\d{1,6})")


@dataclass(frozen=True)
class Declared:
    """Columns by their name or position; the keys are explained in docs/inputs.md."""

    immutable: tuple[Column, ...] = ()
    categorical: Mapping[Column, Categories] = field(default_factory=dict)
    one_hot: tuple[tuple[Column, ...], ...] = ()
    integer: tuple[Column, ...] | Literal[True] = ()  # True: all of them, or every value of an image
    tokens: bool = False

    def __bool__(self) -> bool:
        return bool(self.immutable or self.categorical or self.one_hot or self.integer or self.tokens)
