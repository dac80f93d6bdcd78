"""What is known while the graph of a TFLite file is written as an ONNX model: nodes so far, names, constants, grids."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ...errors import NotApplicable
from ...untrusted.tflite_graph import Graph, Operator, Tensor, constant_of
from ..nodes import FLOAT, FLOAT16, INT8, INT32, INT64, UINT8

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]
DOMAIN = "tflite"  # of operators that ONNX has none for (kernels.py)
DTYPES = {FLOAT: np.float32, FLOAT16: np.float16, INT8: np.int8, UINT8: np.uint8, INT32: np.int32, INT64: np.int64}
ELEMENTS = {"float32": FLOAT, "float16": FLOAT16, "int8": INT8, "uint8": UINT8}  # and those of constants
WHOLE = {"int8": (-128, 127), "uint8": (0, 255)}  # codes of activations
READ, READ_BY_BYTE = 2**20, 8  # elements of all constants, read and written: several tensors may share their bytes


class Translation:
    """The nodes of an ONNX model that computes what a TFLite graph computes, and the constants they take.

    A tensor of the file is the value of the same number ("t7"), in the file's own layout; where it is quantised, its
    codes.
    """

    def __init__(self, graph: Graph, data: bytes) -> None:
        self.graph, self._data = graph, data
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.operator = Operator(kind="", inputs=(), outputs=(), options={})  # the one that is being written
        self._names: dict[tuple[int, tuple[int, ...], bytes], str] = {}  # of initialisers, by what they hold
        self._computed: dict[int, Array] = {}  # constants that were stored in another type
        self._left = READ + READ_BY_BYTE * len(data)

    def refuse(self, reason: str) -> NoReturn:
        at = next((at for at, one in enumerate(self.graph.operators) if one is self.operator), 0)
        raise NotApplicable(
            f"The twin cannot follow the operator {self.operator.kind} of the TFLite model (number {at}): {reason}. "
            "Attacks that need no gradients still work."
        )

    def _count(self, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            self.refuse(f"its file of {len(self._data):,} bytes stands for more weights than it can hold")

    # Tensors of the file -----------------------------------------------------------------------------------------

    def tensor(self, number: int) -> Tensor:
        return self.graph.tensors[number]

    def input(self, at: int) -> int:
        """The number of the operator's input at that place; -1 where it is left out."""
        return self.operator.inputs[at] if at < len(self.operator.inputs) else -1

    def needed(self, at: int) -> int:
        number = self.input(at)
        if number < 0:
            self.refuse(f"its input {at} is left out")
        return number

    @property
    def output(self) -> int:
        if len(self.operator.outputs) != 1:
            self.refuse(f"it has {len(self.operator.outputs)} outputs")
        return self.operator.outputs[0]

    def shape(self, number: int, rank: int) -> tuple[int, ...]:
        shape = self.tensor(number).shape
        if len(shape) != rank:
            self.refuse(f"one of its tensors has the shape {list(shape)}, not {rank} axes")
        return shape

    def constant(self, number: int) -> Array | None:
        """The values of a tensor, as they are stored; None: it is computed, or left out."""
        if number < 0:
            return None
        if number in self._computed:
            return self._computed[number]
        tensor = self.tensor(number)
        if tensor.place is None:
            return None
        self._count(math.prod(tensor.shape))
        found = constant_of(tensor, self._data)
        if found is None:
            self.refuse(f"a constant of type {tensor.type} and shape {list(tensor.shape)} is stored in another way")
        self._computed[number] = found
        return found

    def keep(self, number: int, values: Array) -> None:
        """Makes a computed tensor a constant."""
        self._computed[number] = values

    def stored_as_floats(self, number: int) -> Array:
        """A constant's float values, whatever it is stored as."""
        values = self.constant(number)
        if values is None:
            self.refuse("its weights are computed")
        tensor = self.tensor(number)
        if not tensor.scale:
            return values.astype(np.float32)
        scale, zero = self.grids(number)
        sides = [1] * values.ndim
        if scale.size > 1:
            sides[tensor.axis] = -1
        return ((values.astype(np.float32) - zero.reshape(sides)) * scale.reshape(sides)).astype(np.float32)

    def integers(self, number: int) -> list[int]:
        """A constant that says where or how large."""
        values = self.constant(number)
        if values is None or values.dtype.kind != "i":
            self.refuse("what says where or how large is computed")
        return [int(item) for item in values.reshape(-1)]

    def is_whole(self, number: int) -> bool:
        """Whether the tensor holds codes; else it holds floats."""
        word = self.tensor(number).type
        if word not in WHOLE and word != "float32":
            self.refuse(f"it computes with {word}; the twin follows float32, int8 and uint8")
        return word in WHOLE

    def grids(self, number: int) -> tuple[Array, Array]:
        """Scales and zero points, float32: one, or one for each slice along the tensor's axis."""
        tensor = self.tensor(number)
        scale = np.array(tensor.scale, np.float32)
        zero = np.array(tensor.zero or [0] * len(tensor.scale), np.float32)
        sliced = 0 <= tensor.axis < len(tensor.shape) and scale.size == tensor.shape[tensor.axis]
        fits = scale.size == 1 or sliced
        if not fits or zero.size not in (1, scale.size) or not np.isfinite(scale).all() or (scale <= 0).any():
            self.refuse("the scales of a quantised tensor are none")
        return scale, np.broadcast_to(zero, scale.shape)

    def grid(self, number: int) -> tuple[np.float32, int]:
        """Scale and zero point of codes of activations."""
        scale, zero = self.grids(number)
        low, high = WHOLE[self.tensor(number).type]
        if scale.size != 1 or not low <= zero[0] <= high:
            self.refuse("the grid of its activations is none")
        return scale[0], int(zero[0])

    # Values of the ONNX model ------------------------------------------------------------------------------------

    def value(self, number: int) -> str:
        """The name of a tensor's values as they are stored."""
        values = self.constant(number)
        if values is None:
            return f"t{number}"
        kind = ELEMENTS.get(values.dtype.name)
        if kind is None:
            self.refuse(f"it computes with a constant of type {values.dtype.name}")
        return self.number(values, kind)

    def number(self, values: Any, kind: int = FLOAT) -> str:
        """The name of an initialiser that holds `values`; equal ones are one, however many operators take them."""
        from onnx import helper

        array = np.asarray(values, DTYPES[kind])
        content = array.tobytes()
        key = kind, array.shape, hashlib.sha256(content).digest()
        if key not in self._names:
            self._count(array.size)
            name = self._names[key] = f"c{len(self._names)}"
            self.initializers.append(helper.make_tensor(name, kind, array.shape, content, raw=True))
        return self._names[key]

    def zero(self, number: int) -> str:
        """The zero point of codes of activations, which also says their type."""
        return self.number(self.grid(number)[1], ELEMENTS[self.tensor(number).type])

    def add(self, kind: str, inputs: list[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        """A node; returns the name of its output."""
        from onnx import helper

        output = output or f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], f"{self.operator.kind}_{output}", domain=domain, **attributes)
        )
        return output

    def floats(self, number: int) -> str:
        """The float values of a tensor, whatever it holds."""
        if self.constant(number) is not None:
            return self.number(self.stored_as_floats(number))
        if not self.is_whole(number):
            return self.value(number)
        scale, _ = self.grid(number)
        return self.add("DequantizeLinear", [self.value(number), self.number(scale), self.zero(number)])

    def put(self, value: str, number: int) -> None:
        """Makes float values the tensor of that number: rounded to its grid where it holds codes."""
        if self.is_whole(number):
            scale, _ = self.grid(number)
            self.add("QuantizeLinear", [value, self.number(scale), self.zero(number)], f"t{number}")
        else:
            self.add("Identity", [value], f"t{number}")

    def ratio(self, step: np.float32, number: int, scale: Any = 1.0) -> Any:
        """`step` times `scale` (one or several) in steps of a tensor of codes, in float32, as XNNPACK computes it."""
        with np.errstate(over="ignore"):
            found = step * scale / self.grid(number)[0]
        if not np.isfinite(found).all():
            self.refuse("its grids are too far apart")
        return found

    def same_grid(self, one: int, other: int) -> bool:
        if not self.is_whole(one) or self.tensor(one).type != self.tensor(other).type:
            return self.tensor(one).type == self.tensor(other).type
        return self.grid(one) == self.grid(other)
