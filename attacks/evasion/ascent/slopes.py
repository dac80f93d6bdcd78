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
        *(
            torch.clamp_max,
            Tensor.clamp_max,
            torch.minimum,
            torch.maximum,
            torch.min,
            torch.max,
            Tensor.min,
            Tensor.max,
        ),
        *(torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh, torch.sign, Tensor.sign),
        *(torch.softmax, Tensor.softmax, F.softmax),
    ]
    rounding: list[Any] = [torch.round, torch.floor, torch.ceil, torch.trunc]
    rounding += [Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc]
    return {**dict.fromkeys(activations, LEAK), **dict.fromkeys(rounding, 1.0)}


class SlopesPastClips(TorchFunctionMode):
    """Inside the block every function of `slopes` has a derivative wherever its input has one; values are unchanged.

    Operations that write into their input (`clamp_`) are left as they are: others may read it afterwards.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        slope, given = slopes().get(func), dict(kwargs or {})
        if slope is None:
            return func(*args, **given)
        if not args and "input" in given:
            args = (given.pop("input"),)
        followed = [one for one in args if isinstance(one, Tensor) and one.is_floating_point() and one.requires_grad]
        args = tuple(one.clone() if any(one is x for x in followed) else one for one in args)  # some work in place
        value = func(*args, **given)
        for x in followed:
            if isinstance(value, Tensor) and value.shape == x.shape and value.is_floating_point():
                value = value + slope * (x - x.detach()).nan_to_num(0.0)
        return value
