"""ONNX's reference implementation as a runtime: slow, in numpy, and independent of every optimiser."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from crushproof.targets.errors import NotApplicable
from crushproof.targets.runtimes.batches import answer_in_parts, check_ports, reason
from crushproof.targets.runtimes.runtime import Runtime
from crushproof.targets.untrusted.model_file import CheckedOnnx


class OnnxReference(Runtime):
    """The reference implementation that the onnx package brings: what the standard says, operator by operator."""

    kind: Literal["onnx-reference"] = "onnx-reference"
    phrase: ClassVar[str] = "ONNX's reference implementation"
    packages: ClassVar[tuple[str, ...]] = ("onnx",)

    def open(self, model: CheckedOnnx, *, output: str | None = None) -> ReferenceTarget:
        return ReferenceTarget(model, output)


class ReferenceTarget:
    """A deployed model, as crushproof asks it: logits of records, and how many were asked for."""

    def __init__(self, model: CheckedOnnx, output: str | None) -> None:
        from onnx.reference import ReferenceEvaluator

        self._input, self._output = check_ports(model.inputs, model.outputs, output)
        self._alone = model.measures_ranges  # dynamic quantisation: a record's answer depends on its batch
        try:
            self._session = ReferenceEvaluator(model.model)
        except Exception as error:  # an operator that it does not have
            raise NotApplicable(f"ONNX's reference implementation cannot run the model: {reason(error)}") from None
        self.queries = 0

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes] for x float32 [n, *shape]."""
        self.queries += len(x)
        return answer_in_parts(x, self._input, self._output, self._run, alone=self._alone)

    def _run(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (answer,) = self._session.run([self._output.name], {self._input.name: part})
        return np.asarray(answer)
