"""How many of a file's products an input makes it compute, measured on the values of its own graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...compression.footprint.energy import energy
from ...targets.errors import NotApplicable
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.preprocessing import Preprocessing
from ...targets.onnx_graph.constants import Graph
from ...targets.onnx_graph.observed import unfused
from ...targets.onnx_graph.operations import Operation, onnx_type, operations
from ...targets.runtimes.batches import reason
from ...targets.untrusted.model_file import CheckedOnnx
from ..access import Ledger

if TYPE_CHECKING:
    import onnx

Floats = np.ndarray[Any, np.dtype[np.float64]]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "ConvInteger", "MatMulInteger")
QLINEAR = ("QLinearConv", "QLinearMatMul")  # whose zero is a code
PASSING = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast", "DequantizeLinear")
ROUNDING = ("QuantizeLinear",)
SELECTING = ("Where", "ThresholdedRelu", "Shrink")  # of values by their size; a rectifier's zeros come as they come
AT_ONCE = 64  # inputs asked at once


class Meter:
    """Measures the density of inputs on a file.

    Attributes:
        skips: whether any of its products is one whose input the file itself selects by value.
    """

    def __init__(self, checked: CheckedOnnx, assumptions: Assumptions | None, shape: tuple[int, ...]) -> None:
        self._graph = Graph(checked.model)
        outer = {output for node in checked.model.graph.node for output in node.output}
        outer |= {item.name for item in checked.model.graph.input}
        self._nodes = [
            node
            for node in self._graph.nodes
            if node.op_type in (*PRODUCTS, *QLINEAR) and node.output[0] in outer and node.input[0] in outer
        ]
        if not self._nodes:
            raise NotApplicable("not applicable: the file holds no product whose work could be counted")
        record = shape if assumptions is None else assumptions.record
        counted = operations(checked.model, record)
        if len(counted) != len(self._nodes):  # recurrences and lookups among them: every layer counts alike then
            counted = [Operation(1, 32, 32)] * len(self._nodes)
            self.modelled = False
        else:
            self.modelled = True
        self._counted, self._macs = counted, np.array([one.macs for one in counted], np.float64)
        self._selected = np.array([_selected(node, self._graph) for node in self._nodes])
        self.skips = bool(self._selected.any())
        names = dict.fromkeys(node.input[0] for node in self._nodes)
        try:
            self._session = unfused(checked.model, names)
        except Exception as error:  # the runtime's exception types have no common base
            raise NotApplicable(f"ONNX Runtime does not show the file's activations: {reason(error)}") from None
        self._entry = self._session.get_inputs()[0]
        fixed = self._entry.shape[0] if self._entry.shape else None
        self._at_once = fixed if isinstance(fixed, int) else 1 if checked.measures_ranges else AT_ONCE
        self._front = None if assumptions is None else Preprocessing(assumptions).eval()

    def shares(self, x: Tensor, ledger: Ledger) -> tuple[Floats, Floats]:
        """Of each input: the share of the products that the file computes, and of activations that are not zero.

        Both weighed by each layer's products, float64 [n] in [0, 1].

        Args:
            x: float32 [n, *shape].
        """
        ledger.queries += len(x)
        filled = torch.cat([self._filled(part) for part in x.split(self._at_once)]).numpy()
        return filled @ self._share(self._selected) + self._share(~self._selected).sum(), filled @ self._share(None)

    def energy(self, x: Tensor, ledger: Ledger) -> float | None:
        """Modelled arithmetic energy of one of these inputs on average, in microjoule; None: it is not modelled."""
        if not self.modelled:
            return None
        filled = torch.cat([self._filled(part) for part in x.split(self._at_once)]).mean(0).numpy()
        ledger.queries += len(x)
        done = np.where(self._selected, filled, 1.0)
        scaled = [one._replace(macs=round(one.macs * share)) for one, share in zip(self._counted, done, strict=True)]
        return energy(scaled, 0)[0]

    def _share(self, of: Any) -> Floats:
        weights: Floats = self._macs / self._macs.sum()
        return weights if of is None else weights * of

    def _filled(self, x: Tensor) -> Tensor:
        """float64 [n, layers], the share of each layer's input that is not zero."""
        n, given = len(x), x.cpu()
        with torch.no_grad():
            given = given if self._front is None else self._front(given)
        if len(given) < self._at_once and isinstance(self._entry.shape[0], int):
            given = torch.cat([given, given[-1:].expand(self._at_once - n, *given.shape[1:])])
        try:
            answers = self._session.run(None, {self._entry.name: given.numpy().astype(onnx_type(self._entry.type))})
        except Exception as error:  # the runtime's exception types have no common base
            raise NotApplicable(f"the file does not answer: {reason(error)}") from None
        found = dict(zip((one.name for one in self._session.get_outputs()), answers, strict=True))
        found[self._entry.name] = given.numpy()
        columns = [_density(node, found[node.input[0]], self._graph) for node in self._nodes]
        return torch.from_numpy(np.stack(columns, axis=1)[:n])


def _density(node: onnx.NodeProto, value: np.ndarray[Any, Any], graph: Graph) -> Floats:
    """Of each record, the share of a product's input that is not zero."""
    zero: Any = 0
    place = {"QLinearConv": 2, "QLinearMatMul": 2, "ConvInteger": 2, "MatMulInteger": 2}.get(node.op_type)
    if place is not None and len(node.input) > place and node.input[place]:
        held = graph.constant(node.input[place])
        zero = 0 if held is None else np.asarray(held.values).reshape(-1)[0]
    differs: Floats = (value != zero).reshape(len(value), -1).mean(1, dtype=np.float64)
    return differs


def _selected(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether the file selects a product's input by value, but for what moves or rounds it on the way."""
    maker = graph.producers.get(node.input[0])
    for _ in range(12):
        if maker is None or maker.op_type not in (*PASSING, *ROUNDING):
            break
        maker = graph.producers.get(maker.input[0])
    return maker is not None and maker.op_type in SELECTING


def trail(densities: Sequence[Floats], points: int) -> list[int]:
    """Positions of so many steps of a search, evenly spread, its first and its last among them."""
    return sorted({round(at) for at in np.linspace(0, len(densities) - 1, min(points, len(densities)))})
