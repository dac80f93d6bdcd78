"""The bounds that fit the grid which a data set's own values lie on, where nobody gave any.

Epsilon counts in units of the bounds, so bounds far wider than the values make every model look broken, and bounds that
are too narrow make it look strong. What a sensor or a file format can hold is known for the usual bit depths; where the
largest value is reached by many records it is the end of the scale, whatever that is (0..16, 0..100). Images in 8 bits
have the type's range, whatever of it occurs; 16 bits are a container for less (-1024..3071 of a scanner). In doubt the
bounds are the values' own range, which may be too narrow: a model that fails there fails under the true ones as well,
and a flag keeps a pass from being believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, quoted
from .declared import Column
from .records import Bounds
from .structure import Structure, positions

Array = NDArray[np.generic]

DEPTHS = (8, 10, 12, 14, 16)  # bits of a sensor's or a file's values
NEAR = 0.9  # of a bit depth's largest value: images without white (broadcast range ends at 235 of 255) reach it
REACHED = 0.05  # of the records, and at least FEW of them, hold the largest value: the scale ends there
FEW = 3


class Fitted(NamedTuple):
    """`note`: for the reader of the report, "" where nothing is worth saying. `doubt`: why the bounds may be others."""

    low: float
    high: float
    note: str = ""
    doubt: str = ""


def fitted(inputs: Sequence[Array]) -> Fitted | None:
    """The bounds of values, in parts [n, ...] of numbers, finite and not empty; None: the values do not tell.

    Whole numbers get the range of their grid: [0, 1] (binary), [0, 255], [0, 4095], [-128, 127], [0, 16] and so on.
    Fractions get [0, 1], or [-1, 1] and [-0.5, 0.5] where both ends occur.
    """
    low, high = min(float(x.min()) for x in inputs), max(float(x.max()) for x in inputs)
    if low >= 0 and high <= 1:
        doubt = f"no value is above {high:g}" if 0 < high < 0.5 else ""
        return _said(0, 1, doubt, low, high, whole=False)
    if not all(map(_whole, inputs)):
        return Fitted(low, high) if low == -high and high in (0.5, 1) else None
    if (low, high) == (-1, 1):
        return Fitted(-1, 1)
    if low >= 0:
        return _from_zero(inputs, low, high)
    return _signed(inputs, low, high)


def _from_zero(inputs: Sequence[Array], low: float, high: float) -> Fitted | None:
    mixed = ""
    if all(x.ndim == 2 for x in inputs):
        tops = np.max([x.max(axis=0) for x in inputs], axis=0)
        if float(np.median(tops / 2)) < high / 4:  # halves: the mean of two large ones would overflow
            mixed = f"half of the columns stay below {high / 2:g}, so that one range for all hardly fits"
    if mixed and high > 255:
        return None
    depth = next((2**bits - 1 for bits in DEPTHS if NEAR * (2**bits - 1) <= high <= 2**bits - 1), None)
    if depth is not None:
        return _said(0, depth, mixed, low, high)
    if _reached(inputs, high, np.max):
        return _said(0, high, mixed, low, high)
    if 128 <= high <= 255:
        return _said(0, 255, mixed, low, high)
    if high <= 255 and all(x.dtype == np.uint8 and x.ndim > 2 for x in inputs):
        return _said(0, 255, f"the values are stored in 8 bits, and none is above {high:g}", low, high)
    if high > 2 ** DEPTHS[-1]:
        return None
    return _said(0, high, mixed or f"few records reach the largest value, {high:g}", low, high)


def _signed(inputs: Sequence[Array], low: float, high: float) -> Fitted | None:
    typed = next((bits for bits in (8, 16) if all(x.dtype == f"int{bits}" and x.ndim > 2 for x in inputs)), 0)
    ends = {bits: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16)}
    for bits, (least, most) in ends.items():
        near = low <= NEAR * least, high >= NEAR * most
        one_end = bits == typed and (near[0] or (bits == 8 and near[1]))
        if low >= least and high <= most and (all(near) or low == least or one_end):
            return _said(least, most, "", low, high)
    if low == -high and _both_reached(inputs, low, high):
        return _said(low, high, "", low, high)
    if not typed:
        return None
    least, most = ends[typed]
    doubt = f"int{typed} holds {least} to {most}"
    return _said(least, most, doubt, low, high) if typed == 8 else _said(low, high, doubt, low, high)


def column_bounds(
    x: NDArray[np.float32], given: Mapping[Column, tuple[float, float]], structure: Structure, where: str
) -> tuple[Bounds, str]:
    """Bounds for each column of a table, [columns] each, and why they may be others ("": they are sure).

    Those given; [0, 1], which is sure, for a column of zeros and ones, and for one that fills it; every other has its
    own range, a guess (a column that never varies: one unit). What an attacker cannot change needs no sure bounds.

    Args:
        x: [n, columns], finite where it is not refused later.
        given: by name or position.
        where: the columns are, for messages.

    Raises:
        InputError: bounds for a column that there is not, or for what is no number.
    """
    columns = list(structure.names) or [str(at) for at in range(x.shape[1])]
    if not len(x):  # `Data` refuses the empty split with its own sentence
        return Bounds(torch.zeros(len(columns)), torch.ones(len(columns))), ""
    low, high = x.min(axis=0), x.max(axis=0)
    filled = (low >= 0) & (low <= 1 - NEAR) & (high >= NEAR) & (high <= 1)
    sure = filled | ((x == 0) | (x == 1)).all(axis=0)
    low, high = np.where(sure, np.float32(0), low), np.where(sure, np.float32(1), high)
    high = np.where(high > low, high, low + np.maximum(abs(low), np.float32(1)))
    encoded = [one.column for one in structure.encoded]
    for column, (least, most) in given.items():
        if column in encoded:
            raise InputError(f"bounds names the column {quoted(str(column))}, which holds categories. Leave it out.")
        at = list(positions(column, "bounds", x.shape[1], structure.names, where))
        with np.errstate(over="ignore"):  # beyond float32 they become infinite, which `Data` refuses
            low[at], high[at], sure[at] = least, most, True
    held = set(structure.held)
    guessed = [name for at, (name, known) in enumerate(zip(columns, sure, strict=True)) if not known and at not in held]
    doubt = ""
    if guessed:
        doubt = (
            f"The bounds of {len(guessed)} of {len(columns)} columns are a guess ({', '.join(map(quoted, guessed[:4]))}"
            f"{', ...' if len(guessed) > 4 else ''}): their smallest and largest value in {where} given, so that an "
            "epsilon is a share of that range. Give the smallest and largest value that each can take, as "
            f"bounds: {{{guessed[0]}: [0, 100]}}, or scale the columns to [0, 1] by them."
        )
    return Bounds(torch.from_numpy(low), torch.from_numpy(high)), doubt


def _said(bound_low: float, bound_high: float, doubt: str, low: float, high: float, *, whole: bool = True) -> Fitted:
    """`Fitted` with its sentences."""
    ends = f"[{bound_low:g}, {bound_high:g}]"
    note = ""
    if whole and (bound_low, bound_high) != (0, 1):
        step = 0.1 * (bound_high - bound_low)
        note = f"The values are whole numbers in {ends}; an epsilon of 0.1 is a change of {step:g}."
    if doubt:
        doubt = (
            f"The bounds {ends} are a guess: the values run from {low:g} to {high:g}, and {doubt}. Epsilon counts in "
            "units of the bounds: give the smallest and largest value an input can take."
        )
    return Fitted(float(bound_low), float(bound_high), note, doubt)


def _whole(x: Array) -> bool:
    if x.dtype.kind in "iub":
        return True
    return all(bool((part == np.rint(part)).all()) for part in (x[:8], x))  # most are settled by the first few


def _reached(inputs: Sequence[Array], value: float, end: Callable[..., Array]) -> bool:
    hits = sum(int((end(x.reshape(len(x), -1), axis=1) == value).sum()) for x in inputs)
    return hits >= max(FEW, math.ceil(REACHED * sum(len(x) for x in inputs)))


def _both_reached(inputs: Sequence[Array], low: float, high: float) -> bool:
    return _reached(inputs, low, np.min) and _reached(inputs, high, np.max)
