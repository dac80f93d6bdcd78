"""TFLite files written by hand, operator by operator."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Grid = tuple[float | list[float], int]
VERSIONS = {"FULLY_CONNECTED": 4, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3}  # with which each takes int8; 2: most others
ONLY_1 = ("RESHAPE", "HARD_SWISH", "RELU_N1_TO_1", "FLOOR", "SQUEEZE", "EXPAND_DIMS")
OPTIONS = {  # whose tables are not named as the operator is
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "AVERAGE_POOL_2D": "Pool2D",
    "MAX_POOL_2D": "Pool2D",
    "MEAN": "Reducer",
    "PADV2": "PadV2",
    "LEAKY_RELU": "LeakyRelu",
}
PLAIN = ("LOGISTIC", "TANH", "RELU", "RELU6", "RELU_N1_TO_1", "FLOOR")


class TfliteFile:
    """Tensors and operators are added in order; `content` is the file. The last output is the file's."""

    def __init__(self, *shape: int, grid: Grid | None = None, word: str = "int8") -> None:
        self._model, self._graph = schema.ModelT(), schema.SubGraphT()
        self._model.version, self._model.subgraphs, self._model.operatorCodes = 3, [self._graph], []
        self._model.buffers, self._graph.tensors, self._graph.operators = [schema.BufferT()], [], []
        self._kinds: list[str] = []
        self.x = self.tensor(shape, grid, word=word)

    def tensor(
        self,
        shape: tuple[int, ...],
        grid: Grid | None = None,
        values: np.ndarray[Any, Any] | None = None,
        *,
        axis: int = 0,
        word: str = "int8",
    ) -> int:
        """A value, or with `values` a constant; integers `word` where it has a grid, floats where it has none."""
        made = schema.TensorT()
        made.name, made.shape, made.buffer = f"t{len(self._graph.tensors)}", list(shape), 0
        named = values.dtype.name if values is not None else word if grid is not None else "float32"
        made.type = getattr(schema.TensorType, named.upper())
        if values is not None:
            held = schema.BufferT()
            held.data = np.frombuffer(values.tobytes(), np.uint8)
            made.buffer = len(self._model.buffers)
            self._model.buffers.append(held)
        if grid is not None:
            made.quantization = schema.QuantizationParametersT()
            scales = np.atleast_1d(grid[0]).tolist()
            made.quantization.scale, made.quantization.zeroPoint = scales, [grid[1]] * len(scales)
            made.quantization.quantizedDimension = axis
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, values: np.ndarray[Any, Any], grid: Grid | None = None, *, axis: int = 0) -> int:
        return self.tensor(values.shape, grid, values, axis=axis)

    def add(
        self,
        kind: str,
        inputs: list[int],
        shape: tuple[int, ...],
        grid: Grid | None = None,
        *,
        word: str = "int8",
        **options: Any,
    ) -> int:
        """An operator; returns its output."""
        operator = schema.OperatorT()
        if kind not in self._kinds:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = 1 if kind in ONLY_1 else VERSIONS.get(kind, 2)
            self._kinds.append(kind)
            self._model.operatorCodes.append(code)
        operator.opcodeIndex, operator.inputs = self._kinds.index(kind), inputs
        operator.outputs = [self.tensor(shape, grid, word=word)]
        if kind not in PLAIN:
            table = f"{OPTIONS.get(kind, kind.title().replace('_', ''))}Options"
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            operator.builtinOptions = getattr(schema, f"{table}T")()
            for name, value in options.items():
                assert hasattr(operator.builtinOptions, name), name
                setattr(operator.builtinOptions, name, value)
        self._graph.operators.append(operator)
        return int(operator.outputs[0])

    def content(self, *outputs: int) -> bytes:
        self._graph.inputs = [self.x]
        self._graph.outputs = list(outputs) or list(self._graph.operators[-1].outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
