"""The gradient of each record by itself, clipped and summed over records: what DP-SGD takes its steps from.

`clipped_sum` is for any module: torch.func's gradients over vmap. `stacked_clipping` is for many small models side by
side: one pass through all of them, forwards and backwards, gives what goes into each layer and what comes back, from
which a record's part of a weight's gradient follows (Goodfellow 2015, arXiv:1510.01799, for linear layers; Rochette et
al. 2019, arXiv:1912.06015, for convolutions; Bu et al. 2023, arXiv:2210.00038, on doing it once).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight

from ..targets.data.records import Records

GRADIENT_FLOATS = 2**26  # per-record gradients held at once (256 MiB); fixed, so that float sums are too
CHUNK = 256  # records whose gradients are computed side by side, at most
ROWS = 1024  # records of all models of a stack in one pass: more are slower, as no cache holds what they leave
PIECE = 2**17  # floats of a convolution's gradients that one call gives: larger ones take up to three times as long
APART = 1e-3  # of the largest value: what another order of adding up makes of it, with room

Weights = Mapping[str, Tensor]
"""By name, with a leading dimension of models: float32 [k, *shape]."""

Clipping = Callable[[Tensor, Tensor, Tensor, float], dict[str, Tensor]]
"""(x [k, b, *shape], y int64 [k, b], counts bool [k, b], max_norm) -> clipped sums by name, float32 [k, *shape].

