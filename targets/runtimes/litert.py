"""A TFLite file as a target, run by LiteRT on the CPU with its default kernels (XNNPACK, as on a phone)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UnsafeInput
from ..untrusted.model_file import Port, need_litert, without_states
from .batches import answer_in_parts, check_ports, reason

PACKAGES = ("ai-edge-litert",)


class LiteRtTarget:
    """A deployed TFLite model, from the bytes that `model_file.read_model_file` checked where they can do no harm.

    What the file keeps between calls (the state of a recurrent network) is set back before each, so that an answer does
    not depend on what was asked before.

    Args:
        model: the file's bytes. It has one input [batch, *shape], and perhaps its state as further ones; its output is
            turned back into floats where it is quantised. The batch is the file's own (measured: a larger one is no
            faster).
        threads: of the interpreter.
        output: the name of the one that holds the logits; None: the first.

    Raises:
        InputError: LiteRT is not installed, or input or output are not those of a classifier.
        UnsafeInput: LiteRT refuses the file.
    """

    def __init__(self, model: bytes, threads: int = 1, *, output: str | None = None) -> None:
        need_litert()
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._interpreter = Interpreter(model_content=model, num_threads=threads)
            self._interpreter.allocate_tensors()
        except Exception as error:  # RuntimeError and ValueError, by where it stumbles
            raise UnsafeInput(f"LiteRT refuses the model: {reason(error)}") from None
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        answered = tuple(map(_port, outputs))
        given, states = without_states(tuple(map(_port, inputs)), answered)
        self._input, self._output = check_ports(given, answered, output)
        self._states = [
            (details["index"], np.full(details["shape"], port.grid[1] if port.grid else 0, details["dtype"]))
            for details, port in zip(inputs[1:], states, strict=False)
        ]
        self._shape: tuple[int, ...] = tuple(inputs[0]["shape"].tolist())
        self._places = inputs[0]["index"], outputs[answered.index(self._output)]["index"]
        self.queries = 0

    def logits(self, x: Tensor) -> Tensor:
        """See `Target.logits`. Raises InputError when the records do not fit the model."""
        self.queries += len(x)
        return answer_in_parts(x, self._input, self._output, self._run)

    def _run(self, part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if part.shape != self._shape:  # a record of sizes that the file leaves open
            self._shape = ()  # until it is known that it fits
            self._interpreter.resize_tensor_input(self._places[0], part.shape, strict=True)
            self._interpreter.allocate_tensors()
            self._shape = part.shape
        self._interpreter.reset_all_variables()
        for place, zeros in self._states:
            self._interpreter.set_tensor(place, zeros)
        self._interpreter.set_tensor(self._places[0], part)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._places[1]))


def _port(details: dict[str, Any]) -> Port:
    scale, zero_point = details["quantization"]  # 0, 0 where there is none
    shape, signature = (details[name].tolist() for name in ("shape", "shape_signature"))
    declared = signature if len(signature) == len(shape) else shape
    open_sizes = ["?" if free < 0 else size for size, free in zip(shape[1:], declared[1:], strict=True)]
    return Port(
        name=details["name"],
        type=np.dtype(details["dtype"]).name,
        shape=(*shape[:1], *open_sizes),
        grid=(scale, zero_point) if scale else None,
    )
