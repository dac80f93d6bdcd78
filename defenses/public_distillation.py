"""Distillation on public records: what is shipped was taught by a model that saw the members, and never saw them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..attacks.attack import Attack
from ..compression.distillation.distill import soft_labels, soft_targets
from ..targets.data.data import Data
from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.model import TorchTarget
from ..targets.seeds import derive
from ..training.architecture import Architecture
from ..training.lessons import Lesson, Work, together
from ..training.loop import Objective, Training, TrainingJob
from ..training.stacked import group_size
from ..training.trainer import Trainer
from .defense import DEFENSES, TrainingDefense
from .objectives import hyper_parameters


@DEFENSES.register
class PublicDistillation(TrainingDefense):
    """A student learns a teacher's answers to public records alone (Shejwalkar and Houmansadr 2021, arXiv:1906.06589).

    The teacher is trained on the members as the plain model is, and is not shipped; the student is of the same
    architecture. The public records (`x_population` of the data) need no labels. It promises nothing that could be
    proven: some of what a teacher remembers shows in its answers to other records too (Jagielski et al. 2023,
    arXiv:2303.03446), and a recipe that looks at the members afterwards lets them in again. Both are in the figures,
    since each shadow model is the student of a shadow teacher, compressed alike.
    """

    title: ClassVar[str] = "Distillation on public records"

    kind: Literal["public-distillation"] = "public-distillation"
    temperature: float = Field(4.0, ge=1, le=10, description="divides the logits of teacher and student; of classes")
    training: Training | None = Field(
        None, description="of the student, on the public records; None: the plain training's"
    )

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return "distillation on public records"

    def trainer(self, plain: Trainer, bounds: Bounds) -> Trainer:
        raise NotApplicable(
            "Distillation on public records needs such records, which neither the training nor the bounds hold: use "
            "`trained_on`, with data that have them."
        )

    def trained_on(self, data: Data, plain: Trainer) -> Trainer:
        """See `TrainingDefense.trained_on`.

        Raises:
            NotApplicable: the data have no public records, or the student's training is not given where the plain
                model is trained by a function of the user's.
        """
        if data.public is None:
            raise NotApplicable(
                "the data hold no public records, which the student learns from instead of the members. Save inputs of "
                "the same kind that are neither training nor test records (no labels are needed) as x_population in "
                "the npz."
            )
        return PublicTrainer(self, plain, data.public)

    def adapted(self, attack: Attack) -> Attack:
        """The same attack: its shadows are students of shadow teachers, on the same public records."""
        return attack


class PublicTrainer(Trainer):
    """Trains teachers as `plain` does, and a student of each on the public records.

    Args:
        public: float32 [n, *shape]; the digest of the data, not the identity, says which they are.
    """

    def __init__(self, defense: PublicDistillation, plain: Trainer, public: Tensor) -> None:
        self.training = hyper_parameters(defense.training, plain, "The student's training")
        self.plain, self.public, self.temperature = plain, public, defense.temperature

    @property
    def identity(self) -> str:
        return f"public-distillation:{self.temperature}:{self.training.model_dump_json()}:{self.plain.identity}"

    def fit(self, job: TrainingJob) -> list[nn.Module]:
        teachers = self.plain.fit(job)
        return together([self._student(job, own, seed) for own, seed in zip(teachers, job.seeds, strict=True)])

    def side_by_side(self, architecture: Architecture, device: torch.device) -> int:
        own = group_size(architecture.blank(), self.training.batch_size, device)
        return min(own, self.plain.side_by_side(architecture, device))

    def _student(self, job: TrainingJob, teacher: nn.Module, seed: int) -> Work:
        student = job.architecture.fresh(derive(seed, "student")).to(job.device)
        public = self.public.to(job.device)
        answers = TorchTarget(teacher).logits(public)
        values = job.records.y.is_floating_point()
        records = Records(public, answers if values else answers.argmax(1))
        objective = _values if values else self._classes
        return (yield Lesson(student, records, self.training, derive(seed, "lesson"), answers, objective, values))

    def _classes(self, answers: Tensor) -> Objective:
        return soft_labels(answers, self.temperature, 1.0)


def _values(answers: Tensor) -> Objective:
    return soft_targets(answers, 1.0)
