"""The gradient of each record by itself, clipped and summed over records: what DP-SGD takes its steps from.

`clipped_sum` is for any module: torch.func's gradients over vmap. `stacked_clipping` is for many small models: one pass
through each, or through all of them side by side, forwards and backwards, gives what goes into each layer and what
comes back, from which a record's part of a weight's gradient follows (Goodfellow 2015, arXiv:1510.01799, for linear
layers; Rochette et al. 2019, arXiv:1912.06015, for convolutions; Bu et al. 2023, arXiv:2210.00038, on doing it once).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ..targets.data.records import Records
from ..targets.model import channels_last
from .per_record_layers import CONVOLUTIONS, Backward, Forward
from .per_record_layers import made as operation_of

GRADIENT_FLOATS = 2**26  # per-record gradients held at once (256 MiB); fixed, so that float sums are too
CHUNK = 256  # records whose gradients are computed side by side, at most
ROWS = 1024  # records of all models of a stack in one pass: more are slower, as no cache holds what they leave
KEPT = 31 * 2**20  # bytes: by one such block, freed, glibc learns to keep twice as much for the next pass (mallopt(3))
ROUND = 32  # of records: torch makes a convolution's kernels anew for each number of them
APART = 1e-3  # of the largest value: what another order of adding up makes of it, with room

Weights = Mapping[str, Tensor]
"""By name, with a leading dimension of models: float32 [k, *shape]."""

Clipping = Callable[[Tensor, Tensor, Tensor, float], dict[str, Tensor]]
"""(x [k, b, *shape], y int64 [k, b], counts bool [k, b], max_norm) -> clipped sums by name, float32 [k, *shape].

Rows where `counts` is False are there to fill the batch and count for nothing.
"""

RecordLosses = Callable[[Tensor, Tensor], Tensor]
"""(logits [b, classes], y int64 [b]) -> losses [b], each of its own row alone."""


def label_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(logits, y, reduction="none")


def clipped_sum(
    module: nn.Module,
    records: Records,
    max_norm: float,
    made: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    losses: RecordLosses = label_losses,
    copies: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sum over records of the gradient of each one's loss, clipped to L2 norm `max_norm` over all parameters.

    Args:
        made: of records' gradients by name, [b, *shape], row by row, what is clipped and summed instead.
            Its sums have names and shapes of their own, and there are none of no records.
        copies: float32 [n, copies, *shape], over which a record's loss is the mean; None: of the record itself.

    Returns:
        By parameter name, float32 like the parameter; zeros for no records.
    """
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()} if made is None else {}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, parameters, (x,))
        return losses(logits, y.expand(len(x))).mean()

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    inputs = records.x[:, None] if copies is None else copies
    size = min(CHUNK // inputs.shape[1], GRADIENT_FLOATS // sum(parameter.numel() for parameter in parameters.values()))
    for x, y in zip(inputs.split(max(1, size)), records.y.split(max(1, size)), strict=True):
        if len(y) == 0:
            continue
        gradients = each(parameters, x, y)
        gradients = gradients if made is None else made(gradients)
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0)
        factor = (max_norm / squares.sqrt().clamp_min(1e-12)).clamp_max(1)
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + torch.tensordot(factor, gradient, 1)
    return total


def stacked_clipping(
    module: nn.Module, weights: Weights, x: Tensor, losses: RecordLosses = label_losses
) -> Clipping | None:
    """`clipped_sum` of k models of one structure at once; it reads the very tensors of `weights`.

    None where a layer with weights is of a kind not known here or is called more than once, or where a trial on two
    records with changed weights gives other sums than `clipped_sum` does: the forward mixes the models' channels.

    Args:
        module: one of the models, of whose weights only the names are looked at.
        x: float32 [n, *shape], n >= 1: what records look like.
    """
    clipping = _assembled(module, weights, losses)
    return clipping if clipping is not None and _alike(module, weights, x) else None


