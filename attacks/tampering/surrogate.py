"""The twin of a file whose stored tensors can be changed bit by bit, and have gradients: what a search follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.errors import NotApplicable
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.finished_model import Differentiable
from ...targets.model import differentiable, records_at_once
from ...targets.onnx_graph.constants import Graph, attribute
from ...targets.twin.module import Kept
from ...targets.twin.twin import opened_twin
from ...targets.untrusted.model_file import CheckedOnnx
from .stored import INDICES, Flip, Floats, Stored, decoded

if TYPE_CHECKING:
    import onnx

KEPT_IN_ORDER = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
PROBE = "/probe"  # behind the name of a lookup's result: zeros, whose gradient is that of what was looked up


class Surrogate:
    """A differentiable stand-in of a file, and the bits that it stores at present.

    Attributes:
        tensors: as `stored.parameters` gives them; their bits are the file's own, whatever is flipped here.
        raw: uint64 [n] of each tensor, as flipped so far.
        kept_records: see `keep`.
    """

    kept_records: Tensor

    def __init__(self, checked: CheckedOnnx, tensors: list[Stored], assumptions: Assumptions | None) -> None:
        self.tensors = tensors
        self.raw = [one.raw.copy() for one in tensors]
        output = None if assumptions is None else assumptions.output
        names = {one.name for one in tensors}
        source, self._probes = _written_out(checked, tensors)
        self._twin = opened_twin(checked, source, names | set(self._probes.values()), output)
        missing = [name for name in names if name not in self._twin.opened]
        if missing:
            raise NotApplicable(f"the stored tensor {missing[0]!r} is not where the twin reads it")
        self._module: nn.Module = self._twin if assumptions is None else Differentiable(self._twin, assumptions)
        self._module.eval().requires_grad_(False)
        self._flat = [self._twin.opened[one.name].contiguous().view(-1) for one in tensors]
        for one, flat in zip(tensors, self._flat, strict=True):
            self._twin.opened[one.name] = flat.view(self._twin.opened[one.name].shape)
        self._at_once: int | None = None
        self._kept: Kept | None = None

    def flip(self, flip: Flip) -> None:
        """Flips a bit; once more, and it is as before."""
        raw = self.raw[flip.tensor]
        raw[flip.element] ^= np.uint64(1 << flip.bit)
        stored = self.tensors[flip.tensor]
        value = decoded(raw[flip.element : flip.element + 1], stored.width, stored.kind)[0]
        self._flat[flip.tensor][flip.element] = float(value)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes]; NaN where the flips make it so."""
        return torch.cat([self._module(part).float() for part in x.split(self._batch(x))])

    def keep(self, x: Tensor) -> Tensor:
        """`logits(x)`; what `with_flip` says from now on is of these records and of the bits as they are now."""
        at_once = len(x) <= self._batch(x)  # else what is kept would take any memory
        self.kept_records, self._kept = x, Kept() if at_once else None
        self._twin.kept = self._kept
        try:
            return self.logits(x)
        finally:
            self._twin.kept = None

    def with_flip(self, flip: Flip) -> Tensor:
        """float32 [n, classes]: logits on the kept records with one bit flipped, which is then put back; only what
        depends on its tensor is computed.
        """
        self.flip(flip)
        if self._kept is not None:
            self._kept.again([self.tensors[flip.tensor].name])
        self._twin.kept = self._kept
        try:
            return self.logits(self.kept_records)
        finally:
            self._twin.kept = None
            self.flip(flip)

    def gradients(self, x: Tensor, loss: Callable[[Tensor, slice], Tensor]) -> list[Floats | None]:
        """How the loss changes with each stored number, float64 [n] for each tensor; 0 where that is not finite.

        Args:
            loss: of the logits of some of the records, and which these are.

        Returns:
            of indices: how it changes with what they look up; None: the tensor has no gradient.
        """
        opened = self._twin.opened
        wanted = {one.name: self._probes.get(one.name, one.name) for one in self.tensors}
        leaves = {name: opened[name].detach().requires_grad_() for name in set(wanted.values())}
        with torch.enable_grad(), differentiable(self._module):
            self._twin.opened = {**opened, **leaves}
            try:
                for start in range(0, len(x), self._batch(x)):
                    rows = slice(start, start + self._batch(x))
                    loss(self._module(x[rows]).float(), rows).backward()
            finally:
                self._twin.opened = opened
        found: list[Floats | None] = []
        for one in self.tensors:
            gradient = leaves[wanted[one.name]].grad
            if gradient is None or gradient.numel() < len(one.raw):
                found.append(None)
                continue
            found.append(gradient.reshape(-1).nan_to_num(0.0, 0.0, 0.0).double().numpy())
        return found

    def moved(self, tensor: int, bits: Sequence[int]) -> Floats:
        """By how much the number that counts changes if one of these bits of an element is flipped, float64 [bits, n].

        That is the stored number, or what an index looks up; 0 where an index would point beyond its book.
        """
        stored, raw = self.tensors[tensor], self.raw[tensor]
        masks = np.array([1 << bit for bit in bits], np.uint64)[:, None]
        after = decoded(raw ^ masks, stored.width, stored.kind)
        before = decoded(raw, stored.width, stored.kind)
        if stored.role != INDICES:
            with np.errstate(invalid="ignore", over="ignore"):
                change: Floats = after - before
            return change
        book = next(one.values for one in self.tensors if one.name == self._book_of(stored.name))
        inside = (after >= 0) & (after < len(book)) & (before >= 0)
        to, at = (np.where(inside, one, 0).astype(np.int64) for one in (after, np.broadcast_to(before, after.shape)))
        return np.where(inside, book[to] - book[at], 0.0)

    def _book_of(self, indices: str) -> str:
        return self._probes[indices].split(PROBE)[0]

    def _batch(self, x: Tensor) -> int:
        if self._at_once is None:
            self._at_once = records_at_once(x[:1], self._module)
        return self._at_once


