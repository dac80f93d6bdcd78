"""Knowledge distillation: a smaller student learns from the dense model's outputs, and from its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import TorchTarget, device_of
from ...targets.seeds import derive
from ...training.adversarial import perturbed
from ...training.architecture import Architecture
from ...training.lessons import Lesson, Work
from ...training.loop import Forward, Objective, Training, rows, train
from ...training.perturbation import answering
from ...training.privacy import Noised
from ..layers.edit import noise, working_copy
from ..pruning.channels import remove_channels
from ..recipe import RECIPES, Recipe, TrainingRecipe
from .hints import hinted
from .narrow import narrower
from .student import offer_factory, own_student, shallow

HINT_RECORDS = 512  # on which mean and spread of the teacher's features are measured


@RECIPES.register
class Distill(TrainingRecipe):
    """A smaller network, taught from scratch by the dense model (Hinton et al. 2015, arXiv:1503.02531).

    Regressions (float targets) replace both losses by squared errors: to the teacher's outputs and to the targets.
    """

    family: ClassVar[str] = "Distillation"
    kind: Literal["distill"] = "distill"
    width: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of each layer's channels that the student has; 1: all. Unused with `student`",
    )
    depth: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the blocks (or layers) with outputs of their inputs' shape that the student has, rounded "
        "up; 1: all. Unused with `student`",
    )
    student: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function that builds the student, without arguments; records and outputs have the shapes "
        "of the dense model's. From Python, the function itself. None: the dense architecture, by width and depth",
    )
    temperature: float = Field(
        4.0, ge=1, le=10, description="divides the logits of teacher and student in the soft loss"
    )
    alpha: float = Field(
        0.7, ge=0, le=1, description="weight of the soft loss (times temperature squared); 1 - alpha is the hard one's"
    )
    hard_labels: Literal["true", "teacher"] = Field(
        "true", description="what the hard loss asks for: the records' own labels, or the class the teacher gives"
    )
    hint_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of the squared error between the teacher's features and what a regressor, trained along, "
        "makes of the student's; in units of the features' variance. 0: no hints (FitNets, arXiv:1412.6550)",
    )
    hint_layers: tuple[str, ...] = Field(
        (),
        description="dotted names of layers whose outputs are hints, teacher=student where the names differ; empty: "
        "the input of the layer that gives the logits",
    )
    training: Training = Field(
        Training(),
        description="of the student, on the dense model's training records; where these are perturbed (adversarial), "
        "so as to lead the student away from what the teacher says of the clean ones (robust soft labels); where it "
        "is private (DP-SGD), each record's loss by the teacher and its label is clipped as one, and counted in the "
        "epsilon that the teacher's training promises",
    )

    _settled: Architecture | None = PrivateAttr(None)

    @field_validator("student", mode="before")
    @classmethod
    def _name_of_function(cls, student: Any) -> Any:
        if not callable(student):
            return student
        path = f"{student.__module__}:{student.__qualname__}"
        offer_factory(path, student)
        return path

    @model_validator(mode="after")
    def _no_hints_under_attack(self) -> Distill:
        if self.hint_weight and self.training.adversarial is not None:
            raise ValueError("hints are features of clean records: leave out hint_weight, or adversarial in training")
        if self.hint_weight and self.training.private is not None:
            raise ValueError("hints are measured and learnt without noise: leave out hint_weight, or training.private")
        return self

    @property
    def touches_records(self) -> bool:
        return True

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        noised = self.training.noised(records)
        return None if noised is None else (replace(noised, what="distillation"),)

    @property
    def trains(self) -> bool:
        return True

    @property
    def passes(self) -> float:
        smaller = 1.0 if self.student is not None else self.width * self.depth
        return smaller * self.training.epochs

    @property
    def phrase(self) -> str:
        shares = [(self.depth, "blocks"), (self.width, "channels")]
        smaller = " and ".join(f"{100 * share:g} % of the {what}" for share, what in shares if share < 1)
        who = f"student {self.student}" if self.student else f"student with {smaller or 'the same architecture'}"
        hints = ", feature hints" if self.hint_weight else ""
        attacked = "" if self.training.adversarial is None else ", on adversarial records"
        if self.training.private is not None:
            attacked = f", by DP-SGD (noise {self.training.private.noise_multiplier:g})"
        return f"{who}, temperature {self.temperature:g}{hints}{attacked}"

    def hardened(self, metric: str, setting: Mapping[str, Any]) -> list[Recipe]:
        """Adversarial distillation against the attack that measured robust accuracy, three times as long."""
        attack = answering(metric, setting)
        if attack is None or self.hint_weight or self.training.private is not None:
            return []
        longer = {"adversarial": attack, "epochs": 3 * self.training.epochs}
        return [self.model_copy(update={"training": self.training.model_copy(update=longer)})]

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        teacher = working_copy(module).requires_grad_(False)
        device = device_of(module)
        student = self._fresh(module, records, bounds, seed).to(device)
        outputs = TorchTarget(teacher).logits(records.x.to(device))
        plain = self._values if records.y.dtype.is_floating_point else self._labels
        training_seed = derive(seed, "training")
        if not self.hint_weight:

            def objective_of(taught: Tensor) -> Objective:
                """Robust soft labels (RSLAD, Zi et al. 2021, arXiv:2108.07969) where the training has an attack."""
                attack, of_teacher = self.training.adversarial, plain(taught)
                return of_teacher if attack is None else perturbed(self.training, attack, bounds, of_teacher)

            setting = self, tuple(bounds.low.flatten().tolist()), tuple(bounds.high.flatten().tolist())
            by_record = self.training.adversarial is None
            lesson = Lesson(student, records, self.training, training_seed, outputs, objective_of, setting)
            return (yield replace(lesson, by_record=by_record))
        example = records.x[:HINT_RECORDS].to(device)
        wrapped, features = hinted(student, teacher, self.hint_layers, example, derive(seed, "hints"))
        spread = float(features(example).var(0, correction=0).mean())
        objective = with_hints(plain(outputs), features, outputs.shape[1], self.hint_weight / max(spread, 1e-12))
        trained = train(wrapped, records, self.training, seed=training_seed, objective=objective)
        return trained.get_submodule("student")

    def _values(self, outputs: Tensor) -> Objective:
        return soft_targets(outputs, self.alpha)

    def _labels(self, outputs: Tensor) -> Objective:
        smoothing, teacher_decides = self.training.label_smoothing, self.hard_labels == "teacher"
        return soft_labels(outputs, self.temperature, self.alpha, smoothing, teacher_decides)

    def settled(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Recipe:
        chosen = self.model_copy()
        if self.student is None:
            chosen._settled = self._smaller(module, records, bounds, seed)
        return chosen

    def _fresh(self, module: nn.Module, records: Records, bounds: Bounds, seed: int) -> nn.Module:
        """The student, untrained, on the CPU."""
        own = derive(seed, "student")
        if self.student is not None:
            return own_student(self.student, module, noise(module, records, bounds, 2, seed), own)
        smaller = self._settled or self._smaller(module, records, bounds, seed)
        try:
            return smaller.fresh(own)
        except NotApplicable as error:
            raise NotApplicable(f"No student can be started from scratch. {error}") from error

    def _smaller(self, module: nn.Module, records: Records, bounds: Bounds, seed: int) -> Architecture:
        example = noise(module, records, bounds, 2, seed)
        smaller = module if self.depth == 1 else shallow(module, example, self.depth)
        if self.width < 1:
            narrow = narrower(smaller, example, self.width)
            smaller = remove_channels(smaller, example, self.width) if narrow is None else narrow
        return Architecture.like(smaller, "student")


def soft_labels(
    teacher_logits: Tensor,
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
    teacher_decides: bool = False,
) -> Objective:
    """alpha * T^2 * KL(teacher || student), both at temperature T, + (1 - alpha) * cross-entropy with hard labels.

    Args:
        teacher_logits: float32 [n, classes] of the records the loop is given; looked up by a record's index.
        teacher_decides: the hard labels are the teacher's own (as DeiT's, Touvron et al. 2021, arXiv:2012.12877).
    """
    soft = F.log_softmax(teacher_logits / temperature, dim=-1)
    decided = teacher_logits.argmax(-1)

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        logits = forward(x)
        student = F.log_softmax(logits / temperature, dim=-1)
        divergence = F.kl_div(student, rows(soft, index), reduction="none", log_target=True).sum(-1)
        labels = rows(decided, index) if teacher_decides else y
        hard = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=label_smoothing
        ).view_as(y)
        return alpha * temperature**2 * divergence + (1 - alpha) * hard

    return objective


def soft_targets(teacher_outputs: Tensor, alpha: float) -> Objective:
    """alpha * squared error to the teacher's outputs + (1 - alpha) * squared error to the targets, means over outputs.

    Args:
        teacher_outputs: float32 [n, outputs]; targets are float32 [n] or [n, outputs].
    """

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        outputs = forward(x)
        to_teacher = (outputs - rows(teacher_outputs, index)).square().mean(-1)
        return alpha * to_teacher + (1 - alpha) * (outputs - y.view_as(outputs)).square().mean(-1)

    return objective


def with_hints(objective: Objective, features: Callable[[Tensor], Tensor], outputs: int, weight: float) -> Objective:
    """`objective` + weight * mean squared error of the student's guesses of the teacher's features.

    Args:
        features: the teacher's, float32 [n, features] of records float32 [n, *shape].
        outputs: how many of the student's answers are outputs; the guesses follow.
    """

    def both(forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        answers = forward(x)
        wanted = features(x.flatten(0, 1)).view(*index.shape, -1)
        missed = (answers[..., outputs:] - wanted).square().mean(-1)
        return objective(lambda _: answers[..., :outputs], x, y, index, generators) + weight * missed

    return both
