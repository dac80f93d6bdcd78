"""Weights that are powers of two: a product becomes a shift (Miyashita et al. 2016, arXiv:1603.01025)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from crushproof.compression.layers.edit import weights, working_copy
from crushproof.compression.recipe import Promise, Recipe
from crushproof.targets.data.records import Bounds, Records


class PowersOfTwo(Recipe):
    """Rounds each weight to the nearest power of two (Miyashita et al. 2016, arXiv:1603.01025)."""

    kind: Literal["powers-of-two"] = "powers-of-two"
    exponents: int = Field(7, ge=1, le=64, description="how many of them a layer has; what is smaller becomes zero")

    @property
    def touches_records(self) -> bool:
        return False  # no training record leaves a trace in the weights

    @property
    def trains(self) -> bool:
        return False  # so that membership inference may replay it on many shadow models

    @property
    def phrase(self) -> str:
        return f"weights rounded to powers of two, {self.exponents} per layer"

    @property
    def promise(self) -> Promise:
        return "shapes"  # what a finished file that is declared as made by it is held against

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        rounded = working_copy(module)
        for weight in weights(rounded, "rounding to powers of two").values():
            weight.data = nearest(weight.data, self.exponents)
        return rounded


def nearest(values: torch.Tensor, exponents: int) -> torch.Tensor:
    """Signed powers of two, from the one nearest to the largest value downwards; nearest in the exponent."""
    exponent = values.abs().log2().round()  # minus infinity for zero
    kept = exponent > exponent.max() - exponents
    return torch.where(kept, values.sign() * exponent.exp2(), 0.0)
