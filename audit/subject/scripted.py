"""A scripted or traced model as a module of plain layers: exported as it would ship, and read back."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...compression.deployment.onnx_export import to_onnx
from ...targets.errors import InputError, UnsafeInput, user_error
from ...targets.twin.twin import twin_of

HINT = "Hand over the nn.Module it was made from; or export it to ONNX and audit that file."


def without_script(module: nn.Module, example: Tensor) -> tuple[nn.Module, str]:
    """A module of plain layers that answers as `module` (TorchScript) does, and a sentence that says so.

    Args:
        example: float32 [n, *shape]; both are asked about it.

    Raises:
        InputError: the model cannot be read in this way, or would answer otherwise; the message says what to do.
    """
    try:
        with torch.no_grad():  # a copy of a script would hang on the original's graph
            script = copy.deepcopy(module).cpu().float().eval()
            read: nn.Module = twin_of(to_onnx(script, tuple(example.shape[1:])))
            before, after = script(example), read(example)
    except (MemoryError, KeyboardInterrupt):
        raise
    except UnsafeInput:
        raise InputError(f"The model is TorchScript, and what it exports is no sound file. {HINT}") from None
    except Exception as error:  # a script may do anything
        raise InputError(
            f"The model is TorchScript and its layers cannot be read: {user_error(error)} {HINT}"
        ) from None
    if before.shape != after.shape or not torch.allclose(
        before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())
    ):
        raise InputError(f"The model is TorchScript, and what was read of it answers otherwise. {HINT}")
    return read, "The model is TorchScript: its layers were read by way of an ONNX file, with the same answers."
