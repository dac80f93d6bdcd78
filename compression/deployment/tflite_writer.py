"""What is known of an ONNX graph while it is written as a TFLite file: constants, tensors so far, grids, layouts.

A value of four axes, an image, lies with its channels last in the file; any other as in ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ...targets.errors import NotApplicable
from .tflite_file import Array, Grid, TfliteFile

if TYPE_CHECKING:
    import onnx

LAST = (0, 2, 3, 1)  # axes of an image in ONNX, in the order of TFLite
FIRST = (0, 3, 1, 2)  # and back
NONE, RELU, RELU6 = 0, 1, 3  # activations that are computed with a layer
SAME, VALID = 0, 1
SHAPED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
PASSING = (*SHAPED, "MaxPool", "Identity", "Dropout")  # a rounding may come first
SMALL = ("int2", "int4", "int8", "float16")  # types of weights that a file keeps, whatever computes with them
LOWEST = np.float32(-3.0e38)


@dataclass(frozen=True)
class Known:
    """A constant: floats, or codes with their grid, whose axis is ONNX's."""

    values: Array
    grid: Grid | None = None

    def moved(self, order: tuple[int, ...]) -> Known:
        """With its axes in another order."""
        grid = self.grid
        if grid is not None and np.size(grid.scale) > 1:
            grid = replace(grid, axis=order.index(grid.axis))
        return Known(np.ascontiguousarray(self.values.transpose(order)), grid)

    @property
    def floats(self) -> Array:
        if self.grid is None:
            return self.values.astype(np.float32)
        sides = [1] * self.values.ndim
        if np.size(self.grid.scale) > 1:
            sides[self.grid.axis] = -1
        values: Array = self.values.astype(np.float32) * np.reshape(self.grid.scale, sides)
        return values


@dataclass(frozen=True)
class Computed:
    """A value of the network: a tensor of the file, and its shape as in ONNX. With a grid, the tensor holds codes."""

    number: int
    shape: tuple[int, ...]
    grid: Grid | None = None


