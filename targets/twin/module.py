"""The twin as a torch module: the steps of a graph, and how they are run."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..seeds import generator
from .nodes import FLOATS, INTEGERS, Function, Node, integers
from .rounding import rounded, tracing

TRIED = 2**24  # values of a fixed batch: a larger one is taken as it is, since a trial could take any memory


class Source(Enum):
    """Where a step finds an argument."""

    VALUE = 0  # computed by another step, by its number
    BUFFER = 1  # a constant tensor of the module, by its name
    FIXED = 2  # as it is
    SIZES = 3  # a computed value that says where or how large, as a list
    HOST = 4  # arithmetic of shapes, computed on the CPU and moved to the input


COMPUTED = (Source.VALUE, Source.SIZES, Source.HOST)  # by a step, or opened
DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")  # they measure ranges in each pass


@dataclass
class Step:
    node: Node
    function: Function
    arguments: list[tuple[Source, Any]]
    outputs: list[int | None]  # where its results go
    module: str | None  # the submodule it calls
    done: list[int]  # values nobody needs any more


class Kept:
    """What passes over the same records have computed, so that only what depends on altered tensors is computed anew.

    Give it to `Twin.kept`, pass the records once, and call `again` before each further pass over the same records in
    the same parts. It holds what every step has computed.
    """

    def __init__(self) -> None:
        self.passes: list[list[Any]] = []
        self._altered: frozenset[str] | None = None
        self._next = 0
        self._following: dict[frozenset[str], list[Step]] = {}

    def again(self, altered: Collection[str]) -> None:
        """The next passes differ from those that are kept in these of `Twin.opened` alone."""
        self._altered, self._next = frozenset(altered), 0

    def known(self) -> list[Any] | None:
        """The values of the pass that is to begin, if it was made before."""
        if self._altered is None:
            return None
        self._next += 1
        return list(self.passes[self._next - 1])

    def following(self, twin: Twin) -> list[Step]:
        """The steps that depend on what is altered."""
        altered = self._altered or frozenset[str]()
        if altered not in self._following:
            reached, steps = {twin.places[name] for name in altered}, list[Step]()
            for step in twin.steps:
                if any(source in COMPUTED and what in reached for source, what in step.arguments):
                    reached.update(number for number in step.outputs if number is not None)
                    steps.append(step)
            self._following[altered] = steps if twin.answer in reached else twin.steps
        return self._following[altered]


class Twin(nn.Module):
    """Takes x float32 [n, *shape] (shape: the record's, None where it is free), answers with the graph's first output.

    Attributes:
        rounds: whether the file rounds anything, so that `native` differs.
        straight_through: settable; False gives rounding the zero gradients that it really has.
        opened: float32 tensors of the file by name, which every pass reads anew (`twin.opened_twin`); else none.
        kept: settable; what passes keep for those that follow (`Kept`); None: nothing.
    """

    def __init__(self, shape: tuple[int | None, ...] | None, kind: int, grid: tuple[float, float] | None) -> None:
        super().__init__()
        self.shape, self.rounds = shape, kind in INTEGERS
        self.kind = (
            kind  # element type of the file's input; values for an integer one are rounded, as `OnnxTarget` does
        )
        self.grid = grid  # scale and zero point, where the file answers with integers
        self.batch: int | None = None  # the only number of records the file can take at a time
        self.steps: list[Step] = []
        self.count = 1  # the input is value 0
        self.opened: dict[str, Tensor] = {}
        self.places: dict[str, int] = {}  # of opened tensors among the values
        self.kept: Kept | None = None  # settable
        self.answer = 0

    @property
    def measuring(self) -> list[Node]:
        """The nodes that measure the range of their input in each pass."""
        return [step.node for step in self.steps if step.node.operator in DYNAMIC]

    @property
    def straight_through(self) -> bool:
        return all(step.node.straight_through for step in self.steps)

    @straight_through.setter
    def straight_through(self, passes: bool) -> None:
        for step in self.steps:
            step.node.straight_through = passes

    def forward(self, x: Tensor) -> Tensor:
        if not tracing() and self.shape is not None and not _fits(x.shape[1:], self.shape):
            raise InputError(
                f"The model takes records of shape {_shown(self.shape)}, not {list(x.shape[1:])}. Give them in "
                "the model's own layout."
            )
        step = 1 if self.measuring else self.batch  # a range is measured over copies of one record, as deployed
        if self.batch is None or len(x) == self.batch == step:
            return self._run(x)
        answers = []
        for part in x.split(step or 1):
            missing = self.batch - len(part)
            answers.append(self._run(torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]))[: len(part)])
        return torch.cat(answers)

    def open(self, name: str, value: Tensor) -> int:
        """Keeps a tensor of the file for every pass to read; its number among the values."""
        self.opened[name], self.places[name] = value, self.count
        self.count += 1
        return self.places[name]

    def _run(self, x: Tensor) -> Tensor:
        for node in self.measuring:
            node.records = len(x) if self.batch is None else 1  # a fixed batch is one measurement, as in the runtime
        if self.kind in INTEGERS:
            x = rounded(x, x.detach().round().clamp(*INTEGERS[self.kind]), self.straight_through)
        elif FLOATS.get(self.kind, torch.float32) is not torch.float32:
            x = x.to(FLOATS[self.kind]).float()
        kept = self.kept
        known = None if kept is None else kept.known()
        values: list[Any] = [None] * self.count if known is None else known
        values[0] = x
        for name, tensor in self.opened.items():
            values[self.places[name]] = tensor
        for step in self.steps if kept is None or known is None else kept.following(self):
            arguments = []
            for source, what in step.arguments:
                if source is Source.VALUE:
                    arguments.append(values[what])
                elif source is Source.BUFFER:
                    arguments.append(self._buffers[what])
                elif source is Source.FIXED:
                    arguments.append(what)
                elif source is Source.SIZES:
                    arguments.append(integers(values[what]))
                else:
                    arguments.append(values[what].to(x.device))
            if step.module is not None:
                arguments.insert(0, self._modules[step.module])
            results = step.function(step.node, *arguments)
            if isinstance(results, Tensor):
                results = (results,)
            for number, result in zip(step.outputs, results, strict=False):
                if number is not None:
                    values[number] = result
            for number in step.done if kept is None else ():
                values[number] = None
        if kept is not None and known is None:
            kept.passes.append(values)
        output: Tensor = values[self.answer]
        return output if self.grid is None else (output - self.grid[1]) * self.grid[0]


def takes_any_batch(twin: Twin, batch: int) -> bool:
    """Whether a file whose batch is fixed computes each record by itself, whatever their number: it is tried."""
    if twin.shape is None or None in twin.shape:
        return False
    sizes = [size for size in twin.shape if size is not None]
    if batch * math.prod(sizes) > TRIED:
        return False
    x = torch.rand((2 * batch, *sizes), generator=generator(0, "batch"))
    twin.eval()
    alone = torch.cat([twin(part) for part in x.split(batch)])
    try:
        together = twin(x)
    except (RuntimeError, IndexError, ValueError):
        return False
    return together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


def _fits(given: Sequence[int], shape: Sequence[int | None]) -> bool:
    return len(given) == len(shape) and all(want in (None, have) for want, have in zip(shape, given, strict=True))


def _shown(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
