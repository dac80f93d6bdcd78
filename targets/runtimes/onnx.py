"""An ONNX file as a target: the bytes that ship, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.labels import in_order
from ..errors import InputError, UnsafeInput
from ..recent import Recent
from ..temporary import scratch
from ..untrusted._try_onnx import settings
from ..untrusted.model_file import CheckedOnnx, check_onnx
from .batches import MAPS, answer_in_parts, check_ports, reason
from .exact_products import exact


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Kernels that compute in integers, and those that do the same in floats, by the names ONNX Runtime gives them.
INTEGER_KERNELS = _names(
    "ConvInteger DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulInteger MatMulInteger16 MatMulIntegerToFloat "
    "QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool "
    "QLinearLeakyRelu QLinearMatMul QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere"
)
FLOAT_KERNELS = _names(
    "Attention Conv ConvTranspose FusedConv FusedGemm FusedMatMul GRU Gemm LSTM MatMul MatMulNBits "
    "MultiHeadAttention RNN TransposeMatMul"
)


# What a session may hold of a call, by which it is kept: bytes for each value of the records (64 channels), and a size
# that the file leaves free.
VALUE_BYTES, UNKNOWN = 256, 2**12


class OnnxTarget:
    """A deployed model in ONNX Runtime, with a fixed number of threads.

    Args:
        model: checked, or what is checked first: its bytes, or the file. It has one input [batch, *shape] of numbers
            (`batches.TYPES`); the batch is free or fixed (the last part is then filled up); initial states of a
            recurrent network, as further inputs, are zeros. Where the output ends in a QuantizeLinear, it is turned
            back into floats.
        threads: within an operator; operators run one after another.
        provider: ONNX Runtime's execution provider.
        output: the name of the one that holds the logits; None: the first. One map from class to score for each record
            is read in the order of the classes (`labels.in_order`).
        together: for timing alone. A file with dynamic quantisation measures ranges over all that are asked at once, so
            that an answer would depend on who else asks: such a file is asked one record at a time (a fixed batch is
            filled with copies of it), unless this is set.
        exactly: products of bytes are exact on every processor (`exact_products`); else what its default kernels make
            of them.
        session: of this model, already made (`serving.buffers`); None: made here.

    Raises:
        InputError: there is no such file, or its input or output is not that of a classifier.
        UnsafeInput: not ONNX, cut off, or it asks for external files or operators that are not known. It is refused
            before the runtime sees it.
    """

    def __init__(
        self,
        model: CheckedOnnx | bytes | Path,
        threads: int = 1,
        provider: str = "CPUExecutionProvider",
        *,
        output: str | None = None,
        together: bool = False,
        exactly: bool = True,
        session: Any = None,
    ) -> None:
        checked = check_onnx(_read(model) if isinstance(model, Path) else model)
        self._input, self._output = check_ports(checked.inputs, checked.outputs, output)
        self._alone = not together and checked.measures_ranges
        self._at_once = checked.facts.at_once
        self._session = session or _opened(checked, threads, provider, exactly)
        self.queries = 0

    def logits(self, x: Tensor) -> Tensor:
        """See `Target.logits`. Values for an integer input are rounded and kept within its type.

        Raises:
            InputError: the records do not fit the model.
        """
        self.queries += len(x)
        return answer_in_parts(x, self._input, self._output, self._run, self._at_once, alone=self._alone)

    def _run(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        answer = self._session.run([self._output.name], {self._input.name: part})[0]
        if self._output.type == MAPS:
            names = in_order(answer[0]) if answer else []  # one operator makes all maps, of the same classes
            answer = [[scores[name] for name in names] for scores in answer]
        return np.asarray(answer)


def executed_operators(model: CheckedOnnx | bytes) -> dict[str, int]:
    """How many operators of each type run, once ONNX Runtime has optimised the graph.

    QLinearConv and QGemm are integer kernels, Conv and FusedConv float ones, whatever the file says.
    """
    import onnx

    with scratch() as folder:
        path = folder / "optimised.onnx"
        _session(check_onnx(model), 1, optimised=path)
        graph = onnx.load(path).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def integer_kernels(model: CheckedOnnx | bytes) -> dict[str, dict[str, int]]:
    """The kernels that run, as {"integer": {name: count}, "float": {name: count}}, from the optimised graph.

    Counted are products and what moves with them (additions and pools of integers); a float kernel is a product in
    floats. "int8" in a file's name means little where "integer" is empty here.
    """
    ran = executed_operators(model)
    kinds = {"integer": INTEGER_KERNELS, "float": FLOAT_KERNELS}
    return {kind: {name: count for name, count in ran.items() if name in names} for kind, names in kinds.items()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"The ONNX model {path} cannot be read: {error.strerror or error}.") from None


def session_options(checked: CheckedOnnx, threads: int) -> Any:
    """Options of a session that runs one operator after another, each on `threads` threads, and says nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    for name, value in settings(checked.model).items():
        options.add_session_config_entry(name, value)
    return options


def _opened(checked: CheckedOnnx, threads: int, provider: str, exactly: bool) -> Any:
    """A session, that of before where it is still at hand: to make one takes as long as a small model's 500 answers."""
    key = f"{id(checked)} {threads} {provider} {exactly}"  # the model is kept too, so that no other takes its place
    if (kept := _sessions.get(key)) is not None:
        return kept[1]
    session = _session(checked, threads, provider=provider, exactly=exactly)
    values = math.prod(size if isinstance(size, int) else UNKNOWN for size in checked.inputs[0].shape[1:])
    _sessions.put(key, (checked, session), len(checked.data) + VALUE_BYTES * values * checked.facts.at_once)
    return session


_sessions: Recent[tuple[CheckedOnnx, Any]] = Recent(2**28)


def _session(
    checked: CheckedOnnx,
    threads: int,
    optimised: Path | None = None,
    provider: str = "CPUExecutionProvider",
    *,
    exactly: bool = True,
) -> Any:
    import onnxruntime

    options = session_options(checked, threads)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(
            exact(checked) if exactly else checked.usable, options, providers=[provider]
        )
    except Exception as error:  # the runtime's exception types have no common base
        raise UnsafeInput(f"ONNX Runtime refuses the model: {reason(error)}") from None
