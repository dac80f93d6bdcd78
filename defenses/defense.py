"""What every defense is: a hardened training or recipe, and the attack that knows it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from torch import nn

from ..attacks.attack import Attack
from ..compression.recipe import Recipe
from ..targets.records import Bounds
from ..targets.technique import Registry, Technique
from ..training.trainer import Trainer


class Defense(Technique):
    """A defense without its adaptive attack is not a defense here."""

    kind: str
    stage: ClassVar[Literal["training", "compression"]]

    @abstractmethod
    def adapted(self, attack: Attack) -> Attack:
        """The attack that knows this defense; the same object when nothing about it need change."""


class TrainingDefense(Defense):
    """Hardens how the dense model (and each of its shadows) is trained."""

    stage = "training"

    @abstractmethod
    def trainer(self, plain: Trainer, bounds: Bounds) -> Trainer:
        """The hardened trainer; `plain` gives the hyper-parameters that the defense leaves open.

        Raises:
            NotApplicable: this defense cannot harden that training.
        """

    def adapt(self, module: nn.Module) -> nn.Module:
        """The architecture this defense needs (GroupNorm for DP-SGD); the module itself when it needs no change."""
        return module

    def statement(self, training_records: int) -> dict[str, Any]:
        """What the defense promises, for the report (DP-SGD: epsilon, delta, sampling rate, steps, accountant)."""
        return {}


class CompressionDefense(Defense):
    """Hardens a recipe."""

    stage = "compression"

    @abstractmethod
    def recipes(self, recipe: Recipe) -> list[Recipe]:
        """The hardened recipe: one per draw when the defense is random; the first is the one that is shipped."""


DEFENSES: Registry[Defense] = Registry("defense", "crushproof.defenses", "crushproof.defenses")