class Writer:
    """Values of the ONNX graph by their names, as they are known in the file so far."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx
        from onnx import numpy_helper

        graph = model.graph
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        for one in graph.output:
            one.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._shapes = {
            one.name: tuple(size.dim_value for size in one.type.tensor_type.shape.dim)
            for one in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        self._graph, self.node, self.file = graph, onnx.NodeProto(), TfliteFile()
        self._held: dict[str, Known | Computed] = {
            one.name: Known(numpy_helper.to_array(one)) for one in graph.initializer
        }
        self._users: dict[str, list[onnx.NodeProto]] = {graph.output[0].name: [onnx.NodeProto()]}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._floats: dict[int, int] = {}  # tensors of floats, by those of the codes they stand for

        name = graph.input[0].name
        self._entrance = self.file.tensor(self.shape_of(name), "float32", name="input")
        entered = Computed(self._entrance, self.shape_of(name))
        if len(entered.shape) == 4:
            laid = tuple(entered.shape[axis] for axis in LAST)
            entered = replace(entered, number=self.between("TRANSPOSE", entered, laid, self.numbers(*LAST)))
        self._held[name] = entered

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Those to write, in order; each is `node` until the next. Shapes are known, so what computes one is none."""
        needed, used = {self._graph.output[0].name}, []
        for node in reversed(self._graph.node):
            if needed.intersection(node.output):
                needed.update(node.input[:1] if node.op_type in SHAPED else node.input)
                used.append(node)
        for node in reversed(used):
            if node.output[0] not in self._held:  # else it was computed with the layer before it
                self.node = node
                yield node

    def content(self) -> bytes:
        """The file, once every node was written."""
        made = self._held[self._graph.output[0].name]
        if not isinstance(made, Computed) or made.number == self._entrance or len(made.shape) == 4:
            self.refuse("answers with something else than scores")
        return self.file.content(self._entrance, self.floats(made))

    # What is known of the node ------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> NoReturn:
        raise NotApplicable(
            f"The model cannot be deployed as TFLite: its operator {self.node.op_type} ({self.node.name or 'no name'}) "
            f"{reason}. Convolutions, dense layers, pools, sums and the usual activations are, with float weights or "
            "weights in 8 and 4 bits and calibrated or float activations. Deploy it as ONNX (deploy: onnx)."
        )

    def setting(self, name: str, default: Any) -> Any:
        from onnx import helper

        found = next((one for one in self.node.attribute if one.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def held(self, at: int) -> Known | Computed | None:
        """The node's input at that place; None: it is left out."""
        name = self.node.input[at] if at < len(self.node.input) else ""
        return self._held[name] if name else None

    def computed(self, at: int = 0) -> Computed:
        found = self.held(at)
        if not isinstance(found, Computed):
            self.refuse("computes with a constant alone")
        return found

    def known(self, at: int) -> Known | None:
        found = self.held(at)
        if isinstance(found, Computed):
            self.refuse("takes weights or settings that are computed")
        return found

    def weights(self, at: int) -> Known:
        found = self.known(at)
        if found is None:
            self.refuse("has no weights")
        return found

    def shape_of(self, name: str) -> tuple[int, ...]:
        shape = self._shapes.get(name, ())
        if not shape or min(shape) < 1 or shape[0] != 1:
            self.refuse(f"has a shape that is not known for one record ({list(shape)})")
        return shape

    def after(self) -> tuple[str, int]:
        """The value that the node makes, or the one that its activation makes of it; the activation."""
        name = self.node.output[0]
        users = self._users.get(name, [])
        if len(users) == 1 and users[0].op_type == "Relu":
            return users[0].output[0], RELU
        if len(users) == 1 and users[0].op_type == "Clip" and self.ends(users[0]) == (0.0, 6.0):
            return users[0].output[0], RELU6
        return name, NONE

    def ends(self, node: onnx.NodeProto) -> tuple[float, ...]:
        held = [self._held.get(name) for name in node.input[1:]]
        return tuple(float(one.values) for one in held if isinstance(one, Known) and one.values.size == 1)

    def rounded(self, name: str) -> Grid | None:
        """The grid that a value is rounded to before anything else is computed of it."""
        while len(users := self._users.get(name, [])) == 1:
            if users[0].op_type == "QuantizeLinear":
                return self.grid_of(users[0])
            if users[0].op_type not in PASSING:
                break
            name = users[0].output[0]
        return None

    def grid_of(self, node: onnx.NodeProto) -> Grid:
        """Of a QuantizeLinear, in int8."""
        scale, zero = (self._held.get(name) for name in node.input[1:3])
        if not isinstance(scale, Known) or not isinstance(zero, Known) or scale.values.size != 1:
            self.refuse("rounds activations to a grid that is computed, or to several")
        if zero.values.dtype not in (np.uint8, np.int8):
            self.refuse(f"rounds activations to {zero.values.dtype.name}")
        lower = 128 if zero.values.dtype == np.uint8 else 0
        return Grid(scale.values.reshape(1), int(zero.values.reshape(())) - lower)

    # What goes into the file --------------------------------------------------------------------------------------

    def put(self, name: str, value: Known | Computed) -> None:
        """Notes what the node made; what its activation was to make of it is known by both names."""
        self._held[self.node.output[0]] = self._held[name] = value

    def _new(self, shape: tuple[int, ...], grid: Grid | None = None, name: str = "") -> Computed:
        laid = tuple(shape[axis] for axis in LAST) if len(shape) == 4 else shape
        return Computed(self.file.tensor(laid, "float32" if grid is None else "int8", grid, name=name), shape, grid)

    def made(self, kind: str, inputs: list[int], name: str, grid: Grid | None = None, **options: Any) -> None:
        """An operator whose result is that value of the graph, in floats or on a grid."""
        label = "logits" if name == self._graph.output[0].name and grid is None else ""
        result = self._new(self.shape_of(name), grid, label)
        self.file.add(kind, inputs, result.number, **options)
        self.put(name, result)

    def between(self, kind: str, given: Computed, shape: tuple[int, ...], *inputs: int, **options: Any) -> int:
        """An operator inside of a node's work, that keeps codes what they are; `shape` is as it lies in the file."""
        word = "float32" if given.grid is None else "int8"
        return self.file.add(kind, [given.number, *inputs], self.file.tensor(shape, word, given.grid), **options)

    def numbers(self, *values: int) -> int:
        return self.file.constant(np.array(values, np.int32))

    def floats(self, value: Known | Computed) -> int:
        """The tensor of a value's floats."""
        if isinstance(value, Computed):
            if value.grid is None:
                return value.number
            if value.number not in self._floats:
                result = self._new(value.shape)
                self._floats[value.number] = self.file.add("DEQUANTIZE", [value.number], result.number)
            return self._floats[value.number]
        if value.values.dtype.name not in SMALL:
            return self.file.constant(value.floats)
        codes = self.codes(value, narrow=False)
        return self.file.add("DEQUANTIZE", [codes], self.file.tensor(value.values.shape, "float32"))

    def codes(self, value: Known, *, narrow: bool = True) -> int:
        """The tensor of a constant as it is stored; codes of 4 bits and fewer in 4, where `narrow`, else in 8."""
        if value.values.dtype.name in ("int4", "int2"):
            return self.file.constant(value.values.astype(np.int8), value.grid, word="int4" if narrow else "")
        return self.file.constant(value.values, value.grid)

    def layer(self, kind: str, given: Computed, weight: Known, bias: Known | None, **options: Any) -> None:
        """A convolution or product: of integers where its input is rounded, and its output next."""
        name, activation = self.after()
        grid = self.rounded(name) if given.grid is not None and weight.grid is not None else None
        if bias is not None and (bias.grid is None or bias.values.dtype != np.int32):
            grid = None
        if grid is None:
            inputs = [self.floats(given), self.floats(weight)]
            inputs += [] if bias is None else [self.file.constant(bias.floats)]
        else:
            inputs = [given.number, self.codes(weight), *([] if bias is None else [self.codes(bias)])]
        self.made(kind, inputs, name, grid, fusedActivationFunction=activation, **options)

    def window(self, given: Computed, kernel: list[int], filling: float = 0.0) -> tuple[Computed, dict[str, int]]:
        """What a window slides over, with a margin where TFLite has none like it, and how it slides."""
        strides, steps = self.setting("strides", [1, 1]), self.setting("dilations", [1, 1])
        pads, sizes = list(self.setting("pads", [0] * 4)), given.shape[2:]
        if self.setting("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(sizes) != 2 or len(kernel) != 2:
            self.refuse("does not slide over images, or places its margins by itself")
        reach = [step * (size - 1) + 1 for step, size in zip(steps, kernel, strict=True)]
        padded = [size + pads[at] + pads[at + 2] for at, size in enumerate(sizes)]
        rows = tuple((size - far) // stride + 1 for size, far, stride in zip(padded, reach, strides, strict=True))
        if rows != self.shape_of(self.node.output[0])[2:]:
            self.refuse("lets its window leave the image (ceil_mode)")
        options = {"strideH": strides[0], "strideW": strides[1], "padding": VALID}
        lacking = [
            max(0, (-(-size // stride) - 1) * stride + far - size)
            for size, far, stride in zip(sizes, reach, strides, strict=True)
        ]
        if not any(pads):
            return given, options
        if pads == [one // 2 for one in lacking] + [one - one // 2 for one in lacking]:
            return given, {**options, "padding": SAME}
        margins = self.file.constant(np.array([[0, 0], *zip(pads[:2], pads[2:], strict=True), [0, 0]], np.int32))
        laid, further = (1, *padded, given.shape[1]), list[int]()
        if filling:
            held = np.array([filling if given.grid is None else -128]).astype(
                np.float32 if given.grid is None else np.int8
            )
            further = [self.file.constant(held, given.grid)]
        number = self.between("PADV2" if further else "PAD", given, laid, margins, *further)
        return Computed(number, (1, given.shape[1], *padded), given.grid), options
