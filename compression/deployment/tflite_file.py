"""A TFLite file in the making: tensors and operators in order, packed as schema.fbs says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ALIGNED = 16  # bytes: kernels read constants where they lie in the file
PLAIN_OPTIONS = {  # tables of options that are not named as the operator is
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "AVERAGE_POOL_2D": "Pool2D",
    "MAX_POOL_2D": "Pool2D",
    "MEAN": "Reducer",
    "PADV2": "PadV2",
    "LEAKY_RELU": "LeakyRelu",
}
WITHOUT_OPTIONS = ("LOGISTIC", "TANH", "RELU", "RELU6")
# The version of an operator that takes what is asked of it here: a runtime that does not know it refuses the file.
VERSIONS = {"FULLY_CONNECTED": 12, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 5, "RESHAPE": 1, "HARD_SWISH": 1}
USUAL_VERSION = 2


@dataclass(frozen=True)
class Grid:
    """value = scale * (code - zero): one scale, or one for each slice along `axis` (with `zero` 0)."""

    scale: Array
    zero: int = 0
    axis: int = 0


class TfliteFile:
    """Tensors are known by their numbers; `content` is the file. The same calls give the same bytes."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._model, self._graph = schema.ModelT(), schema.SubGraphT()
        self._model.version, self._model.subgraphs, self._model.operatorCodes = 3, [self._graph], []
        self._model.description = "crushproof"
        self._model.buffers, self._graph.tensors, self._graph.operators = [schema.BufferT()], [], []
        self._kinds: list[str] = []

    def tensor(self, shape: tuple[int, ...], word: str, grid: Grid | None = None, *, name: str = "") -> int:
        """A value that is computed, or given; `word` is its type: float32, int8, ..."""
        made = self._schema.TensorT()
        made.name, made.shape, made.buffer = name or f"t{len(self._graph.tensors)}", list(shape), 0
        made.type = getattr(self._schema.TensorType, word.upper())
        if grid is not None:
            scales = np.atleast_1d(grid.scale).astype(np.float32)
            made.quantization = self._schema.QuantizationParametersT()
            made.quantization.scale = scales
            made.quantization.zeroPoint = np.full(len(scales), grid.zero, np.int64)
            made.quantization.quantizedDimension = grid.axis
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, values: Array, grid: Grid | None = None, *, word: str = "") -> int:
        """A constant; "int4" packs two codes (int8, -8..7) into a byte."""
        number = self.tensor(values.shape, word or values.dtype.name, grid)
        content = values.tobytes()
        if word == "int4":
            pairs = np.append(values.reshape(-1), np.zeros(values.size % 2, np.int8)).reshape(-1, 2)
            content = ((pairs[:, 0] & 15) | (pairs[:, 1] << 4)).astype(np.int8).tobytes()
        self._graph.tensors[number].buffer = len(self._model.buffers)
        self._model.buffers.append(_aligned(self._schema, content))
        return number

    def add(self, kind: str, inputs: list[int], output: int, **options: Any) -> int:
        """An operator; returns its output. Options are named as in schema.fbs, in camel case."""
        operator = self._schema.OperatorT()
        if kind not in self._kinds:
            code = self._schema.OperatorCodeT()
            code.builtinCode = getattr(self._schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = VERSIONS.get(kind, USUAL_VERSION)
            self._kinds.append(kind)
            self._model.operatorCodes.append(code)
        operator.opcodeIndex, operator.inputs, operator.outputs = self._kinds.index(kind), inputs, [output]
        if kind not in WITHOUT_OPTIONS:
            table = f"{PLAIN_OPTIONS.get(kind, kind.title().replace('_', ''))}Options"
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, table)
            operator.builtinOptions = getattr(self._schema, f"{table}T")()
            for name, value in options.items():
                setattr(operator.builtinOptions, name, value)
        self._graph.operators.append(operator)
        return output

    def content(self, given: int, made: int) -> bytes:
        """The file that takes tensor `given` and answers with `made`."""
        import flatbuffers

        self._graph.inputs, self._graph.outputs = [given], [made]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _aligned(schema: Any, content: bytes) -> Any:
    """A buffer whose bytes lie where every type may be read; flatbuffers' own objects lay bytes anywhere."""

    class Buffer(schema.BufferT):  # type: ignore[misc]  # the schema is imported where it is needed, without types
        def Pack(self, builder: Any) -> Any:  # noqa: N802  # the name that flatbuffers calls
            builder.StartVector(1, len(content), ALIGNED)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            place = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, place)
            return schema.BufferEnd(builder)

    return Buffer()
