"""Eight-bit grids for the operands of additions and averages of activations, so that integer kernels can take them.

A runtime computes a convolution in integers only where its output is rounded again before anything but an activation
function. A residual connection adds that output to another activation, and average pooling sums it: left in float, they
would keep the layers around them in float too, and cost time for going back and forth. Here both operands of such an
addition, and what enters an average, are rounded to u8 grids. The result is not: the layers that read it round it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...targets.data.records import Bounds
from ...targets.model import device_of, records_at_once
from ..layers.edit import rebuildable
from .quantized_layer import QuantizedLayer, input_grid, round_to_grid

_ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.add_)  # + and += are calls of the latter two
_KEPT = (torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu, F.max_pool1d, F.max_pool2d)
_RESHAPED = (torch.flatten, torch.Tensor.flatten, torch.reshape, torch.Tensor.reshape, torch.Tensor.view)
_MEANS = (torch.mean, torch.Tensor.mean)  # no runtime takes them in integers, but they may follow an addition
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)

Rounding = Callable[[int, int, Tensor], Tensor]
"""(call, place of an operand, its value) -> the value to compute with."""
Seen = Callable[[Any, tuple[Any, ...], Any, bool], None]
"""(function, its arguments, its result, whether it is an addition or average that is numbered), after any call."""


class _Calls(TorchFunctionMode):
    """Shows every operand of the additions and averages of activations to `rounding`, numbered as they are called."""

    def __init__(self, rounding: Rounding, seen: Seen | None = None) -> None:
        super().__init__()
        self.rounding, self.seen, self.calls = rounding, seen, 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = _operands(function, args, kwargs or {})
        given = args
        if operands:
            rounded = [self.rounding(self.calls, position, value) for position, value in enumerate(operands)]
            self.calls += 1
            args = (*rounded, *args[len(rounded) :])
            # An addition in place changes its rounded operand instead: right for `x += y`, which rebinds x.
        output = function(*args, **(kwargs or {}))
        if self.seen is not None:
            self.seen(function, given, output, bool(operands))
        return output


def _operands(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """What the call adds or averages: two tensors, or one; nothing if it is no such call."""
    if function in _ADDITIONS and len(args) == 2 and not kwargs:
        left, right = args
        if isinstance(left, Tensor) and isinstance(right, Tensor) and left.dtype == right.dtype == torch.float32:
            return left, right
    if function in _AVERAGES and args and isinstance(args[0], Tensor) and args[0].dtype == torch.float32:
        return (args[0],)
    return ()


@rebuildable("operands")
class RoundedActivations(nn.Module):
    """A model in which operands of additions and averages of activations are rounded to u8 grids.

    Calls are told apart by their order in a forward pass. Buffers per rounded operand: `scale_<i>` float32 [] and
    `zero_point_<i>` int32 [] (0..255), i counting along `operands`.

    Args:
        operands: those that are rounded, each as 2 * call + place (0 left, or what is averaged; 1 right), ascending.

    Attributes:
        inner: the model.
    """

    def __init__(self, operands: tuple[int, ...]) -> None:
        super().__init__()
        self.operands = tuple(operands)
        self.inner: nn.Module = nn.Identity()
        self.straight_through = True  # False: the zero gradients that hard rounding really has
        for index in range(len(self.operands)):
            self.register_buffer(f"scale_{index}", torch.tensor(1.0))
            self.register_buffer(f"zero_point_{index}", torch.tensor(0, dtype=torch.int32))
        self._index = {operand: index for index, operand in enumerate(self.operands)}

    def forward(self, x: Tensor) -> Tensor:
        with _Calls(self._round):
            output: Tensor = self.inner(x)
        return output

    def true_gradients(self) -> None:
        self.straight_through = False

    def shipped(self) -> nn.Module:
        """Itself, rounding by the function that knows how it is written in ONNX."""
        return _Shipped(self)

    def _round(self, call: int, place: int, value: Tensor) -> Tensor:
        index = self._index.get(2 * call + place)
        if index is None:
            return value
        grid = self.get_buffer(f"scale_{index}"), self.get_buffer(f"zero_point_{index}")
        return round_to_grid(value, *grid, self.straight_through)


class _Shipped(nn.Module):
    """`RoundedActivations` during export."""

    def __init__(self, layer: RoundedActivations) -> None:
        super().__init__()
        self.inner, self._index = layer.inner, layer._index
        for name, value in layer.named_buffers(recurse=False):
            self.register_buffer(name, value.to(torch.uint8) if name.startswith("zero") else value)

    def forward(self, x: Tensor) -> Tensor:
        with _Calls(self._round):
            output: Tensor = self.inner(x)
        return output

    def _round(self, call: int, place: int, value: Tensor) -> Tensor:
        index = self._index.get(2 * call + place)
        if index is None:
            return value
        grid = self.get_buffer(f"scale_{index}"), self.get_buffer(f"zero_point_{index}")
        rounded: Tensor = _Written.apply(value, *grid)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return rounded


class _Written(torch.autograd.Function):
    """Rounding to a grid as ONNX's pair of operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.to(torch.int32), 0, 255)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        return g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero_point), scale, zero_point)