Rows where `counts` is False are there to fill the batch and count for nothing.
"""


def clipped_sum(module: nn.Module, records: Records, max_norm: float) -> dict[str, Tensor]:
    """The sum over records of each one's cross-entropy gradient, clipped to L2 norm `max_norm` over all parameters.

    Returns:
        By parameter name, float32 like the parameter; zeros for no records.
    """
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, parameters, (x[None],))
        return F.cross_entropy(logits, y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    size = max(1, min(CHUNK, GRADIENT_FLOATS // sum(parameter.numel() for parameter in parameters.values())))
    for x, y in zip(records.x.split(size), records.y.split(size), strict=True):
        if len(y) == 0:
            continue
        gradients = each(parameters, x, y)
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0)
        factor = (max_norm / squares.sqrt().clamp_min(1e-12)).clamp_max(1)
        for name, gradient in gradients.items():
            total[name] += torch.tensordot(factor, gradient, 1)
    return total


def stacked_clipping(module: nn.Module, weights: Weights, x: Tensor) -> Clipping | None:
    """`clipped_sum` of k models of one structure at once; it reads the very tensors of `weights`.

    None where a layer with weights is of a kind not known here or is called more than once, or where a trial on two
    records with changed weights gives other sums than `clipped_sum` does: the forward mixes the models' channels.

    Args:
        module: one of the models, of whose weights only the names are looked at.
        x: float32 [n, *shape], n >= 1: what records look like.
    """
    clipping = _assembled(module, weights)
    return clipping if clipping is not None and _alike(module, weights, x) else None


@dataclass(frozen=True, eq=False)
class _Part:
    """What one layer has of the gradients of each record.

    Args:
        squares: float32 [b, k], its part of the squared norm.
        summed: from a factor of each record, float32 [b, k], the sums by the names of its own parameters, [k, *shape].
    """

    squares: Tensor
    summed: Callable[[Tensor], dict[str, Tensor]]


Backward = Callable[[Tensor, Tensor], _Part]
"""(what the layer kept of its inputs, gradient of its outputs [b, k * channels, ...]) -> its part."""


class _Layer(nn.Module):
    """A layer of k models on [b, k * channels, ...], one model's channels after another's, which keeps what it met."""

    def __init__(self, name: str, apply: Callable[[Tensor], tuple[Tensor, Tensor]], backward: Backward) -> None:
        super().__init__()
        self.name, self.apply_to, self.backward = name, apply, backward
        self.kept: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        y, kept = self.apply_to(x)
        if not y.requires_grad:
            y.requires_grad_()  # the first layers: nothing before them has a gradient
        self.kept.append((kept.detach(), y))
        return y


def _assembled(module: nn.Module, weights: Weights) -> Clipping | None:
    """The models as one network of `_Layer`s, and its clipping; None where a layer is of no known kind."""
    network, layers = copy.deepcopy(module).train().requires_grad_(False), []
    models, floats = len(next(iter(weights.values()))), sum(value.numel() for value in weights.values())
    for name, layer in list(network.named_modules()):
        if hasattr(layer, "inplace"):
            layer.inplace = False  # it would overwrite what the layer before it gave
        own = {one for one, _ in layer.named_parameters(recurse=False)}
        if not own and not any(True for _ in layer.buffers(recurse=False)):
            continue
        state = {one: weights.get(f"{name}.{one}") for one in own}
        made = None
        if name and own and not (layer._forward_hooks or layer._forward_pre_hooks or None in state.values()):
            made = _made(layer, {one: value.detach() for one, value in state.items() if value is not None}, models)
        if made is None:
            return None
        layers.append(_Layer(name, *made))
        network.set_submodule(name, layers[-1])
    size = max(1, min(CHUNK, ROWS // models, GRADIENT_FLOATS // floats))

    def clipping(x: Tensor, y: Tensor, counts: Tensor, max_norm: float) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for first in range(0, x.shape[1], size):
            rows = slice(first, first + size)
            _add(network, layers, x[:, rows], y[:, rows], counts[:, rows], max_norm, total)
        return total

    return clipping


def _add(
    network: nn.Module,
    layers: list[_Layer],
    x: Tensor,
    y: Tensor,
    counts: Tensor,
    max_norm: float,
    total: dict[str, Tensor],
) -> None:
    """Adds the clipped sums over these records."""
    for layer in layers:
        layer.kept.clear()
    with torch.enable_grad():
        logits = network(x.transpose(0, 1).flatten(1, 2)).view(x.shape[1], len(x), -1)
        loss = F.cross_entropy(logits.flatten(0, 1), y.T.flatten(), reduction="sum")
        called = [layer for layer in layers if layer.kept]
        if any(len(layer.kept) > 1 for layer in called):
            raise ValueError("a layer is called more than once")
        back = torch.autograd.grad(loss, [layer.kept[0][1] for layer in called], allow_unused=True)
    met = [(layer, layer.backward(layer.kept[0][0], g)) for layer, g in zip(called, back, strict=True) if g is not None]
    norms = torch.stack([part.squares for _, part in met]).sum(0).sqrt()
    factor = (max_norm / norms.clamp_min(1e-12)).clamp_max(1) * counts.T
    for layer, part in met:
        for own, value in part.summed(factor).items():
            total[f"{layer.name}.{own}"] += value
        layer.kept.clear()


def _made(
    layer: nn.Module, state: dict[str, Tensor], models: int
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Backward] | None:
    """How k layers of a kind compute, with what they keep of their inputs; None: of none of those known here."""
    weight, bias = state["weight"], state.get("bias")
    if type(layer) is nn.Linear:
        return partial(_linear, weight, bias), partial(_of_linear, models, bias is not None)
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and type(layer) in (nn.Conv1d, nn.Conv2d):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        return partial(_convolution, layer, weight, bias, models), partial(_of_convolution, layer, models)
    if type(layer) is nn.GroupNorm and bias is not None:
        groups, eps = models * layer.num_groups, layer.eps
        return (
            lambda x: _scaled(F.group_norm(x, groups, eps=eps), weight, bias),
            partial(_of_norm, models),
        )
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


def _of_linear(models: int, biased: bool, x: Tensor, g: Tensor) -> _Part:
    """A record's gradient is an outer product, whose norm needs no product."""
    back = g.reshape(len(g), models, -1).transpose(0, 1)
    squares = back.square().sum(-1) * (x.square().sum(-1) + biased)

    def summed(factor: Tensor) -> dict[str, Tensor]:
        scaled = back * factor.T[..., None]
        sums = {"weight": scaled.transpose(1, 2) @ x}
        return sums | ({"bias": scaled.sum(1)} if biased else {})

    return _Part(squares.T, summed)


def _convolution(
    layer: nn.Conv1d | nn.Conv2d, weight: Tensor, bias: Tensor | None, models: int, x: Tensor
) -> tuple[Tensor, Tensor]:
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    flat = None if bias is None else bias.flatten()
    y = convolve(x, weight.flatten(0, 1), flat, layer.stride, layer.padding, layer.dilation, models * layer.groups)
    return y, x