def right_probability(logits: Tensor, y: Tensor) -> Tensor:
    """float64 [n]: the probability of each record's own class; 0 where the answer is not finite."""
    chosen = logits.double().softmax(1).gather(1, y[:, None])[:, 0]
    return torch.where(torch.isfinite(logits).all(1), chosen, 0.0)


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """bool [n]: an answer with NaN or infinity is wrong."""
    return (logits.argmax(1) == y) & torch.isfinite(logits).all(1)


def cross_entropy(y: Tensor, weights: Tensor) -> Callable[[Tensor, slice], Tensor]:
    """The records' cross-entropies, weighted: positive weights want a record wrong, negative ones right."""

    def loss(logits: Tensor, rows: slice) -> Tensor:
        return (weights[rows] * F.cross_entropy(logits, y[rows], reduction="none")).sum()

    return loss


# -- a graph in which every stored number is a tensor of its own -------------------------------------------------------


def _written_out(checked: CheckedOnnx, tensors: list[Stored]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The graph with constants held as initialisers, packed weights unpacked, and zeros added to what is looked up;
    the names of these zeros, by that of the indices.
    """
    from onnx import numpy_helper

    model = type(checked.source)()
    model.CopyFrom(checked.source)
    graph = model.graph
    names = {one.name: one for one in tensors}
    nodes: list[onnx.NodeProto] = []
    held: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    probes: dict[str, str] = {}
    constants = Graph(model)
    origins = {node.output[0]: node.input[0] for node in graph.node if node.op_type in KEPT_IN_ORDER}
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in names:
            value = constants.held[node.output[0]]
            value.name = node.output[0]
            graph.initializer.append(value)
            held[value.name] = value
            continue
        if node.op_type == "MatMulNBits" and node.input[1] in names:
            nodes += _unpacked_product(node, names, held, graph)
            continue
        nodes.append(node)
        if node.op_type != "Gather":
            continue
        indices, book, looked_up = node.input[1], held.get(node.input[0]), constants.constant(node.input[1])
        while indices in origins:
            indices = origins[indices]
        if book is None or looked_up is None or len(book.dims) != 1 or not {indices, book.name} <= names.keys():
            continue
        probe = f"{book.name}{PROBE}/{node.output[0]}"
        result, node.output[0] = node.output[0], f"{node.output[0]}{PROBE}"
        zeros = np.zeros(looked_up.shape, numpy_helper.to_array(book).dtype)
        graph.initializer.append(numpy_helper.from_array(zeros, probe))
        nodes.append(_node("Add", [node.output[0], probe], result))
        probes[indices] = probe
    del graph.node[:]
    graph.node.extend(nodes)
    return model, probes


def _unpacked_product(
    node: onnx.NodeProto, names: dict[str, Stored], held: dict[str, Any], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """MatMulNBits in standard operators, its codes and zero points one number each."""
    from onnx import numpy_helper

    inner, outer, block, bits = (int(attribute(node, name, 4)) for name in ("K", "N", "block_size", "bits"))
    blocks = -(-inner // block)
    given = [*node.input, "", "", ""]
    base = node.output[0]

    def add(name: str, array: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def replace(name: str, shape: tuple[int, ...]) -> None:
        values = names[name].values.astype(np.float32)
        held[name].CopyFrom(numpy_helper.from_array(values[: int(np.prod(shape))].reshape(shape), name))

    replace(given[1], (outer, blocks, block))
    column = add(f"{base}/column", np.array([outer, blocks, 1]))
    nodes = [_node("Reshape", [given[2], column], f"{base}/scale")]
    zero = f"{base}/zero"
    if given[3] and names.get(given[3]) is not None and names[given[3]].packed:
        each = len(names[given[3]].raw) // outer  # the last byte of a row may be half empty
        replace(given[3], (outer, each))
        ends = [add(f"{base}/{word}", np.array([at])) for word, at in (("from", 0), ("to", blocks), ("axis", 1))]
        nodes += [_node("Slice", [given[3], *ends], f"{base}/zeros"), _node("Reshape", [f"{base}/zeros", column], zero)]
    elif given[3]:
        nodes.append(_node("Reshape", [given[3], column], zero))
    else:
        add(zero, np.array(2.0 ** (bits - 1), np.float32))
    row = add(f"{base}/row", np.array([outer, blocks * block]))
    cut = [add(f"{base}/{word}", np.array([at])) for word, at in (("begin", 0), ("end", inner), ("along", 1))]
    nodes += [
        _node("Sub", [given[1], zero], f"{base}/centred"),
        _node("Mul", [f"{base}/centred", f"{base}/scale"], f"{base}/blocks"),
        _node("Reshape", [f"{base}/blocks", row], f"{base}/rows"),
        _node("Slice", [f"{base}/rows", *cut], f"{base}/weight"),
        _node("Transpose", [f"{base}/weight"], f"{base}/turned"),
        _node("MatMul", [given[0], f"{base}/turned"], f"{base}/product" if given[5] else base),
    ]
    return [*nodes, _node("Add", [f"{base}/product", given[5]], base)] if given[5] else nodes


def _node(kind: str, inputs: list[str], output: str) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(kind, inputs, [output], name=output)
