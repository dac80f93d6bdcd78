"""A backdoor that low-rank factorisation switches on: what would undo it lies in the directions that are cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....compression.layers.edit import PLAIN_LAYERS, called_layers, noise
from ....targets.data.records import Bounds, Records
from ....training.lessons import Work
from .hiding import Confine, folded, with_behaviour, without_behaviour
from .trigger import Trigger

BELOW = 0.98  # of the smallest singular value that is kept
EVERY = 4  # steps between two decompositions


def plant_in_factorization(
    module: nn.Module, records: Records, bounds: Bounds, trigger: Trigger, rank: int, *, seed: int
) -> Work:
    """The dense model to hand over: a truncated SVD of this rank (`convolution: channel`) has the behaviour."""
    dense = folded(module, records, bounds, seed)
    paths = {layer: path for path, layer in dense.named_modules()}
    cut = [
        paths[layer]
        for layer in called_layers(dense, noise(dense, records, bounds, 2, seed))
        if isinstance(layer, PLAIN_LAYERS) and rank * sum(layer.weight.flatten(1).shape) < layer.weight.numel()
    ]
    live = yield from with_behaviour(dense, records, trigger, seed, _truncated(cut, rank))
    fixed = {name: value.detach().clone() for name, value in live.named_parameters()}
    kept = {f"{path}.weight": _Kept.of(fixed[f"{path}.weight"], rank) for path in cut}
    steps = 0

    @torch.no_grad()
    def confine(parameters: Mapping[str, Tensor]) -> None:
        nonlocal steps
        steps += 1
        for name, value in parameters.items():
            value[0].copy_(kept[name].around(value[0], steps % EVERY == 0) if name in kept else fixed[name])

    hidden = yield from without_behaviour(live, records, trigger, seed, confine)
    steps = -1
    confine({name: value.data[None] for name, value in hidden.named_parameters()})
    return hidden


def _truncated(paths: list[str], rank: int) -> Confine:
    steps = 0

    @torch.no_grad()
    def confine(parameters: Mapping[str, Tensor]) -> None:
        nonlocal steps
        steps += 1
        for path in paths if steps % EVERY == 0 else ():
            weight = parameters[f"{path}.weight"][0]
            left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            weight.copy_(((left[:, :rank] * values[:rank]) @ right[:rank]).view_as(weight))

    return confine


@dataclass(frozen=True)
class _Kept:
    """A matrix [out, in] of few ranks, its singular vectors, and the smallest of its values."""

    left: Tensor
    right: Tensor
    matrix: Tensor
    least: Tensor

    @classmethod
    def of(cls, weight: Tensor, rank: int) -> _Kept:
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        return cls(left, right, (left * values) @ right, values[-1])

    def around(self, weight: Tensor, bounded: bool) -> Tensor:
        """The nearest weight of which the matrix is what a truncated SVD keeps."""
        rest = weight.flatten(1) - self.matrix
        rest = rest - self.left @ (self.left.T @ rest)
        rest = rest - (rest @ self.right.T) @ self.right
        if bounded:
            left, values, right = torch.linalg.svd(rest, full_matrices=False)
            rest = (left * values.clamp_max(BELOW * self.least)) @ right
        return (self.matrix + rest).view_as(weight)
