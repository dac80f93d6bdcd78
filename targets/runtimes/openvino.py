"""An ONNX file as a target in OpenVINO's runtime, on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from ..errors import NotApplicable, Unavailable
from ..untrusted.model_file import CheckedOnnx, check_onnx
from .batches import answer_in_parts, check_ports, reason
from .runtime import RUNTIMES, Runtime

MISSING = "OpenVINO is not installed: pip install crushproof[openvino]."


@RUNTIMES.register
class OpenVino(Runtime):
    """OpenVINO on the CPU: floats stay float32, integer products are OpenVINO's own."""

    kind: Literal["openvino"] = "openvino"
    phrase: ClassVar[str] = "OpenVINO"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)

    def open(self, model: CheckedOnnx, *, output: str | None = None) -> OpenVinoTarget:
        """See `Runtime.open`."""
        return OpenVinoTarget(model, output=output)

    def check(self) -> None:
        """See `Runtime.check`."""
        if find_spec("openvino") is None:
            raise Unavailable(MISSING)


class OpenVinoTarget:
    """A deployed model in OpenVINO, compiled for the CPU; floats stay float32, integer products are OpenVINO's own.

    Args:
        model: an ONNX file as `onnx.OnnxTarget` takes it.
        threads: of the CPU plugin, in one stream.
        output: as for `onnx.OnnxTarget`.

    Raises:
        InputError: the model is no classifier.
        NotApplicable: OpenVINO cannot compile the model.
        Unavailable: OpenVINO is not installed.
        UnsafeInput: as for `onnx.OnnxTarget`.
    """

    def __init__(self, model: CheckedOnnx | bytes, threads: int = 1, *, output: str | None = None) -> None:
        checked = check_onnx(model)
        self._input, self._output = check_ports(checked.inputs, checked.outputs, output)
        self._place = checked.outputs.index(self._output)
        self._alone, self._at_once = checked.measures_ranges, checked.facts.at_once
        try:
            import openvino
        except ImportError:
            raise Unavailable(MISSING) from None
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # else CPUs with bfloat16 use it
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(model=checked.usable), "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeErrors of its own
            raise NotApplicable(f"OpenVINO cannot run the model: {reason(error)}") from None
        self.queries = 0

    def logits(self, x: Tensor) -> Tensor:
        """See `Target.logits`. Raises InputError when the records do not fit the model."""
        self.queries += len(x)
        return answer_in_parts(x, self._input, self._output, self._run, self._at_once, alone=self._alone)

    def _run(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        answer = self._compiled([part])[self._place]
        return np.array(answer)  # a copy: the runtime writes the next answer to the same place
