"""Input transformations: the deployed file smooths or rounds its inputs, and is attacked through that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..attacks.attack import Attack
from ..compression.inputs import InputTransformation, TransformInputs
from ..compression.recipe import Recipe
from .defense import DEFENSES, CompressionDefense, Stage


@DEFENSES.register
class TransformedInputs(InputTransformation, CompressionDefense):
    """A first layer, in the file itself, that smooths inputs or rounds them to few values (feature squeezing).

    Rounding has zero gradients, so whoever follows the file's own finds nothing, which looks like robustness. The
    attacker who knows passes straight through it (BPDA); both are among the parts of evasion. A smoothing filter has
    gradients and hides nothing. Digits at eps .1, robust .37 without: 8 levels seem .94 and are .20; 4 levels seem .93
    and are .70, and at eps .17, beyond half their step, .00 (benchmarks/wrappers.py).
    """

    title: ClassVar[str] = "Transformed inputs"
    stage: ClassVar[Stage] = "inputs"
    kind: Literal["transformed-inputs"] = "transformed-inputs"

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return f"transformed inputs: {self.transformed_words}"

    def recipes(self, recipe: Recipe) -> list[Recipe]:
        fields = {name: getattr(self, name) for name in InputTransformation.model_fields}
        return [TransformInputs(recipe=recipe, **fields)]

    def adapted(self, attack: Attack) -> Attack:
        """The same attack: the twin it differentiates is of the whole file, straight-through where that rounds."""
        return attack
