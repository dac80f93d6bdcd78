"""Knowledge distillation: a thinner student learns from the dense model's softened outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..targets.data import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.model import TorchTarget, device_of
from ..targets.seeds import derive
from ..training.architecture import Architecture
from ..training.loop import Forward, Objective, Training, train
from .layers import noise, working_copy
from .prune import thin
from .recipe import RECIPES, Recipe


@RECIPES.register
class Distill(Recipe):
    """A student of the same architecture, thinned, taught by the dense model (Hinton et al. 2015, arXiv:1503.02531)."""

    kind: Literal["distill"] = "distill"
    width: float = Field(
        0.5, gt=0, le=1, description="share of each layer's channels that the student has; 1: the dense architecture"
    )
    temperature: float = Field(
        4.0, ge=1, le=10, description="divides the logits of teacher and student in the soft loss"
    )
    alpha: float = Field(
        0.7, ge=0, le=1, description="weight of the soft loss (times temperature squared); 1 - alpha is the labels'"
    )
    training: Training = Field(Training(), description="of the student, on the dense model's training records")

    @property
    def touches_records(self) -> bool:
        return True

    @property
    def trains(self) -> bool:
        return True

    @property
    def words(self) -> str:
        return f"student with {100 * self.width:g} % of the channels, temperature {self.temperature:g}"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        teacher = working_copy(module)
        student = teacher if self.width == 1 else thin(module, noise(module, records, bounds, 2, seed), self.width)
        try:
            fresh = Architecture.like(student, "student").fresh(derive(seed, "student"))
        except NotApplicable as error:
            raise NotApplicable(f"No student can be started from scratch. {error}") from error
        device = device_of(module)
        logits = TorchTarget(teacher).logits(records.x.to(device))
        objective = soft_labels(logits, self.temperature, self.alpha, self.training.label_smoothing)
        return train(fresh.to(device), records, self.training, seed=derive(seed, "training"), objective=objective)


def soft_labels(teacher_logits: Tensor, temperature: float, alpha: float, label_smoothing: float = 0.0) -> Objective:
    """alpha * T^2 * KL(teacher || student), both at temperature T, + (1 - alpha) * cross-entropy with the labels.

    Args:
        teacher_logits: float32 [n, classes] of the records the loop is given; looked up by a record's index.
    """
    soft = F.log_softmax(teacher_logits / temperature, dim=-1)

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        logits = forward(x)
        student = F.log_softmax(logits / temperature, dim=-1)
        divergence = F.kl_div(student, soft[index], reduction="none", log_target=True).sum(-1)
        hard = F.cross_entropy(
            logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=label_smoothing
        ).view_as(y)
        return alpha * temperature**2 * divergence + (1 - alpha) * hard

    return objective
