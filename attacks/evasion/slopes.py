"""Gradients past a clip: a slope where an activation is flat, for records that otherwise give no gradient.

Backward-pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420): the forward values stay exactly what
they are, only the derivative of clips, saturating activations and rounding is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LEAK = 0.1  # of an activation's input, everywhere: small beside the slope of its steep part


@cache
def slopes() -> dict[Any, float]:
    """The functions that can be flat, with the slope that is added to their derivative."""
    activations: list[Any] = [
        *(torch.relu, Tensor.relu, F.relu, F.relu6, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus),
        *(F.hardtanh, F.hardsigmoid, F.hardswish, F.threshold, F.logsigmoid),
        *(torch.clamp, Tensor.clamp, torch.clip, Tensor.clip, torch.clamp_min, Tensor.clamp_min),
        *(torch.clamp_max, Tensor.clamp_max, torch.minimum, torch.maximum),
        *(torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh, torch.sign, Tensor.sign),
        *(torch.softmax, Tensor.softmax, F.softmax),
    ]
    rounding: list[Any] = [torch.round, torch.floor, torch.ceil, torch.trunc]
    rounding += [Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc]
    return {**dict.fromkeys(activations, LEAK), **dict.fromkeys(rounding, 1.0)}


class SlopesPastClips(TorchFunctionMode):
    """Inside the block every function of `slopes` has a derivative wherever its input has one; values are unchanged."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        slope = slopes().get(func)
        x = args[0] if args else None
        if slope is None or not isinstance(x, Tensor) or not x.requires_grad or not x.is_floating_point():
            return func(*args, **(kwargs or {}))
        value = func(x.clone(), *args[1:], **(kwargs or {}))  # a copy, because some activations work in place
        if not isinstance(value, Tensor) or value.shape != x.shape or not value.is_floating_point():
            return value
        return value + slope * (x - x.detach()).nan_to_num(0.0)
