"""Distillation on public records: what only the members could teach is not passed on, and students of members leak."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.extraction.extraction import Extraction
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import PopulationPlan, masks
from crushproof.attacks.membership.scoring.scores import lira, related
from crushproof.attacks.membership.signals import phi_of
from crushproof.attacks.statistics.roc import area
from crushproof.audit.plan.plan import Plan
from crushproof.audit.subject.audited import DENSE, DenseModel
from crushproof.audit.subject.resolve import Subject
from crushproof.audit.suite.lineup import assemble
from crushproof.defenses.defense import DEFENSES
from crushproof.defenses.public_distillation import PublicDistillation, PublicTrainer
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer, Trainer, UserTrainer

N, SHADOWS, CPU = 60, 8, torch.device("cpu")
NET = Architecture("mlp", lambda: Mlp(3 + N, 3, (32,)))
PLAIN = BuiltinTrainer(Training(epochs=20, batch_size=10, learning_rate=1e-2))


def signals(count: int, name: str) -> tuple[Tensor, Tensor]:
    """x [n, 3] in [0, 1], whose largest value is far the largest and the class, and the classes."""
    x = torch.rand(count, 3, generator=generator(0, name))
    return 0.3 * x + 0.7 * torch.eye(3)[x.argmax(1)], x.argmax(1)


def records() -> Records:
    """Each has a column of its own, by which alone a model can know its label: a third of the labels are wrong."""
    x, y = signals(N, "records")
    y = torch.where(torch.arange(N) % 3 == 0, (y + 1) % 3, y)
    return Records(torch.cat([x, torch.eye(N)], 1), y)


def public() -> Tensor:
    return torch.cat([signals(200, "public")[0], torch.zeros(200, N)], 1)


def leaks(trainer: Trainer) -> tuple[float, float]:
    """AUC of each shadow attacked by the others, on average, and the first one's accuracy without own columns."""
    inside, own = masks(N, SHADOWS, 1), records()
    plan = PopulationPlan(own, N, np.zeros(N, bool), np.arange(N), inside, tuple(range(SHADOWS)))
    models = plan.fit(trainer, NET, first=0, last=SHADOWS, device=CPU)
    phi = np.stack([phi_of(TorchTarget(model), own) for model in models])
    scores = lira(phi.astype(np.float64), ShadowSignals(inside, phi), ~related(inside, inside))
    found = [area(score, truth) for score, truth in zip(scores, inside, strict=True)]
    x, y = signals(200, "test")
    return float(np.mean(found)), accuracy(TorchTarget(models[0]), torch.cat([x, torch.zeros(200, N)], 1), y)


def test_a_student_of_members_leaks_and_one_of_public_records_does_not() -> None:
    assert leaks(PublicTrainer(PublicDistillation(), PLAIN, records().x))[0] > 0.8
    area, right = leaks(PublicTrainer(PublicDistillation(), PLAIN, public()))
    assert abs(area - 0.5) < 0.1
    assert right > 0.8


@pytest.mark.parametrize("values", [False, True])
def test_students_side_by_side_learn_what_each_learns_alone_of_its_own_teacher(values: bool) -> None:
    own = records()
    own = Records(own.x, own.x[:, :3]) if values else own
    trainer = PublicTrainer(PublicDistillation(training=Training(epochs=2)), PLAIN, public())
    subsets = [torch.arange(30), torch.arange(30, 60)]
    both = trainer.fit(TrainingJob(NET, own, subsets, [3, 4], CPU))
    for position, (subset, seed) in enumerate(zip(subsets, (3, 4), strict=True)):
        (alone,) = trainer.fit(TrainingJob(NET, own, [subset], [seed], CPU))
        for a, b in zip(alone.parameters(), both[position].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def data(public_records: Tensor | None) -> Data:
    x, y = signals(80, "data")
    names = ("a", "b", "c")
    return Data("d", Records(x[:40], y[:40]), Records(x[40:], y[40:]), Bounds.of(0, 1), names, public=public_records)


def test_a_plan_hardens_by_public_records_and_says_where_there_are_none() -> None:
    plan = Plan.model_validate(
        {
            "name": "p",
            "data": {"kind": "npz", "path": "d.npz"},
            "model": {"architecture": "x:y"},
            "candidates": {"small": {"recipe": "int8", "defense": "public-distillation"}},
            "attacks": ["membership"],
        }
    )
    net = Architecture("mlp", lambda: Mlp(3, 3, (8,)))
    subject = Subject(data(signals(50, "public")[0]), DenseModel(DENSE, net, PLAIN), "")
    found = assemble(plan, subject)
    assert [model.name for model in found.dense] == [DENSE, "dense-public-distillation"]
    assert found.dense[1].trainer.identity.startswith("public-distillation:4.0:")
    with pytest.raises(InputError, match=r"no public records.*Save inputs of the same kind.*x_population"):
        assemble(plan, dataclasses.replace(subject, data=data(None)))


def test_what_cannot_be_done_is_said() -> None:
    defense = DEFENSES.parse("public-distillation")
    assert isinstance(defense, PublicDistillation)
    assert defense.adapted(Extraction()) == Extraction()
    with pytest.raises(NotApplicable, match="needs such records"):
        defense.trainer(PLAIN, Bounds.of(0, 1))
    own: UserTrainer = UserTrainer(lambda module, x, y, seed: nn.Identity(), "mine")
    with pytest.raises(NotApplicable, match="The student's training happens inside"):
        defense.trained_on(data(signals(50, "public")[0]), own)
