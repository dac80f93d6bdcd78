"""What is rebuilt without the audited model: from a network that was trained on the attacker's own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...targets.data.data import Data
from ...targets.form import Array, Document, Form, Layout
from ...targets.model import TorchTarget, accuracy, frozen_copy
from ...targets.seeds import derive
from ...training.architecture import Architecture, weights_layout
from ...training.loop import Training, TrainingJob, train_many
from ..access import Ledger
from ..effort import Effort
from ..extraction.surrogate import surrogate_architecture
from ..preparation import Inputs, Preparation, Prepared, Scope
from .judged import KNOWN, judged
from .rebuild import by_gradients
from .space import Space

TRAINING = Training(epochs=30)


def architecture_of(data: Data) -> Architecture:
    """A built-in network that fits the inputs, whatever the audited model is."""
    return surrogate_architecture(None, data.attacker, data.classes)[0]


def space_of(data: Data) -> Space:
    own = data.attacker.take(torch.arange(min(len(data.attacker), KNOWN)))
    seen = tuple(tuple(range(first, last + 1)) for first, last in data.undeclared_blocks)
    return Space(own.x, data.bounds, data.structure, (*data.structure.one_hot, *seen))


class Sure(Document):
    """`accuracy`: of the network on evaluation records."""

    accuracy: float


@dataclass(frozen=True)
class Independent(Preparation):
    """A network trained on the attacker's records, which judges what others rebuild, and what is rebuilt from it.

    Arrays: `rebuilt` float32 [c, *shape], `weights/<name>`. Document: `Sure`.
    """

    phase: ClassVar[str] = "inversion"
    classes: int
    starts: int
    steps: int
    prior: float

    @property
    def name(self) -> str:
        return f"independent/{self.classes}-{self.starts}-{self.steps}-{self.prior:g}"

    @property
    def words(self) -> str:
        return "rebuilding inputs from a network trained on the attacker's records"

    @property
    def identity(self) -> Any:
        return [self.classes, self.starts, self.steps, self.prior, KNOWN, TRAINING.model_dump(mode="json")]

    @property
    def effort(self) -> Effort:
        return Effort(trainings=1.0, gradients=self.classes * self.starts * self.steps)

    def compute(self, inputs: Inputs) -> Prepared:
        data, seed = inputs.scope.data, derive(inputs.scope.seed, "inversion")
        known = data.attacker.take(torch.arange(min(len(data.attacker), KNOWN)))
        network = train_many(TrainingJob.of_one(architecture_of(data), known, seed, inputs.device), TRAINING)[0]
        space, classes = space_of(data), torch.from_numpy(judged(data, self.classes, inputs.scope.seed).classes)
        rebuilt = by_gradients(
            network.cpu(), space, known.y, classes,
            starts=self.starts, steps=self.steps, weight=self.prior, seed=seed, ledger=Ledger(),
        )  # fmt: skip
        told = Sure(accuracy=accuracy(TorchTarget(network), data.evaluation.x, data.evaluation.y))
        state = {f"weights/{name}": value.cpu().numpy() for name, value in network.state_dict().items()}
        return Prepared({"rebuilt": rebuilt.numpy(), **state}, told.model_dump(mode="json"))

    def form(self, scope: Scope) -> Form:
        def layout(document: Any) -> Layout:
            own = weights_layout(architecture_of(scope.data))
            count = len(judged(scope.data, self.classes, scope.seed).classes)
            rebuilt = Array("float32", (count, *scope.data.shape))
            return {"rebuilt": rebuilt, **{f"weights/{name}": one for name, one in own.items()}}

        return Form(Sure, layout)

    def network(self, prepared: Prepared, data: Data) -> nn.Module:
        module = architecture_of(data).blank()
        names = {name: one for name, one in prepared.arrays.items() if name.startswith("weights/")}
        module.load_state_dict(
            {name.removeprefix("weights/"): torch.from_numpy(np.array(one)) for name, one in names.items()}
        )
        return frozen_copy(module)
