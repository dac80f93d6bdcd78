"""The checks every `Data` passes before anything is computed on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import Data


def check_data(data: Data) -> None:
    """Raises InputError with one sentence per fault."""
