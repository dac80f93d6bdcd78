"""An ONNX file as a target: the bytes that ship, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, UnsafeInput
from .model import BATCH
from .onnx_safety import check_onnx

if TYPE_CHECKING:
    import onnx

FLOAT = "tensor(float)"


class OnnxTarget:
    """A deployed model in ONNX Runtime, with a fixed number of threads.

    Args:
        model: the file, or its bytes. It has one input, float32 [batch, *shape], and its first output is the logits.
        threads: within an operator; operators run one after another.

    Raises:
        InputError: there is no such file, or its input or output is not that of a classifier.
        UnsafeInput: not ONNX, cut off, or it asks for external files or operators outside the standard. It is refused
            before the runtime sees it.
    """

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        data = model if isinstance(model, bytes) else _read(model)
        self._session = _session(data, threads, session_settings(check_onnx(data)))
        self.queries = 0
        try:
            inputs = [(item.name, item.type, item.shape) for item in self._session.get_inputs()]
            outputs = [(item.name, item.type) for item in self._session.get_outputs()]
        except UnicodeDecodeError:
            raise UnsafeInput(
                "The ONNX model is malformed: a name in it is not text (UTF-8). It was not run."
            ) from None
        if len(inputs) != 1 or inputs[0][1] != FLOAT or not outputs or outputs[0][1] != FLOAT:
            raise InputError(
                "The ONNX model must take one float32 input and answer with float32 logits; it takes "
                f"{inputs} and answers {outputs}."
            )
        self._input, _, shape = inputs[0]
        self._output = outputs[0][0]
        if not shape or isinstance(shape[0], int):
            raise InputError(
                f"The ONNX model's input has the fixed shape {shape}; its first axis must be free (a dynamic batch). "
                "Export it again with that axis dynamic."
            )

    def logits(self, x: Tensor) -> Tensor:
        """See `Target.logits`. Raises InputError when the records do not fit the model."""
        self.queries += len(x)
        records = x.detach().cpu().float().contiguous().numpy()
        parts = [self._answer(records[first : first + BATCH]) for first in range(0, len(records), BATCH)]
        return torch.cat(parts).to(x.device) if parts else torch.zeros(0, 0, device=x.device)

    def _answer(self, batch: np.ndarray[Any, Any]) -> Tensor:
        try:
            return torch.from_numpy(self._session.run([self._output], {self._input: batch})[0])
        except Exception as error:  # the runtime's exception types have no common base
            raise InputError(
                f"The ONNX model does not answer records of shape {list(batch.shape[1:])}: {_reason(error)}"
            ) from None


def session_settings(model: onnx.ModelProto) -> dict[str, str]:
    """ONNX Runtime's settings for a checked model: the same values of the file's arithmetic, sooner.

    Where only weights are quantised there is no integer arithmetic to keep, so they are unpacked once, on loading,
    instead of on every call (measured: four times faster).
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        # A weight-only product among them multiplies in float32, as the file says, not with activations in 8 bits.
        return {"session.qdq_matmulnbits_accuracy_level": "1"}
    return {"session.disable_quant_qdq": "1"}


def executed_operators(model: bytes) -> dict[str, int]:
    """How many operators of each type run, once ONNX Runtime has optimised the graph.

    QLinearConv and QGemm are integer kernels, Conv and FusedConv float ones, whatever the file says.
    """
    import onnx

    settings = session_settings(check_onnx(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        _session(model, 1, settings, optimised=path)
        graph = onnx.load(path).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"The ONNX model {path} cannot be read: {error.strerror or error}.") from None


def _session(data: bytes, threads: int, settings: dict[str, str], optimised: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exception types have no common base
        raise UnsafeInput(f"ONNX Runtime refuses the model: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The first line of its message; running out of memory comes without one."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
