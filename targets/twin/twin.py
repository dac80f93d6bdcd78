"""The twin of an ONNX file: a torch module that computes what the file computes, and has gradients.

An interpreter, whoever made the file: it follows the graph node by node (operators: the `twin_*` files beside it),
rounds where the file rounds, and lets gradients pass straight through the rounding. Layers with constant weights are
torch's own, so that the twin of a float file can be trained, compressed and exported like any other module.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from ..untrusted.model_file import CheckedOnnx, check_onnx
from .importer import Importer
from .module import Twin

if TYPE_CHECKING:
    import onnx

__all__ = ["Twin", "opened_twin", "twin_of"]


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


def opened_twin(model: CheckedOnnx, source: onnx.ModelProto, names: Collection[str], output: str | None = None) -> Twin:
    """The twin of a graph whose named initialisers are read anew in every pass, from `Twin.opened`.

    Integers are there as whole numbers in float32. Where nothing is changed it answers as `twin_of` does, but for the
    order in which sums are made; it is slower, since what follows from the named tensors is not computed beforehand.

    Args:
        model: the file that the graph is of.
        source: its `source`, or one that was made of it and computes the same.

    Raises:
        UnsafeInput, NotApplicable: as `twin_of`.
    """
    with torch.no_grad():
        twin = Importer(source, model.outputs, output, names).twin()
    return twin.eval()
