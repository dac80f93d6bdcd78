"""What a model should answer, as people write it: class numbers, texts, columns; and what is refused, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[np.generic]
CLASSES = 10_000
Name = TypeVar("Name", int, str)


def class_numbers(y: Array, where: str) -> NDArray[np.int64]:
    """int64 [n] of whole class numbers [n] or [n, 1].

    Args:
        where: what messages call it.

    Raises:
        InputError: one-hot rows, several labels per record, probabilities, fractions, text, numbers out of range.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # a column, as Keras stores CIFAR labels
    if y.ndim == 2 and y.dtype.kind in "fiub":
        raise InputError(f"{where} has shape {list(y.shape)}: {_rows(y)}")
    if y.ndim == 1 and y.dtype.kind == "f":
        _refuse_fractions(y.astype(np.float64), where)
    if y.ndim == 1 and y.dtype.kind == "U" and not all(str(label).isdecimal() for label in y[:CLASSES]):
        raise InputError(
            f"{where} holds texts. Save class numbers, and the texts as class_names in the order of the model's "
            "outputs; if that is sorted: class_names, y = numpy.unique(y, return_inverse=True)."
        )
    if y.ndim != 1 or y.dtype.kind not in "iub":
        raise InputError(
            f"{where} has type {y.dtype} and shape {list(y.shape)}. Save whole class numbers from 0, one per record: "
            "y.astype('int64'). If they are values to predict, say task: regression."
        )
    if y.size and (int(y.min()) < 0 or int(y.max()) >= CLASSES):
        raise InputError(
            f"{where} holds labels from {int(y.min())} to {int(y.max())}. Number the classes from 0 on; at most "
            f"{CLASSES:,}."
        )
    return y.astype(np.int64)


def _rows(y: Array) -> str:
    """What rows of several numbers are, and what to do."""
    values = y.astype(np.float64)
    sums = values.sum(1)
    if bool(np.isin(values, (0, 1)).all()):
        if bool((sums == 1).all()):
            return "one-hot labels. Give class numbers: y.argmax(axis=1)."
        return (
            f"zeros and ones of which {int((sums != 1).sum())} records have several or none set. Multi-label data is "
            "not supported: an audit asks for the one class of each record. Audit one label at a time, as a model of "
            "two outputs with y[:, 0]."
        )
    if bool((values >= 0).all()) and bool((abs(sums - 1) < 1e-3).all()):
        return "probabilities of the classes. Give class numbers: y.argmax(axis=1)."
    return (
        "several numbers for each record. Give one class number per record, [n]; if they are values to predict, say "
        "task: regression."
    )


def _refuse_fractions(y: NDArray[np.float64], where: str) -> None:
    finite = np.isfinite(y)
    if not finite.all():
        raise InputError(
            f"{where} holds {int((~finite).sum())} NaN or infinite labels, first in record "
            f"{int(np.flatnonzero(~finite)[0])}. Leave out such records."
        )
    broken = np.flatnonzero(y != np.round(y))
    if len(broken):
        raise InputError(
            f"{where} holds labels that are no whole numbers: {len(broken)} of them, first {y[broken[0]]:g} in record "
            f"{broken[0]}. Give whole class numbers from 0; if they are values to predict, say task: regression."
        )


def predicted_values(y: Array, where: str) -> NDArray[np.float32]:
    """Values to predict, float32 [n, outputs], of numbers [n] or [n, outputs].

    Raises:
        InputError: no numbers, or of another shape.
    """
    if y.ndim not in (1, 2) or y.dtype.kind not in "fiub":
        raise InputError(f"{where} has type {y.dtype} and shape {list(y.shape)}. Save numbers [n] or [n, outputs].")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused as such
        return (y[:, None] if y.ndim == 1 else y).astype(np.float32)


def sorted_labels(tables: Iterable[Iterable[str]]) -> list[str]:
    """The distinct texts, sorted; as numbers when all are whole numbers.

    Raises:
        InputError: more than any classifier has classes.
    """
    distinct = {text for texts in tables for text in texts}
    if len(distinct) > CLASSES:
        raise InputError(
            f"The label column holds {len(distinct):,} different values; at most {CLASSES:,} classes are read. Name "
            "the column that holds the class."
        )
    return in_order(distinct)


def in_order(names: Iterable[Name]) -> list[Name]:
    """Classes as files name them, all texts or all whole numbers, in the one order they have here: sorted, as numbers
    when all are whole numbers.
    """
    distinct = list(names)
    if all(re.fullmatch(r"-?[0-9]{1,15}", str(name)) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), str(name)))
    return sorted(distinct)
