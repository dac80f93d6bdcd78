"""The weights of a shipped file in the layout of the module that its dense model is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...compression.lineage.codes_in_steps import folded_weight
from ...compression.lineage.matched import Fit, match
from ...targets.errors import NotApplicable
from ...targets.onnx_graph.weights import RECURRENT
from ...targets.untrusted.model_file import check_onnx

SAME = 1 - 1e-4  # cosine of a unit's weights in the dense file and in the dense module: exporters fold norms into them

Floats = np.ndarray[Any, np.dtype[np.float64]]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The matrices and kernels of a module's layers by name, embeddings among them; of integers what they stand for."""
    found = {name: one.detach() for name, one in module.named_parameters() if one.dim() > 1}
    for name, layer in module.named_modules():
        if hasattr(layer, "dequantized_weight"):
            found[f"{name}.weight"] = layer.dequantized_weight()
    return found


def filled(blank: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a module with other weights, by name; biases and norms stay.

    Raises:
        NotApplicable: there is none of a layer, or of another shape.
    """
    module = copy.deepcopy(blank).eval().requires_grad_(False)
    for name, one in module.named_parameters():
        if one.dim() > 1:
            if name not in weights or weights[name].shape != one.shape:
                raise NotApplicable(f"its layers are no longer the dense model's: {name} has no counterpart")
            one.copy_(weights[name])
    return module


def weights_in(shipped: bytes, dense_file: bytes, dense: nn.Module) -> dict[str, Tensor]:
    """Every weight that a file holds, by the name and in the layout that it has in the dense module.

    The file's weights are paired with those of the dense model's file (`lineage`), and these, unit by unit, with the
    module's: a gate of a recurrence may stand elsewhere, and a norm may have been folded in, which is taken off again.

    Args:
        shipped, dense_file: ONNX.

    Raises:
        UnsafeInput: a file that `check_onnx` refuses.
        NotApplicable: a weight has no counterpart in the file.
    """
    known = match(check_onnx(dense_file).copy(), check_onnx(shipped).copy())
    pairs = [_rows(fit) for fit in known.fits]
    found = {}
    for name, weight in weights_of(dense).items():
        rows = weight.flatten(1).cpu().double().numpy()
        of_length = [pair for pair in pairs if pair[0].shape[1] == rows.shape[1]]
        if not of_length:
            raise NotApplicable(f"its layers are no longer the dense model's: {name} has no counterpart")
        ours, theirs = (np.concatenate(one) for one in zip(*of_length, strict=True))
        own, norms = np.linalg.norm(rows, axis=1), np.linalg.norm(theirs, axis=1)
        likeness = (rows / np.maximum(own, 1e-30)[:, None]) @ (theirs / np.maximum(norms, 1e-30)[:, None]).T
        at = np.abs(likeness).argmax(1)
        cosine = likeness[np.arange(len(at)), at]
        if (np.abs(cosine[own > 0]) < SAME).any():
            raise NotApplicable(f"a weight of the file cannot be held against the dense model's: {name}")
        gain = np.sign(cosine) * own / np.maximum(norms[at], 1e-30)
        gain[np.abs(gain - 1) < 1e-5] = 1.0  # nothing was folded in
        found[name] = torch.from_numpy(ours[at] * gain[:, None]).float().view(weight.shape)
    return found


def _rows(fit: Fit) -> tuple[Floats, Floats]:
    """What each unit reads, of the file and of the dense model: [out, n] each."""
    ours, theirs = folded_weight(fit.weight, fit.ours), folded_weight(fit.dense, fit.theirs)
    if fit.dense.node.op_type in RECURRENT:  # [directions, out * n]
        length = fit.dense.constant.shape[-1]
        return ours.reshape(-1, length), theirs.reshape(-1, length)
    return ours, theirs
