"""Stochastic rounding: weights rounded at random, and the attack that averages over the draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ..attacks.attack import Attack
from ..compression.quantization.quantize import Quantize
from ..compression.recipe import Recipe
from ..targets.errors import NotApplicable
from .defense import DEFENSES, CompressionDefense


@DEFENSES.register
class StochasticRounding(CompressionDefense):
    """Quantisation whose weights are rounded up or down at random, right on average, by a stored seed.

    The draw that ships is a deterministic artefact: whoever holds its bytes attacks it as any other. Only an attacker
    without the bytes is up against the randomness, and averages over draws of its own (`ExpectationTwin`). Draws
    differ in accuracy and robustness, so several are made, and the mean and the worst are reported.
    """

    kind: Literal["stochastic-rounding"] = "stochastic-rounding"
    draws: PositiveInt = Field(5, le=1000, description="candidates made; the first is the one that ships")
    first_seed: int = Field(
        0, ge=0, lt=2**62, description="rounding seed of the first draw; the others count up from it"
    )

    def recipes(self, recipe: Recipe) -> list[Recipe]:
        """One recipe per draw, alike but for the rounding seed.

        Raises:
            NotApplicable: the recipe rounds no weights (it does not quantise).
        """
        if not isinstance(recipe, Quantize):
            raise NotApplicable(
                f"Stochastic rounding hardens a quantize recipe; a recipe of kind {recipe.kind!r} rounds no weights."
            )
        seeds = range(self.first_seed, self.first_seed + self.draws)
        return [recipe.model_copy(update={"rounding": "stochastic", "rounding_seed": seed}) for seed in seeds]

    def adapted(self, attack: Attack) -> Attack:
        """The same attack, on the stored draw's own bytes, which hide nothing from it."""
        return attack


class ExpectationTwin(nn.Module):
    """The mean of several draws' logits: a differentiable stand-in for a draw that the attacker does not have.

    Expectation over transformation (Athalye et al. 2018, arXiv:1707.07397 and 1802.00420): inputs that fool the
    average of the draws one can make oneself fool the draw one cannot see; that one decides. Logits and
    log-probabilities differ by a constant per record and draw, which cross-entropy, margin and DLR losses ignore, so
    the mean of either gives the same attack.

    Args:
        modules: twins of other draws of the same recipe, straight-through at rounding; x float32 [n, *shape] gives
            logits float32 [n, classes].
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        if not modules:
            raise ValueError("an expectation over draws needs at least one draw")
        self.draws = nn.ModuleList(modules)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([draw(x) for draw in self.draws]).mean(0)
