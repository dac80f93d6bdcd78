"""Convolutional networks of one structure as one network whose channels are all of theirs, one model's after another's.

torch's vmap runs such a stack operation by operation as well, but lays values out anew between many of them and takes
batch norm apart: on a processor it takes half as long again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..targets.model import channels_last

CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
APART = 1e-3  # of the largest value: what another order of adding up makes of it, with room

State = Mapping[str, Tensor]
"""By name, with a leading dimension of models: float32 [k, *shape]."""


class _Layer(nn.Module):
    """A layer of k models."""

    def __init__(self, apply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.apply_to = apply

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(x)


def wide(pattern: nn.Module, parameters: State, buffers: State, x: Tensor) -> nn.Module | None:
    """The k models as one: x float32 [b, k * channels, ...] to [b, k * classes], in training mode.

    It computes with the very tensors that it is given, so that training it trains them. None where there is no
    convolution, or the models do not answer as one as each of them does by itself: their layers are of other kinds, or
    what is between these mixes channels. That is found out by a trial with changed weights, tensors of its own.

    Args:
        pattern: one of the models, of whose weights only the names are looked at.
        x: float32 [k, b, channels, ...], a batch, on a processor.
    """
    found = None
    if x.device.type == "cpu" and any(type(layer) in CONVOLUTIONS for layer in pattern.modules()) and len(x) > 1:
        found = _assembled(pattern, parameters, buffers)
    return found if found is not None and _alike(pattern, parameters, buffers, x) else None


def answers(module: nn.Module, x: Tensor, *, alike: bool = False) -> Tensor:
    """Logits float32 [k, b, classes] of `wide` models for x [k, b, *shape].

    Images are given with channels last in memory, which layers keep: batch norm then takes a quarter of the time, and
    pooling a twentieth.

    Args:
        alike: with channels first, where sums of a model are added up in one order whichever others stand beside it.
    """
    together = x.transpose(0, 1).flatten(1, 2)
    if together.dim() == 4 and not alike:
        together = channels_last(together)
    logits: Tensor = module(together)
    return logits.view(x.shape[1], len(x), -1).transpose(0, 1)


def _assembled(pattern: nn.Module, parameters: State, buffers: State) -> nn.Module | None:
    module = copy.deepcopy(pattern).train()
    for name, layer in list(module.named_modules()):
        own = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False))
        if not own:
            continue
        state = {one: parameters.get(f"{name}.{one}", buffers.get(f"{name}.{one}")) for one in own}
        apply = None if layer._forward_hooks or layer._forward_pre_hooks else _operation(layer, state)
        if apply is None or not name:
            return None
        module.set_submodule(name, _Layer(apply))
    return module


def _operation(layer: nn.Module, state: Mapping[str, Tensor | None]) -> Callable[[Tensor], Tensor] | None:
    """What a layer does, in as many models as its state is of; None: it is none of those known here."""
    if any(one is None for one in state.values()):
        return None
    weight, bias = state.get("weight"), state.get("bias")
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and type(layer) in CONVOLUTIONS and weight is not None:
        convolve, groups = CONVOLUTIONS[type(layer)], len(weight) * layer.groups
        if layer.padding_mode != "zeros":
            return None
        return lambda x: convolve(
            x, weight.flatten(0, 1), _flat(bias), layer.stride, layer.padding, layer.dilation, groups
        )
    if type(layer) is nn.Linear and weight is not None:

        def linear(x: Tensor) -> Tensor:
            each = x.view(len(x), len(weight), layer.in_features).transpose(0, 1)
            y = each @ weight.transpose(1, 2)
            if bias is not None:  # a product, whose gradient is summed alike wherever a model stands
                y = y + y.new_ones(len(weight), len(x), 1) @ bias[:, None]
            return y.transpose(0, 1).flatten(1)

        return linear
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and type(layer) in NORMS and layer.momentum is not None:
        mean, variance, count = (state.get(one) for one in ("running_mean", "running_var", "num_batches_tracked"))

        def norm(x: Tensor) -> Tensor:
            if count is not None:
                count.add_(1)
            return F.batch_norm(
                x, _flat(mean), _flat(variance), _flat(weight), _flat(bias), True, layer.momentum or 0.0, layer.eps
            )

        return norm
    return None


def _flat(state: Tensor | None) -> Tensor | None:
    """A view, so that running statistics are changed where they are kept."""
    return None if state is None else state.view(-1)


@torch.no_grad()
def _alike(pattern: nn.Module, parameters: State, buffers: State, x: Tensor) -> bool:
    """Whether the models answer as one what each answers by itself, with weights that differ between them."""
    stream = torch.Generator().manual_seed(0)
    weights = {name: _changed(value, stream) for name, value in parameters.items()}
    try:
        module = _assembled(pattern, weights, {name: value.clone() for name, value in buffers.items()})
        if module is None:
            return False
        together = answers(module, x)
        one = copy.deepcopy(pattern).train()
        for at in range(len(x)):
            state = {name: value[at].clone() for name, value in {**weights, **buffers}.items()}
            alone: Tensor = functional_call(one, state, (x[at],))
            if alone.shape != together[at].shape or not float((alone - together[at]).abs().max()) <= APART * float(
                alone.abs().max()
            ):
                return False
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # made for one model's shapes
        return False
    return True


def _changed(value: Tensor, stream: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=stream, dtype=value.dtype)
    return value * (1 + 0.2 * noise) + 0.02 * noise
