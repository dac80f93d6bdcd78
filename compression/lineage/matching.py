"""Which weight of the dense model a weight of an artefact is held against: by shape, values, name and order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...targets.onnx_graph.constants import Array, Graph
from ...targets.onnx_graph.weights import Weight

PROJECTIONS = ("query", "key", "value")
SAMPLE = 4096  # values by which layers of equal shape are told apart


def paired(
    ours: Sequence[Weight], theirs: Sequence[Weight]
) -> tuple[list[tuple[Weight, Weight]], list[Weight], list[Weight]]:
    """(matched weights, the artefact's left over, the dense model's left over)."""
    matches = _match(ours, theirs)
    taken = set(matches.values())
    return (
        [(ours[index], theirs[matches[index]]) for index in sorted(matches)],
        [weight for index, weight in enumerate(ours) if index not in matches],
        [weight for index, weight in enumerate(theirs) if index not in taken],
    )


def unpacked_projections(found: Sequence[Weight], others: Sequence[Weight]) -> list[Weight]:
    """Each weight [3 n, in] cut into three where the other side has weights [n, in]; the rest as they are."""
    shapes = {other.constant.shape for other in others}
    parts: list[Weight] = []
    for weight in found:
        rows, odd = divmod(weight.constant.shape[0], 3)
        if odd or (rows, *weight.constant.shape[1:]) not in shapes:
            parts.append(weight)
            continue
        for index, noun in enumerate(PROJECTIONS):
            part = slice(index * rows, (index + 1) * rows)
            stages = [
                replace(
                    stage,
                    gain=None if stage.gain is None else stage.gain[part],
                    shift=stage.shift[part],
                    step=stage.step[part],
                )
                for stage in weight.stages
            ]
            constant = weight.constant.moved(partial(_rows, part))
            parts.append(replace(weight, name=f"{weight.name} ({noun})", constant=constant, stages=tuple(stages)))
    return parts


def looked_up(dense: Weight, graph: Graph) -> bool:
    """Whether a table of the dense model (of positions, say) is in the file as it is, the look-up done beforehand."""
    from onnx import numpy_helper

    if dense.node.op_type != "Gather" or dense.constant.plain is None:
        return False
    table = dense.constant.plain
    held = (tensor for tensor in graph.held.values() if int(np.prod(tensor.dims, dtype=np.int64)) == table.size)
    return any(np.array_equal(numpy_helper.to_array(tensor).ravel(), table.ravel()) for tensor in held)


def _rows(part: slice, array: Array) -> Array:
    chosen: Array = array[part]
    return chosen


def size(weight: Weight) -> int:
    return int(np.prod(weight.constant.shape, dtype=np.int64))


def _match(ours: Sequence[Weight], theirs: Sequence[Weight]) -> dict[int, int]:
    """Index of an artefact's weight -> index of the dense weight: the pairing of the largest total correlation."""
    from scipy.optimize import linear_sum_assignment

    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for side, found in enumerate((ours, theirs)):
        for index, weight in enumerate(found):
            key = (weight.constant.shape[0], size(weight))
            groups.setdefault(key, ([], []))[side].append(index)
    matches: dict[int, int] = {}
    for mine, yours in groups.values():
        if not mine or not yours:
            continue
        left, right = [_samples(ours[i]) for i in mine], [_samples(theirs[j]) for j in yours]
        likeness = np.array([[max(float(a @ b) for a in one for b in other) for other in right] for one in left])
        bonus = np.zeros_like(likeness)
        for row, i in enumerate(mine):
            for column, j in enumerate(yours):
                bonus[row, column] = 0.02 * (ours[i].name == theirs[j].name) - 1e-6 * abs(row - column)
        rows, columns = linear_sum_assignment(-(likeness + bonus))
        matches.update({mine[row]: yours[column] for row, column in zip(rows, columns, strict=True)})
        for row in set(range(len(mine))) - set(rows):  # a weight that several nodes of the artefact share
            column = int(likeness[row].argmax())
            if likeness[row, column] > 0.9:
                matches[mine[row]] = yours[column]
    return matches


def _samples(weight: Weight) -> list[Array]:
    """A few values of the weight, standardised; once per way of folding what follows it."""
    values = weight.constant.values
    rows = values.reshape(values.shape[0], -1)
    places = np.linspace(0, rows.size - 1, min(SAMPLE, rows.size)).astype(np.int64)
    picked, channel = rows.ravel()[places].astype(np.float64), places // max(rows.shape[1], 1)
    found = []
    for gain in _gains(weight):
        sample = picked if gain is None else picked * gain[channel]
        sample = np.nan_to_num(sample - sample.mean(), nan=0.0, posinf=0.0, neginf=0.0)
        found.append(sample / max(float(np.linalg.norm(sample)), 1e-30))
    return found


def _gains(weight: Weight) -> list[Array | None]:
    kept: list[Array | None] = []
    for stage in weight.stages:
        if not any(stage.gain is known for known in kept):
            kept.append(stage.gain)
    return kept
