"""The built-in training with another objective, which is how a defense hardens it."""

from __future__ import annotations

import torch
from torch import nn

from ..targets.errors import NotApplicable
from ..training.architecture import Architecture
from ..training.loop import Objective, Training, TrainingJob, train_many
from ..training.stacked import group_size
from ..training.trainer import BuiltinTrainer, Trainer


def hyper_parameters(own: Training | None, plain: Trainer, what: str) -> Training:
    """Those of the defense, else those of the plain training.

    Raises:
        NotApplicable: there are neither, since the model is trained by a function of the user's; `what` begins the
            sentence ("Adversarial training").
    """
    if own is not None:
        if own.adversarial is not None:
            raise NotApplicable(f"{what} has an objective of its own: leave `adversarial` out of its training.")
        if own.private is not None:
            raise NotApplicable(f"{what} adds no noise: leave `private` out of its training, or use defense: dp-sgd.")
        return own
    if isinstance(plain, BuiltinTrainer):
        return plain.training
    raise NotApplicable(
        f"{what} happens inside the training loop, and this model is trained by a function of its own. Give the "
        "defense `training` hyper-parameters for the built-in loop, or do the same in your function and audit the "
        "result as a dense model."
    )


class ObjectiveTrainer(Trainer):
    """The built-in loop on an objective of a defense's.

    Args:
        name: all that decides the objective, for the identity.
    """

    def __init__(self, name: str, training: Training, objective: Objective) -> None:
        self.name, self.training, self.objective = name, training, objective

    @property
    def identity(self) -> str:
        return f"{self.name}:{self.training.model_dump_json()}"

    def fit(self, job: TrainingJob) -> list[nn.Module]:
        return train_many(job, self.training, self.objective)

    def side_by_side(self, architecture: Architecture, device: torch.device) -> int:
        return group_size(architecture.blank(), self.training.batch_size, device)
