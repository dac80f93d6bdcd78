"""The twin of an ONNX file: a torch module that computes what the file computes, and has gradients.

An interpreter, whoever made the file: it follows the graph node by node (operators: the `twin_*` files beside it),
rounds where the file rounds, and lets gradients pass straight through the rounding. Layers with constant weights are
torch's own, so that the twin of a float file can be trained, compressed and exported like any other module.
"""

from __future__ import annotations

import torch

from ..untrusted.model_file import CheckedOnnx, check_onnx
from .importer import Importer
from .module import Twin

__all__ = ["Twin", "twin_of"]


def twin_of(model: CheckedOnnx | bytes, output: str | None = None) -> Twin:
    """The twin of an ONNX file with one input, in evaluation mode, on the CPU.

    Args:
        output: the name of the one that it answers with; None: the first.

    Raises:
        UnsafeInput: `check_onnx` refuses the file, or it asks for tensors of absurd size.
        NotApplicable: it uses an operator, or a setting of one, that the twin cannot follow; the message names the
            operator, its node and the opset.
    """
    checked = check_onnx(model)
    with torch.no_grad():
        twin = Importer(checked.source, checked.outputs, output).twin()
    return twin.eval()