def quantize_additions(module: nn.Module, inputs: Tensor, bounds: Bounds) -> nn.Module:
    """`module` with additions and averages of activations rounded to 8 bits where a quantised layer is beside them.

    An addition of two tensors of one shape is rounded if one of them comes from a layer with static activations and the
    sum goes to one, by way of rectification, pooling, flattening and other additions at most; an average likewise. (The
    sums of a Transformer go to layer norms, in float: rounding them would gain nothing.) A tensor that a
    quantised layer reads too gets that layer's grid: then it is rounded once for both.

    Args:
        module: with static activations quantised; not changed.
        inputs: calibration inputs float32 [n, *shape].
        bounds: what an input may be: the range of the model's own input where that is added.

    Returns:
        A `RoundedActivations` around `module`; `module` itself where there is nothing to round, where the number of
        calls varies between batches, or where additions change a tensor in place that is read elsewhere.
    """
    watch = _Watch(module, bounds)
    try:
        signatures = {watch.run(inputs[:1], compare=True)}
        if not watch.ranges:
            return module
        signatures |= {watch.run(part) for part in torch.split(inputs, records_at_once(inputs, module))}
    finally:
        watch.close()
    if len(signatures) != 1 or not watch.same_output or not watch.ranges:
        return module
    operands = tuple(sorted(watch.ranges))
    wrapper = RoundedActivations(operands)
    for index, operand in enumerate(operands):
        reader = watch.readers.get(operand)
        if reader is not None and reader.input_scale is not None and reader.input_zero_point is not None:
            scale, zero_point = reader.input_scale.clone(), reader.input_zero_point.clone()
        else:
            step, zero = input_grid(*watch.ranges[operand])
            scale, zero_point = torch.tensor(step), torch.tensor(zero, dtype=torch.int32)
        setattr(wrapper, f"scale_{index}", scale)
        setattr(wrapper, f"zero_point_{index}", zero_point)
    wrapper.inner = module
    return wrapper.to(device_of(module)).eval()


class _Watch:
    """Runs a module, and sees which tensors are added and averaged, who made them and who else reads them."""

    def __init__(self, module: nn.Module, bounds: Bounds) -> None:
        self.module, self.bounds = module, bounds
        self.ranges: dict[int, tuple[float, float]] = {}  # of operands to round, by 2 * call + place
        self.readers: dict[int, QuantizedLayer] = {}  # a layer that reads the same tensor
        self.same_output = True
        self._read: dict[int, QuantizedLayer] = {}  # by id of a tensor; `_kept` keeps ids from being used twice
        self._quantized: set[int] = set()  # ids of tensors that integer kernels could make
        self._kept: list[Tensor] = []
        self._handles = []
        for layer in module.modules():
            if isinstance(layer, QuantizedLayer) and layer.activations == "static":
                self._handles.append(layer.register_forward_hook(self._called))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def run(self, x: Tensor, *, compare: bool = False) -> tuple[int, ...]:
        """One pass; the number of operands of each call in order.

        Args:
            compare: with the answers of a pass that nobody watches.
        """
        expected, x = self.module(x.clone()) if compare else None, x.clone()
        self._read, self._quantized, self._kept = {}, set(), []
        calls: list[list[Tensor]] = []
        results: list[Tensor] = []  # of those calls
        made: list[tuple[Tensor, tuple[Any, ...]]] = []  # every tensor that passes integers on, and what it is made of

        def see(call: int, place: int, value: Tensor) -> Tensor:
            if place == 0:
                calls.append([])
            calls[call].append(value)
            self._kept.append(value)
            return value.clone()

        def follow(function: Any, args: tuple[Any, ...], output: Any, numbered: bool) -> None:
            if function in (*_ADDITIONS, *_KEPT, *_AVERAGES, *_RESHAPED, *_MEANS):
                made.append((output, args))
                if numbered:
                    results.append(output)
                if function in (*_ADDITIONS, *_KEPT) and any(id(value) in self._quantized for value in args):
                    self._quantized.add(id(output))

        with _Calls(see, follow):
            output = self.module(x)
        going = set(self._read)  # ids of tensors that go to a static layer
        for result, args in reversed(made):
            if id(result) in going:
                going.update(id(value) for value in args)
        self.same_output &= expected is None or torch.equal(output, expected)
        for call, (operands, result) in enumerate(zip(calls, results, strict=True)):
            between_integers = any(id(value) in self._quantized for value in operands) and id(result) in going
            if not between_integers or any(value.shape != operands[0].shape for value in operands):
                continue
            for place, value in enumerate(operands):
                low, high = (float(end) for end in torch.aminmax(value))
                if value is x:
                    low, high = float(self.bounds.low.min()), float(self.bounds.high.max())
                before = self.ranges.get(2 * call + place, (low, high))
                self.ranges[2 * call + place] = min(low, before[0]), max(high, before[1])
                if id(value) in self._read:
                    self.readers[2 * call + place] = self._read[id(value)]
        return tuple(len(operands) for operands in calls)

    def _called(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, QuantizedLayer)
        self._read.setdefault(id(inputs[0]), layer)
        self._quantized.add(id(output))
        self._kept += [inputs[0], output]
