"""Randomised smoothing: the deployed file answers with its mean over noisy copies of an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from ..attacks.attack import Attack
from ..compression.inputs import InputNoise, NoiseInputs
from ..compression.recipe import Recipe
from .defense import DEFENSES, CompressionDefense, Stage


@DEFENSES.register
class NoisyInputs(InputNoise, CompressionDefense):
    """Noise on inputs, drawn once and stored in the file.

    The draw that ships is a deterministic artefact, whose gradients an attacker with the bytes follows through all
    copies. One without them averages over draws of its own (EOT). Draws differ, so several are made, and the mean and
    the worst are reported. A certified radius is another matter: that needs a model trained under noise, and fresh
    noise for each question.
    """

    title: ClassVar[str] = "Noisy inputs"
    stage: ClassVar[Stage] = "inputs"
    kind: Literal["noisy-inputs"] = "noisy-inputs"
    draws: PositiveInt = Field(3, le=1000, description="candidates made; the first is the one that ships")
    first_seed: int = Field(0, ge=0, lt=2**62, description="of the first draw's noise; the others count up from it")

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return f"noisy inputs: {self.noisy_words}"

    def recipes(self, recipe: Recipe) -> list[Recipe]:
        fields = {name: getattr(self, name) for name in InputNoise.model_fields}
        seeds = range(self.first_seed, self.first_seed + self.draws)
        return [NoiseInputs(recipe=recipe, noise_seed=seed, **fields) for seed in seeds]

    def adapted(self, attack: Attack) -> Attack:
        """The same attack: its twin is of the whole file, noise and mean included."""
        return attack
