"""Whether the hidden units of two files do the same on the same records, however their weights are written down.

A layer that was taken apart into thin ones, rounded, shared or pruned still drives the same unit with the same records;
another training puts its units in another order. So no weight is looked at, and none need have its counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...targets.errors import NotApplicable
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.preprocessing import Preprocessing
from ...targets.onnx_graph.constants import Graph
from ...targets.onnx_graph.observed import unfused
from ...targets.onnx_graph.operations import onnx_type
from ...targets.runtimes.batches import reason
from ...targets.seeds import derive
from ...targets.untrusted.model_file import check_onnx

Floats = np.ndarray[Any, np.dtype[np.float64]]
RECORDS, AT_ONCE = 64, 8  # asked; at a time
PLACES = 16  # of an image's or sequence's places, evenly spread: each unit is looked at there
ORDERS = 200  # of a layer's units, that the likeness is held against
FEWEST = 4  # units of a layer that tell an order
# What a unit is before: the layers of the dense model are looked at where one of these takes them.
NONLINEAR = (
    "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "Softplus", "Erf", "Mish",
)  # fmt: skip


@dataclass(frozen=True)
class Units:
    """How the hidden units of a file go with those of a model.

    Args:
        correlation: of a unit's inputs on the same records, its size, on average over the layers' units.
        deviations: how far it lies above the same with each layer's units in random order, in standard deviations.
        count: units that were compared; 0: none could be.
    """

    correlation: float
    deviations: float
    count: int


def compare_units(
    shipped: bytes,
    parent: bytes,
    x: Tensor,
    reading: Assumptions | None = None,
    parent_reading: Assumptions | None = None,
    *,
    seed: int = 0,
) -> Units:
    """Holds what drives the hidden units of a file against a model that it may come from.

    Each layer of the model is held against every tensor of the same size of the file, the likest counts; so it does
    for its units in random order.

    Args:
        shipped: the compressed file; parent: the dense model, as ONNX.
        x: float32 [n, *shape], records; the first `RECORDS` are asked.
        reading, parent_reading: how the two files' inputs are read, where somebody else made them.

    Raises:
        UnsafeInput: a file that `check_onnx` refuses. NotApplicable: one of them does not show its units.
    """
    x = x[:RECORDS].cpu()
    theirs = [one for one in _seen(parent, x, parent_reading, hidden=True).values() if one.shape[1] >= FEWEST]
    ours = list(_seen(shipped, x, reading, hidden=False).values())
    stream = np.random.default_rng(derive(seed, "units"))
    own, chance, count = 0.0, np.zeros(ORDERS), 0
    for layer in theirs:
        units = layer.shape[1]
        tables = [_likeness(layer, one) for one in ours if one.shape == layer.shape]
        if not tables:
            continue
        stacked = np.stack(tables)  # [tensors, units, units]
        rows = np.arange(units)
        own += units * float(stacked[:, rows, rows].mean(1).max())
        for draw in range(ORDERS):
            chance[draw] += units * float(stacked[:, rows, stream.permutation(units)].mean(1).max())
        count += units
    if not count:
        return Units(0.0, 0.0, 0)
    deviation = max(float(chance.std(ddof=1)), 1e-9)
    return Units(own / count, (own - float(chance.mean())) / deviation, count)


def _seen(data: bytes, x: Tensor, reading: Assumptions | None, *, hidden: bool) -> dict[str, Floats]:
    """Tensors of the outermost graph by name, float64 [records * places, units].

    Args:
        hidden: those alone that a nonlinearity takes; else all floats.
    """
    checked = check_onnx(data)
    graph = Graph(checked.model)
    outer = [name for node in checked.model.graph.node for name in node.output if name in graph.varying]
    if hidden:
        taken = {node.input[0] for node in checked.model.graph.node if node.op_type in NONLINEAR and node.input}
        outer = [name for name in outer if name in taken]
    try:
        session = unfused(checked.model, outer)
        entry = session.get_inputs()[0]
        fixed = entry.shape[0] if entry.shape and isinstance(entry.shape[0], int) else None
        with torch.no_grad():
            given = x if reading is None else Preprocessing(reading).eval()(x)
        parts: dict[str, list[Floats]] = {}
        for some in given.split(fixed or AT_ONCE):
            full = some if fixed is None else torch.cat([some, some[-1:].expand(fixed - len(some), *some.shape[1:])])
            answers = session.run(outer, {entry.name: full.numpy().astype(onnx_type(entry.type))})
            for name, value in zip(outer, answers, strict=True):
                if value.dtype.kind == "f" and value.ndim in (2, 3, 4) and len(value) == len(full):
                    parts.setdefault(name, []).append(_at_places(value[: len(some)]))
    except Exception as error:  # the runtime's exception types have no common base
        raise NotApplicable(f"ONNX Runtime does not show the file's units: {reason(error)}") from None
    found = {name: np.concatenate(some) for name, some in parts.items() if len({one.shape[1:] for one in some}) == 1}
    return {name: one for name, one in found.items() if np.isfinite(one).all()}


def _at_places(value: np.ndarray[Any, Any]) -> Floats:
    """[n, units, height, width] or [n, places, units] at a few places: float64 [n * places, units]."""
    if value.ndim == 4:
        value = value.reshape(*value.shape[:2], -1).transpose(0, 2, 1)
    elif value.ndim == 2:
        value = value[:, None]
    chosen = np.unique(np.linspace(0, value.shape[1] - 1, min(PLACES, value.shape[1])).round().astype(int))
    return np.asarray(value[:, chosen].reshape(-1, value.shape[2]), np.float64)


def _likeness(one: Floats, other: Floats) -> Floats:
    """Size of the correlation of each unit of the one with each of the other, [units, units]; of a dead one 0."""
    first, second = (value - value.mean(0) for value in (one, other))
    norms = np.outer(np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=0))
    found = np.abs(first.T @ second)
    return np.asarray(np.divide(found, norms, out=np.zeros_like(found), where=norms > 1e-12), np.float64)
