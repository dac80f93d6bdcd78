"""The training loop. It always trains a stack of models (of one, when alone): same code, same results."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..targets.data.records import Records
from ..targets.errors import NotApplicable
from ..targets.seeds import generator, global_seed
from ..targets.steps import pulse
from ..targets.technique import Technique
from .architecture import Architecture
from .optimizers import AdamW, Optimizer, Sgd
from .perturbation import Perturbation
from .privacy import Noised, PrivateTraining, schedule
from .stacked import Stack, group_size

Forward = Callable[[Tensor], Tensor]
"""x float32 [k, b, *shape] -> logits float32 [k, b, classes]: every model of the stack on its own batch."""

Objective = Callable[[Forward, Tensor, Tensor, Tensor, Sequence[torch.Generator]], Tensor]
"""(forward, x [k, b, *shape], y int64 [k, b], index int64 [k, b], one generator per model) -> losses float32 [k, b].

`index` are positions in the records given to the loop; a distillation objective looks its teacher's logits up by it.
"""


class Training(Technique):
    """Hyper-parameters of one training run."""

    epochs: PositiveInt = Field(10, le=10_000, description="passes over the records")
    batch_size: PositiveInt = Field(32, le=2**20, description="records per step and model")
    learning_rate: PositiveFloat = Field(3e-3, le=100, description="at its peak")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or sgd with Nesterov momentum .9")
    weight_decay: float = Field(5e-4, ge=0, le=100)
    schedule: Literal["constant", "cosine", "one-cycle"] = Field(
        "one-cycle", description="of the learning rate: one-cycle warms up linearly over a quarter, then decays to 0"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    adversarial: Perturbation | None = Field(
        None, description="of a fine-tuning: the records are perturbed in every step; None: they are not"
    )

    private: PrivateTraining | None = Field(
        None,
        description="of a fine-tuning or distillation: DP-SGD, which is counted in the epsilon that the dense model's "
        "training promises; batch_size and epochs are then averages (Poisson sampling)",
    )

    @field_validator("adversarial")
    @classmethod
    def _more_than_one_step(cls, adversarial: Perturbation | None) -> Perturbation | None:
        if adversarial is not None and adversarial.steps < 2:
            raise ValueError("steps must be 2 or more: nothing checks here what became of single-step training")
        return adversarial

    @model_validator(mode="after")
    def _one_kind_of_step(self) -> Training:
        if self.private is not None and (self.adversarial is not None or self.label_smoothing):
            raise ValueError("private training has neither perturbed records (adversarial) nor label_smoothing")
        return self

    def noised(self, records: int) -> Noised | None:
        """What the training costs of differential privacy on so many records; None: it looks at them without noise."""
        if self.private is None:
            return None
        return Noised("fine-tuning", self.private.noise_multiplier, *schedule(self.epochs, self.batch_size, records))


def cross_entropy(training: Training) -> Objective:
    """The plain objective: cross-entropy with classes, squared error with values (y float32 [k, b, outputs]).

    Raises:
        NotApplicable: the training has perturbed records, whose objective `adversarial.objective_of` makes, or is
            private, whose steps are `private_steps`.
    """
    if training.adversarial is not None:
        raise NotApplicable(
            "This training cannot perturb its records (`adversarial`): fine-tuning after pruning, factorisation and in "
            "quantisation-aware training can. A dense model is trained so by defense: adversarial-training."
        )
    if training.private is not None:
        raise NotApplicable(
            "This training cannot be private: distillation and fine-tuning after pruning, factorisation and weight "
            "sharing can. A dense model is trained so by defense: dp-sgd."
        )

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        logits = forward(x)
        if y.is_floating_point():
            return (logits - y).square().mean(-1)
        losses = F.cross_entropy(
            logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=training.label_smoothing
        )
        return losses.view_as(y)

    return objective


def rule(training: Training, parameters: Sequence[Tensor], *, whole: bool = False) -> Optimizer:
    """The training's optimiser; `whole` as `AdamW` has it."""
    if training.optimizer == "adamw":
        return AdamW(parameters, training.weight_decay, whole=whole)
    return Sgd(parameters, training.weight_decay)


