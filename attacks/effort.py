"""What work costs: counted in passes and trainings by whoever plans it, in seconds once a pass was timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..compression.recipe import Recipe
from ..training.trainer import Trainer

FINE_TUNING = 0.25  # of a training: what a recipe that trains is taken to cost where it does not say
FORWARD = 1 / 3  # of a gradient: what a pass without one costs
HARDENING = 4.0  # trainings: what a hardened one is taken to cost


def retraining(recipe: Recipe | None, trainer: Trainer) -> float:
    """Trainings of the dense model that a recipe's own come to, from its passes over the records and the trainer's.

    On shadow models both are done side by side, or both are not: the price of a training is measured accordingly.
    """
    if recipe is None or not recipe.trains:
        return 0.0
    its, whole = recipe.passes, trainer.passes
    return FINE_TUNING if its is None or whole is None else its / whole


@dataclass(frozen=True)
class Costs:
    """What was measured of one model and its data before anything long ran: CPU seconds on one core.

    Args:
        answer: of one record through the deployed model.
        gradient: of one record forwards and backwards through the differentiable module.
        training: of one training as the dense model was trained, on as many records.
        twins: as `gradient`, of models whose own differentiable module was timed, by name: rounding costs passes over
            every activation.
    """

    answer: float = 1e-4
    gradient: float = 3e-4
    training: float = 6.0
    twins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """What a piece of work does, in units that `Costs` gives the price of.

    Args:
        answers, gradients: records times passes.
        trainings: whole trainings of the dense model's size.
        seconds: what depends on none of these.
        through: the model whose gradients these are; "": the dense one, or any like it.
    """

    answers: float = 0.0
    gradients: float = 0.0
    trainings: float = 0.0
    seconds: float = 0.0
    through: str = ""

    def at(self, costs: Costs) -> float:
        """CPU seconds, above 0."""
        gradient = costs.twins.get(self.through, costs.gradient)
        counted = self.answers * costs.answer + self.gradients * gradient + self.trainings * costs.training
        return max(counted + self.seconds, 1e-3)


UNKNOWN = Effort(seconds=4.0)  # of work that does not say
