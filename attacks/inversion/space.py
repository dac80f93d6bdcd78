"""What an input may be, as the numbers that a search for one moves freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...targets.data.records import Bounds
from ...targets.data.structure import Structure

START = 0.05  # of searches apart at first, in units of the bounds
SHARP = 4.0  # of a block's softmax: one more of the search's numbers makes a category so many times e likelier
SMOOTH = 0.2  # of an image's neighbouring pixels in the prior, in units of the bounds
SIDE = 4  # of an image, at least: smaller ones are no pictures


@dataclass(frozen=True, eq=False)
class Space:
    """Inputs of one shape: numbers within bounds, one-hot blocks of which one category is chosen, and codes of
    categories, to which no gradient leads: they are what is commonest among the records that the attacker owns.

    Args:
        known: records [n, *shape] that the attacker owns, in the data's units.
        blocks: columns of each one-hot block.
    """

    known: Tensor
    bounds: Bounds
    structure: Structure
    blocks: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.known.shape[1:])

    @property
    def is_image(self) -> bool:
        return len(self.shape) >= 2 and min(self.shape[-2:]) >= SIDE

    def units(self, x: Tensor) -> Tensor:
        """x [n, *shape] in units of the bounds, float32 in [0, 1]."""
        return (x - self.bounds.low.to(x.device)) / self.bounds.scale.to(x.device)

    def first(self, count: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Where so many searches begin, float32 [count, *shape]: near the mean of what the attacker owns."""
        mean = self.units(self.known).mean(0)
        noise = torch.stack([torch.randn(self.shape, generator=one) for one in generators[:count]])
        z = (mean.cpu() + START * noise).clamp(0, 1)
        for block in self.blocks:  # none is far ahead, so that a few steps choose another
            z[:, list(block)] = START * noise[:, list(block)]
        return z.to(self.known.device)

    def soft(self, z: Tensor) -> Tensor:
        """What a model is asked while a search goes on, in the data's units; differentiable."""
        x = self.bounds.low.to(z.device) + self.bounds.scale.to(z.device) * z
        for block in self.blocks:
            x = x.clone()
            x[:, list(block)] = self._categories(F.softmax(SHARP * z[:, list(block)], 1), block)
        return self._kept(x)

    def valid(self, z: Tensor) -> Tensor:
        """The input that somebody could send, [n, *shape]: one category of each block, whole numbers where they are."""
        x = self.structure.rounded(self.bounds.clamp(self.bounds.low.to(z.device) + self.bounds.scale.to(z.device) * z))
        for block in self.blocks:
            x[:, list(block)] = self._categories(F.one_hot(z[:, list(block)].argmax(1), len(block)).to(x), block)
        return self._kept(x)

    def inside(self, z: Tensor) -> Tensor:
        """The search's numbers, back within the bounds; those of a block are free."""
        moved = z.clamp(0, 1)
        for block in self.blocks:
            moved[:, list(block)] = z[:, list(block)]
        return moved

    def unlikely(self, z: Tensor) -> Tensor:
        """The prior, [n]: total variation of an image, and how far numbers are from what the attacker owns."""
        free = torch.ones(self.shape, dtype=torch.bool, device=z.device)
        for block in self.blocks:
            free[list(block)] = False
        mean = self.units(self.known).mean(0)
        far = (((z - mean) * free).flatten(1) ** 2).mean(1)
        if not self.is_image:
            return far
        down, across = z.diff(dim=-2).flatten(1), z.diff(dim=-1).flatten(1)
        return far + SMOOTH * (down.abs().mean(1) + across.abs().mean(1))

    def _categories(self, chosen: Tensor, block: tuple[int, ...]) -> Tensor:
        """From how far each category is chosen, in [0, 1], the columns' values: 0 and 1, or the two that they have."""
        low, high = self.known[:, list(block)].amin(0).to(chosen), self.known[:, list(block)].amax(0).to(chosen)
        return torch.where(high > low, low + (high - low) * chosen, chosen)

    def _kept(self, x: Tensor) -> Tensor:
        codes = list(self.structure.codes)
        if codes:
            x = x.clone()
            x[:, codes] = self.known[:, codes].mode(0).values.to(x)
        return x
