"""Layers of several models side by side, and what each record adds to the gradient of their weights.

Values are [b, k * channels, ...], one model's channels after another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True, eq=False)
class Part:
    """What one layer has of the gradients of each record.

    Args:
        squares: float32 [b, k], its part of the squared norm.
        summed: from a factor of each record, float32 [b, k], the sums by the names of its own parameters, [k, *shape].
    """

    squares: Tensor
    summed: Callable[[Tensor], dict[str, Tensor]]


Forward = Callable[[Tensor], tuple[Tensor, Any]]
"""Inputs to (outputs, what is kept for `Backward`)."""

Backward = Callable[[Any, Tensor], Part]
"""(what the layer kept, gradient of its outputs [b, k * channels, ...]) -> its part."""


def made(layer: nn.Module, state: Mapping[str, Tensor], models: int) -> tuple[Forward, Backward] | None:
    """How k layers of a kind compute, and what records add to their gradients; None: of none of those known here.

    Args:
        state: the layers' own parameters by name, float32 [k, *shape]; they are read whenever the layers compute.
    """
    weight, bias = state["weight"], state.get("bias")
    if type(layer) is nn.Linear:
        return partial(_linear, weight, bias), partial(_of_linear, models, bias is not None)
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and type(layer) in CONVOLUTIONS:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        return partial(_convolution, layer, weight, bias, models), partial(_of_convolution, layer, models)
    if type(layer) is nn.GroupNorm and bias is not None:
        return partial(_group_norm, weight, bias, layer.num_groups, layer.eps), partial(_of_group_norm, models)
    if type(layer) is nn.LayerNorm and bias is not None:
        shape, eps = list(layer.normalized_shape), layer.eps
        return (
            lambda x: _scaled(F.layer_norm(x.reshape(len(x), models, *shape), shape, eps=eps), weight, bias, x.shape),
            partial(_of_norm, models),
        )
    return None


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    each = x.view(len(x), len(weight), weight.shape[2]).transpose(0, 1)  # another number of features: an error
    y = each @ weight.transpose(1, 2)
    y = y if bias is None else y + bias[:, None]
    return y.transpose(0, 1).flatten(1), each


def _of_linear(models: int, biased: bool, x: Tensor, g: Tensor) -> Part:
    """A record's gradient is an outer product, whose norm needs no product."""
    back = g.reshape(len(g), models, -1).transpose(0, 1)
    squares = back.square().sum(-1) * (x.square().sum(-1) + biased)

    def summed(factor: Tensor) -> dict[str, Tensor]:
        scaled = back * factor.T[..., None]
        sums = {"weight": scaled.transpose(1, 2) @ x}
        return sums | ({"bias": scaled.sum(1)} if biased else {})

    return Part(squares.T, summed)


def _convolution(
    layer: nn.Conv1d | nn.Conv2d, weight: Tensor, bias: Tensor | None, models: int, x: Tensor
) -> tuple[Tensor, Tensor]:
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    flat = None if bias is None else bias.flatten()
    y = convolve(x, weight.flatten(0, 1), flat, layer.stride, layer.padding, layer.dilation, models * layer.groups)
    return y, x


