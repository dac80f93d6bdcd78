"""How far stored adversarial inputs are from their records, by record: kept beside them, as the records are not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from ....targets.data.records import Bounds
from ....targets.form import Array, Arrays, Layout
from .similarity import Floats, is_image, similarity

LINF, L2, VALUES, SIMILARITY = "change/linf", "change/l2", "change/values", "change/similarity"
AT_ONCE = 2**18  # values that are compared at a time: they stay in the processor's cache
CLOSE = 1e-6  # of two computations of one distance


def distances(
    x: Tensor, adversarial: Tensor, bounds: Bounds, *, tokens: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """What was changed in each record, n of them, in units of [0, 1] pixels.

    `change/linf` and `change/l2`, float64 [n], the norms of the change; `change/values`, int64 [n], how many values are
    others; `change/similarity`, float64 [n], SSIM, where the records are images (`is_image`). Of token ids, which have
    no distance, `change/values` alone.

    Args:
        x, adversarial: float32 [n, *shape], the records and what was made of them.
        tokens: whether the values are ids that the model looks up.
    """
    shape = tuple(x.shape[1:])
    records, inputs = x.cpu().numpy(), adversarial.cpu().numpy()
    changed = (records != inputs).reshape(len(records), -1).sum(1, dtype=np.int64)
    if tokens:
        return {VALUES: changed}
    low, scale = (one.cpu().numpy().astype(np.float64) for one in (bounds.low, bounds.scale))
    found: dict[str, list[Floats]] = {name: [] for name in (LINF, L2, *([SIMILARITY] if is_image(shape) else []))}
    step = max(1, AT_ONCE // max(1, math.prod(shape)))
    for first in range(0, len(records), step):
        one, other = ((part[first : first + step].astype(np.float64) - low) / scale for part in (records, inputs))
        moved = np.abs(other - one).reshape(len(one), -1)
        found[LINF].append(moved.max(1))
        found[L2].append(np.sqrt((moved**2).sum(1)))
        if SIMILARITY in found:
            found[SIMILARITY].append(similarity(one, other))
    return {VALUES: changed} | {name: np.concatenate([np.zeros(0), *parts]) for name, parts in found.items()}


def layout(count: int, shape: tuple[int, ...], *, tokens: bool = False) -> Layout:
    """What the arrays of `distances` look like."""
    values = {VALUES: Array("int64", (count,), low=0, high=math.prod(shape))}
    if tokens:
        return values
    images = {SIMILARITY: Array("float64", (count,), low=-1 - CLOSE, high=1 + CLOSE)} if is_image(shape) else {}
    return {**values, LINF: Array("float64", (count,), low=0), L2: Array("float64", (count,), low=0), **images}


def consistent(arrays: Arrays) -> bool:
    """Whether norms and numbers of changed values can be of the same changes; true where there are no norms."""
    if LINF not in arrays:
        return True
    largest, length, values = arrays[LINF], arrays[L2], arrays[VALUES]
    most = np.sqrt(values) * largest
    return bool(
        (largest <= length + CLOSE * (1 + length)).all()
        and (length <= most + CLOSE * (1 + most)).all()
        and ((largest > 0) <= (values > 0)).all()
    )


def others(arrays: Arrays, again: Arrays) -> list[str]:
    """The names of the distances that are others when they are measured again."""
    return [
        name
        for name, own in again.items()
        if name not in arrays or not np.allclose(arrays[name], own, rtol=CLOSE, atol=CLOSE)
    ]