def rate(training: Training, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps`."""
    progress = step / max(1, steps)
    if training.schedule == "constant":
        factor = 1.0
    elif training.schedule == "cosine":
        factor = 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))
    else:
        factor = progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75
    return training.learning_rate * max(factor, 1e-3)


def train_stack(
    modules: Sequence[nn.Module],
    records: Records,
    subsets: Sequence[Tensor],
    seeds: Sequence[int],
    training: Training,
    *,
    objective: Objective | None = None,
    length: int = 0,
    alike: bool = False,
    after_step: Callable[[Stack], None] | None = None,
) -> None:
    """Trains `modules` (one structure) in place, each on its own subset of `records`, side by side.

    Args:
        modules: on the device they are to be trained on; left in evaluation mode.
        subsets: int64 indices into `records`. An epoch is as long as the longest, and goes through shorter ones again.
        seeds: one per module; decides the order of its records and the objective's noise.
        length: records that an epoch is at least long, where every subset is shorter.
        alike: what becomes of a model is the same, bit for bit, whichever others stand beside it, one or more.
        after_step: called after each step with the stack.
    """
    device = next(modules[0].parameters()).device
    records = records.to(device)
    loss = objective or cross_entropy(training)
    generators = [generator(seed, "objective", device=device) for seed in seeds]
    orders = [generator(seed, "order of records") for seed in seeds]
    count = max(length, *(len(subset) for subset in subsets))
    batch = min(training.batch_size, count)
    per_epoch = max(1, count // batch)  # the rest of an epoch is dropped: batch norm dislikes a batch of one
    stack = Stack(modules, alike=alike)
    parameters = stack.parameters()
    optimizer = rule(training, parameters, whole=alike)
    step = 0
    with global_seed(seeds[0], "dropout"):
        for _ in range(training.epochs):
            shuffled = torch.stack(
                [_shuffled(subset, count, order) for subset, order in zip(subsets, orders, strict=True)]
            ).to(device)
            for first in range(0, per_epoch * batch, batch):
                pulse("training step", step, training.epochs * per_epoch)
                index = shuffled[:, first : first + batch]
                losses = loss(stack, rows(records.x, index), rows(records.y, index), index, generators)
                for parameter in parameters:
                    parameter.grad = None
                losses.mean(1).sum().backward()  # models share nothing, so the sum keeps their gradients apart
                optimizer.step(rate(training, step, training.epochs * per_epoch))
                step += 1
                if after_step is not None:
                    after_step(stack)
    stack.write_back()
    for module in modules:
        module.eval()


def rows(of: Tensor, index: Tensor) -> Tensor:
    """of[index], [*index's shape, *shape], for [n, *shape]: copied row by row, in a fifth of the time."""
    return of.index_select(0, index.flatten()).view(*index.shape, *of.shape[1:])


def _shuffled(subset: Tensor, count: int, order: torch.Generator) -> Tensor:
    """So many of the subset's indices: all in random order, then all again in another, as often as it takes."""
    passes = [torch.randperm(len(subset), generator=order) for _ in range(math.ceil(count / len(subset)))]
    return subset[torch.cat(passes)[:count]]


def train(
    module: nn.Module,
    records: Records,
    training: Training,
    *,
    seed: int,
    objective: Objective | None = None,
) -> nn.Module:
    """A trained copy of `module` (which is left as it is), in evaluation mode on the same device."""
    trained = copy.deepcopy(module)
    everything = torch.arange(len(records))
    train_stack([trained], records, [everything], [seed], training, objective=objective)
    return trained


@dataclass(frozen=True)
class TrainingJob:
    """Models of one architecture to be trained from scratch, one per (subset, seed).

    Attributes:
        records: all that may be trained on.
        subsets: int64 indices into `records`, one per model; equal lengths let a stack be trained at once.
        seeds: decide initial weights and order of the records; a model depends on its own seed and subset only.
        device: where they are trained, and stay.
    """

    architecture: Architecture
    records: Records
    subsets: Sequence[Tensor]
    seeds: Sequence[int]
    device: torch.device

    @classmethod
    def of_one(cls, architecture: Architecture, records: Records, seed: int, device: torch.device) -> TrainingJob:
        """One model on all the records."""
        return cls(architecture, records, [torch.arange(len(records))], [seed], device)


def train_many(job: TrainingJob, training: Training, objective: Objective | None = None) -> list[nn.Module]:
    """Fresh models, each trained on its own subset; stacked in groups where the fixed rule of `group_size` says so."""
    modules = [job.architecture.fresh(seed).to(job.device) for seed in job.seeds]
    size = group_size(modules[0], training.batch_size, job.device)
    for first in range(0, len(modules), size):
        if len(modules) > size:
            pulse("model", first, len(modules))
        group = slice(first, first + size)
        train_group(modules[group], job.records, job.subsets[group], job.seeds[group], training, objective)
    return modules


def train_group(
    modules: Sequence[nn.Module],
    records: Records,
    subsets: Sequence[Tensor],
    seeds: Sequence[int],
    training: Training,
    objective: Objective | None = None,
    *,
    length: int = 0,
    alike: bool = False,
) -> None:
    """`train_stack`, but one at a time where their forward cannot be batched: it looks at values to decide its way."""
    try:
        train_stack(modules, records, subsets, seeds, training, objective=objective, length=length, alike=alike)
    except RuntimeError as error:
        if len(modules) == 1 or "vmap" not in str(error):
            raise
        for module, subset, seed in zip(modules, subsets, seeds, strict=True):  # a stack that fails changes none
            train_stack([module], records, [subset], [seed], training, objective=objective, length=length)
