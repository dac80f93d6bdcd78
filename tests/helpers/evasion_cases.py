"""Cases for the tests of evasion: float models, a small net on token ids, and what a part leaves standing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.targets.data.data import Data
from crushproof.targets.model import TorchTarget
from crushproof.training.ball import Norm

WORDS, LENGTH = 50, 12
N = 60
RADII = (0.03, 0.05, 0.1, 0.15)


def case_of(data: Data, module: nn.Module, **changes: Any) -> Case:
    """A float model: deployed, twin and native are one module."""
    case = Case(
        deployed=TorchTarget(module),
        twin=module,
        native=module,
        parent=module,
        evaluation=data.evaluation,
        ids=data.evaluation_ids.numpy(),
        attacker=data.attacker,
        bounds=data.bounds,
        classes=data.classes,
    )
    return replace(case, **changes)


def survivors(case: Case, part: Perturber, norm: Norm, epsilon: float, *, seed: int = 0) -> int:
    """How many of the first N records the part leaves standing."""
    evidence = Evasion(norm=norm, epsilons=(epsilon,), gate_epsilon=epsilon, records=N, parts=(part,)).run(
        case, seed=seed
    )
    return int((~evidence.arrays[f"worst/{epsilon!r}"]).sum())


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(F.relu(self.embedding(x.long())).mean(1))
        return answers


def small_cnn() -> nn.Module:
    """3,730 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
