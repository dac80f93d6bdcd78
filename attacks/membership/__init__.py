"""Membership inference: was this record in the training set?"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Inferred", "Population", "infer_membership", "train_shadows"]


def __getattr__(name: str) -> Any:  # what computes is imported when it is first used
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".infer", __name__), name)