class _Layer(nn.Module):
    """A layer of k models on [b, k * channels, ...], one model's channels after another's, which keeps what it met."""

    def __init__(self, name: str, apply: Forward, backward: Backward) -> None:
        super().__init__()
        self.name, self.apply_to, self.backward = name, apply, backward
        self.kept: list[tuple[Any, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        y, kept = self.apply_to(x)
        if not y.requires_grad:
            y.requires_grad_()  # the first layers: nothing before them has a gradient
        self.kept.append((kept.detach() if isinstance(kept, Tensor) else kept, y))
        return y


def _assembled(module: nn.Module, weights: Weights, losses: RecordLosses = label_losses) -> Clipping | None:
    """None where a layer is of no known kind.

    On a processor a convolution of one model on many records takes half as long as one of many models on a few each.
    """
    found = None
    if next(iter(weights.values())).device.type == "cpu" and any(type(one) in CONVOLUTIONS for one in module.modules()):
        found = _one_by_one(module, weights, losses)
    return found or _together(module, weights, losses)


def _one_by_one(module: nn.Module, weights: Weights, losses: RecordLosses) -> Clipping | None:
    """The models' own clippings, one after the other."""
    count = len(next(iter(weights.values())))
    own = [{name: value[at : at + 1] for name, value in weights.items()} for at in range(count)]
    torch.empty(KEPT, dtype=torch.uint8)
    each = [_together(module, one, losses) for one in own]
    clippings = [one for one in each if one is not None]
    if len(clippings) < count:
        return None

    def clipping(x: Tensor, y: Tensor, counts: Tensor, max_norm: float) -> dict[str, Tensor]:
        sums = []
        for at, one in enumerate(clippings):
            own = counts[at].nonzero().squeeze(1)  # alone, a model need not go through all that fills the batch
            rows = F.pad(own, (0, -len(own) % ROUND))
            there = torch.arange(len(rows), device=rows.device) < len(own)
            sums.append(one(x[at, rows][None], y[at, rows][None], there[None], max_norm))
        return {name: torch.cat([one[name] for one in sums]) for name in weights}

    return clipping


def _together(module: nn.Module, weights: Weights, losses: RecordLosses) -> Clipping | None:
    """The models as one network of `_Layer`s, and its clipping; None where a layer is of no known kind."""
    network, layers = copy.deepcopy(module).train().requires_grad_(False), []
    models, floats = len(next(iter(weights.values()))), sum(value.numel() for value in weights.values())
    for name, layer in list(network.named_modules()):
        if hasattr(layer, "inplace"):
            layer.inplace = False  # it would overwrite what the layer before it gave
        own = {one for one, _ in layer.named_parameters(recurse=False)}
        if not own and not any(True for _ in layer.buffers(recurse=False)):
            continue
        state = {one: weights[f"{name}.{one}"].detach() for one in own if f"{name}.{one}" in weights}
        operation = None
        if name and own and len(state) == len(own) and not (layer._forward_hooks or layer._forward_pre_hooks):
            operation = operation_of(layer, state, models)
        if operation is None:
            return None
        layers.append(_Layer(name, *operation))
        network.set_submodule(name, layers[-1])
    size = max(1, min(CHUNK, ROWS // models, GRADIENT_FLOATS // floats))

    def clipping(x: Tensor, y: Tensor, counts: Tensor, max_norm: float) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for rows in _pieces(x.shape[1], size):
            _add(network, layers, _laid_out(x[:, rows]), y[:, rows], counts[:, rows], max_norm, total, losses)
        return total

    return clipping


def _pieces(count: int, size: int) -> list[slice]:
    """Equal parts of about `size`, at most half as many again: a pass through a few records that are left over takes
    nearly as long as one through all.
    """
    parts = min(count, max(1, round(count / size)))
    return [slice(count * at // parts, count * (at + 1) // parts) for at in range(parts)]


def _laid_out(x: Tensor) -> Tensor:
    """[k, b, channels, ...] as [b, k * channels, ...]; images of one model on a processor with channels last.

    Convolutions and pooling keep that, and take half as long.
    """
    wide = x.transpose(0, 1).flatten(1, 2)
    if len(x) > 1 or wide.dim() != 4 or wide.device.type != "cpu":
        return wide
    return channels_last(wide)


def _add(
    network: nn.Module,
    layers: list[_Layer],
    x: Tensor,
    y: Tensor,
    counts: Tensor,
    max_norm: float,
    total: dict[str, Tensor],
    losses: RecordLosses,
) -> None:
    """Adds the clipped sums over these records."""
    for layer in layers:
        layer.kept.clear()
    with torch.enable_grad():
        logits = network(x).view(len(x), len(y), -1)
        loss = losses(logits.flatten(0, 1), y.T.flatten()).sum()
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
