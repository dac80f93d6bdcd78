"""Early stopping against membership inference: a model that is trained for less remembers less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from crushproof.attacks.attack import Attack
from crushproof.defenses.defense import TrainingDefense
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import NotApplicable
from crushproof.training.trainer import BuiltinTrainer, Trainer


class EarlyStopping(TrainingDefense):
    """A share of the training's epochs (as a defense: Song & Mittal 2021, arXiv:2003.10595)."""

    kind: Literal["early-stopping"] = "early-stopping"
    share: float = Field(0.5, gt=0, lt=1, description="of the plain training's epochs, rounded up")

    def trainer(self, plain: Trainer, bounds: Bounds) -> Trainer:
        if not isinstance(plain, BuiltinTrainer):
            raise NotApplicable("Early stopping shortens the built-in training; this model has a function of its own.")
        epochs = math.ceil(self.share * plain.training.epochs)
        return BuiltinTrainer(plain.training.model_copy(update={"epochs": epochs}))

    def adapted(self, attack: Attack) -> Attack:
        return attack  # membership inference trains its shadow models by this defense too: it knows it already

    def statement(self, training_records: int) -> dict[str, Any]:
        return {"promise": "none: it lowers what a model remembers, and bounds nothing"}

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return f"early stopping after {self.share:.0%} of the epochs"