def _of_convolution(layer: nn.Conv1d | nn.Conv2d, models: int, x: Tensor, g: Tensor) -> _Part:
    """Each record's gradient itself, as of one convolution with a group for each: weights are few and places many."""
    of_weight: Callable[..., Tensor] = conv1d_weight if isinstance(layer, nn.Conv1d) else conv2d_weight
    shape, parts = layer.weight.shape, []
    for some, back in zip(*(one.split(max(1, PIECE // (models * shape.numel()))) for one in (x, g)), strict=True):
        groups = len(some) * models
        gradient = of_weight(
            some.reshape(1, -1, *some.shape[2:]),
            (groups * shape[0], *shape[1:]),
            back.reshape(1, -1, *back.shape[2:]),
            layer.stride,
            layer.padding,
            layer.dilation,
            groups * layer.groups,
        )
        parts.append(gradient.view(len(some), models, *shape))
    found = {"weight": parts}
    if layer.bias is not None:
        found["bias"] = [g.reshape(len(g), models, shape[0], -1).sum(3)]
    return _held(found)


def _scaled(normed: Tensor, weight: Tensor, bias: Tensor, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
    places = (1,) * (normed.dim() - 2)
    if shape is None:  # a weight for each channel
        return torch.addcmul(bias.view(-1, *places), normed, weight.view(-1, *places)), normed
    return torch.addcmul(bias, normed, weight).view(shape), normed


def _of_norm(models: int, normed: Tensor, g: Tensor) -> _Part:
    """A record's gradient is summed over the places that share a weight: those of a channel, in group norm."""
    if normed.shape == g.shape:
        back, values = (one.reshape(len(g), models, g.shape[1] // models, -1) for one in (g, normed))
        return _held({"weight": [(back * values).sum(-1)], "bias": [back.sum(-1)]})
    back = g.reshape(normed.shape)
    return _held({"weight": [back * normed], "bias": [back]})


def _held(gradients: Mapping[str, list[Tensor]]) -> _Part:
    """From the gradients of each record by themselves: by name, several after another, [some of b, k, *shape]."""
    norms = [
        torch.cat([torch.linalg.vector_norm(part.flatten(2), dim=2) for part in parts]) for parts in gradients.values()
    ]

    def summed(factor: Tensor) -> dict[str, Tensor]:
        return {name: _weighed(factor, parts) for name, parts in gradients.items()}

    return _Part(torch.stack(norms).square().sum(0), summed)


def _weighed(factor: Tensor, parts: list[Tensor]) -> Tensor:
    """The sum over records of factor [b, k] times gradient: [k, *shape]."""
    total = torch.zeros_like(parts[0][0].flatten(1)).unsqueeze(1)
    for weights, part in zip(factor.split([len(part) for part in parts]), parts, strict=True):
        total.baddbmm_(weights.T.unsqueeze(1), part.flatten(2).transpose(0, 1))
    return total.view(parts[0].shape[1:])


@torch.no_grad()
def _alike(module: nn.Module, weights: Weights, x: Tensor) -> bool:
    """Whether the sums of a small trial are those of `clipped_sum`, with weights that differ between the models."""
    models, device = len(next(iter(weights.values()))), x.device
    stream = torch.Generator().manual_seed(0)

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=stream).to(device)

    changed = {name: value * (1 + 0.2 * noise(value)) + 0.02 * noise(value) for name, value in weights.items()}
    some = torch.stack([x[torch.tensor([one % len(x), (one + 1) % len(x)])] for one in range(models)])
    labels = torch.zeros(models, 2, dtype=torch.int64, device=device)
    one = copy.deepcopy(module).train()
    try:
        clipping = _assembled(module, changed)
        if clipping is None:
            return False
        together = clipping(some, labels, torch.ones_like(labels, dtype=torch.bool), 0.1)
        for at in sorted({0, models // 2, models - 1}):
            one.load_state_dict({name: value[at] for name, value in changed.items()}, strict=False)
            alone = clipped_sum(one, Records(some[at], labels[at]), 0.1)
            largest = max(float(value.abs().max()) for value in alone.values())
            apart = max(float((together[name][at] - value).abs().max()) for name, value in alone.items())
            if not apart <= APART * largest:
                return False
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # made for one model's shapes
        return False
    return True