def _of_convolution(layer: nn.Conv1d | nn.Conv2d, models: int, x: Tensor, g: Tensor) -> Part:
    """Where places are few, norms come from products of places (`_of_places`), else from gradients (`_of_rows`).

    The rule is that of Bu et al. 2022 (arXiv:2205.10683): what takes less memory.
    """
    if isinstance(layer, nn.Conv1d):  # an image of one row
        x, g = x.unsqueeze(2), g.unsqueeze(2)
    (high, wide), stride, dilation, (above, left) = (
        (first, *getattr(layer, name))[-2:]
        for first, name in ((1, "kernel_size"), (1, "stride"), (1, "dilation"), (0, "padding"))
    )
    units = models * layer.groups
    x = x.reshape(-1, x.shape[1] // units, *x.shape[2:]).permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, left, left, above, above))
    back = g.reshape(-1, g.shape[1] // units, g.shape[2] * g.shape[3]).transpose(1, 2)
    biases = back.sum(1).view(len(g), models, -1) if layer.bias is not None else None
    if 2 * back.shape[1] ** 2 < back.shape[2] * x.shape[3] * high * wide:
        squares, weighed = _of_places(_met(x, g.shape[2], g.shape[3], (high, wide), stride, dilation), back, units)
    else:
        under = _met(x, x.shape[1], g.shape[3], (1, wide), (1, stride[1]), dilation).unflatten(1, (x.shape[1], -1))
        below = [under[:, at * dilation[0] :: stride[0]][:, : g.shape[2]].flatten(1, 2) for at in range(high)]
        squares, weighed = _of_rows(below, back, units)
    squares = squares.view(len(g), models, -1).sum(2)

    def summed(factor: Tensor) -> dict[str, Tensor]:
        sums = weighed(factor.repeat_interleave(layer.groups, 1))  # [units, kernel * channels in, channels out]
        sums = sums.view(models, layer.groups, high, wide, x.shape[3], -1).permute(0, 1, 5, 4, 2, 3)
        found = {"weight": sums.reshape(models, *layer.weight.shape)}
        return found if biases is None else found | {"bias": _weighed(factor, biases)}

    return Part(squares if biases is None else squares + biases.square().sum(2), summed)


def _met(
    x: Tensor,
    rows: int,
    columns: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """What each place of a convolution meets, of padded x [n, height, width, channels]: [n, places, kernel * those]."""
    x = x.contiguous()
    each, line, step, one = x.stride()
    steps = (each, stride[0] * line, stride[1] * step, dilation[0] * line, dilation[1] * step, one)
    return x.as_strided((len(x), rows, columns, *kernel, x.shape[3]), steps).reshape(len(x), rows * columns, -1)


Weighed = Callable[[Tensor], Tensor]
"""From a factor of each record [b, units] the sums over records, [units, kernel * channels in, channels out]."""


def _of_places(met: Tensor, back: Tensor, units: int) -> tuple[Tensor, Weighed]:
    """Squared norms [n] of gradients that are never there, from n's products of what two places meet and give back."""
    pairs = torch.bmm(met, met.transpose(1, 2)).mul_(torch.bmm(back, back.transpose(1, 2)))

    def weighed(factor: Tensor) -> Tensor:
        scaled = back * factor.reshape(-1, 1, 1)
        both = (one.view(-1, units, *one.shape[1:]).transpose(0, 1).flatten(1, 2) for one in (met, scaled))
        meeting, giving = both
        return torch.bmm(meeting.transpose(1, 2), giving)

    return pairs.flatten(1).sum(1).clamp_min(0), weighed


def _of_rows(under: Sequence[Tensor], back: Tensor, units: int) -> tuple[Tensor, Weighed]:
    """Squared norms [n] of gradients, each held in a piece for each row of the kernel.

    Args:
        under: what each place meets at that row, [n, places, columns of the kernel * channels].
    """
    pieces = [torch.bmm(one.transpose(1, 2), back) for one in under]
    norms = [torch.linalg.vector_norm(piece.flatten(1), dim=1) for piece in pieces]

    def weighed(factor: Tensor) -> Tensor:
        sums = [_weighed(factor, piece.view(-1, units, piece[0].numel())) for piece in pieces]
        return torch.cat([one.view(units, *pieces[0].shape[1:]) for one in sums], 1)

    return torch.stack(norms).square().sum(0), weighed


class _GroupNorm(torch.autograd.Function):
    """Of one model's images whose channels lie last in memory, where torch's own takes ten times as long.

    Its pass backwards finds what records add to the gradients of weights on its way, and leaves it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, left: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        values = x.permute(0, 2, 3, 1).flatten(1, 2)
        normed = values - _over_groups(values.mean(1), groups)
        scale = (_over_groups(normed.square().mean(1), groups) + eps).rsqrt_()
        normed *= scale
        ctx.save_for_backward(normed, scale, weight)
        ctx.groups, ctx.left = groups, left
        ctx.mark_non_differentiable(normed)
        y = torch.addcmul(bias, normed, weight)
        return y.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2), normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        normed, scale, weight = ctx.saved_tensors
        g = gradients[0].permute(0, 2, 3, 1)
        back = g.reshape(normed.shape)
        of_weight, of_bias = (back * normed).sum(1), back.sum(1)
        ctx.left.append((of_weight, of_bias))
        places = normed.shape[1]
        slope = _over_groups(of_weight * weight, ctx.groups) * scale / -places
        level = _over_groups(of_bias * weight, ctx.groups) * scale / -places
        found = torch.addcmul(level, normed, slope).addcmul_(back, scale * weight)
        return found.view(g.shape).permute(0, 3, 1, 2), None, None, None, None, None


def _over_groups(values: Tensor, groups: int) -> Tensor:
    """Means over the channels of a group, for each channel: [b, channels] to [b, 1, channels]."""
    if groups < values.shape[1]:
        means = values.unflatten(1, (groups, -1)).mean(2)
        values = means.repeat_interleave(values.shape[1] // groups, 1)
    return values.unsqueeze(1)


def _group_norm(weight: Tensor, bias: Tensor, groups: int, eps: float, x: Tensor) -> tuple[Tensor, Any]:
    if len(weight) > 1 or x.dim() != 4 or x.is_contiguous():
        return _scaled(F.group_norm(x, len(weight) * groups, eps=eps), weight, bias)
    left: list[tuple[Tensor, Tensor]] = []
    y, normed = _GroupNorm.apply(x, weight, bias, groups, eps, left)  # type: ignore[no-untyped-call]  # torch has none
    return y, (normed, left)


def _of_group_norm(models: int, kept: Any, g: Tensor) -> Part:
    if isinstance(kept, Tensor):
        return _of_norm(models, kept, g)
    normed, left = kept
    if not left:  # it is the first layer: no pass went backwards through it
        back = g.permute(0, 2, 3, 1).reshape(normed.shape)
        left.append(((back * normed).sum(1), back.sum(1)))
    weights, biases = left.pop()
    return _held({"weight": weights.unsqueeze(1), "bias": biases.unsqueeze(1)})


def _scaled(normed: Tensor, weight: Tensor, bias: Tensor, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
    places = (1,) * (normed.dim() - 2)
    if shape is None:  # a weight for each channel
        return torch.addcmul(bias.view(-1, *places), normed, weight.view(-1, *places)), normed
    return torch.addcmul(bias, normed, weight).view(shape), normed


def _of_norm(models: int, normed: Tensor, g: Tensor) -> Part:
    """A record's gradient is summed over the places that share a weight: those of a channel, in group norm."""
    if normed.shape != g.shape:  # layer norm: a weight for each value
        back = g.reshape(normed.shape)
        return _held({"weight": back * normed, "bias": back})
    places = tuple(range(2, g.dim()))
    weights, biases = (g * normed, g) if not places else ((g * normed).sum(places), g.sum(places))
    return _held({"weight": weights.view(len(g), models, -1), "bias": biases.view(len(g), models, -1)})


def _held(gradients: Mapping[str, Tensor]) -> Part:
    """From the gradients of each record by themselves: by name, [b, k, *shape]."""
    squares = [gradient.flatten(2).square().sum(2) for gradient in gradients.values()]

    def summed(factor: Tensor) -> dict[str, Tensor]:
        return {
            name: _weighed(factor, gradient.flatten(2)).view(gradient.shape[1:]) for name, gradient in gradients.items()
        }

    return Part(torch.stack(squares).sum(0), summed)


def _weighed(factor: Tensor, gradients: Tensor) -> Tensor:
    """The sum over records of factor [b, k] times gradient [b, k, n]: [k, n]."""
    if gradients.shape[1] == 1:
        return factor.T @ gradients.flatten(1)
    return torch.bmm(factor.T.unsqueeze(1), gradients.transpose(0, 1)).squeeze(1)
