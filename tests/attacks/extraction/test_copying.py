"""How long a copy is trained, and from what: its held-out answers decide, and a kill costs one copy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kept_parts import Folder, KilledError
from torch import nn
from torch.nn import functional as F

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.extraction.copying import Copy, Lesson, Pupil, Tutor, match_answers
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.targets.steps import heard_by
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp


class Deaf(nn.Module):
    """An architecture that learns nothing of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.head(torch.zeros_like(x[:, :1]))
        return answers


@pytest.fixture(scope="module")
def target() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def lesson(target: nn.Module) -> Lesson:
    x = 6 * torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) - 3
    with torch.no_grad():
        logits = 4 * target(x)
    return Lesson(Records(x, logits.argmax(1)), torch.softmax(logits / 3, 1), 3.0)


def tutor(rate: float, steps: int = 40) -> Tutor:
    return Tutor(Training(epochs=1, batch_size=16, learning_rate=rate), steps)


def fresh() -> nn.Module:
    torch.manual_seed(2)
    return Mlp(4, 3, (16,))


def test_training_goes_on_while_the_copy_gets_better(lesson: Lesson) -> None:
    teacher = tutor(2e-2, steps=20)
    first, long = (teacher.copy(Pupil(fresh(), lesson, 0, rounds)) for rounds in (1, 6))
    assert long.loss < 0.5 * first.loss
    assert long.agreement >= first.agreement
    assert 1.2 * first.spent.backwards < long.spent.backwards < 6 * first.spent.backwards
    again = teacher.copy(Pupil(long.before, lesson, 0, 6))
    assert again.loss < 1.1 * long.loss, "what was learnt is gone on from"
    assert again.agreement >= long.agreement - 0.1


def test_a_rate_that_diverges_is_lowered(lesson: Lesson) -> None:
    learnt, asked = torch.arange(80), torch.arange(80, 100)
    wild = tutor(30.0, steps=60).copy(Pupil(fresh(), lesson, 0))
    assert wild.loss < 1.5 * lesson.always_the_same(learnt, asked)
    plain = tutor(30.0 / 16, steps=60)
    assert math.isfinite(plain.copy(Pupil(fresh(), lesson, 0)).loss)


def test_the_loss_is_the_kl_divergence(lesson: Lesson) -> None:
    index, logits = torch.arange(7), torch.randn(100, 3, generator=torch.Generator().manual_seed(3))
    objective = match_answers(lesson.answers, torch.full((100,), 3.0), Ledger())
    expected = objective(lambda x: logits[None, index], lesson.records.x, index[None], index[None], [])
    assert lesson.loss(logits[index], index) == pytest.approx(float(expected.mean()), rel=1e-5)
    labels = Lesson(lesson.records, F.one_hot(lesson.records.y, 3).float())
    cross = F.cross_entropy(logits[index], lesson.records.y[index])
    assert labels.loss(logits[index], index) == pytest.approx(float(cross), rel=1e-5)
    assert lesson.loss(torch.full((7, 3), torch.nan), index) == math.inf


def test_the_better_architecture_on_held_out_answers_is_taken(lesson: Lesson) -> None:
    deaf = tutor(1e-2).copy(Pupil(Deaf(), lesson, 0))
    assert deaf.agreement < 0.9
    taken = tutor(1e-2).better(deaf, Pupil(fresh(), lesson, 0, 2))
    assert taken is not deaf
    assert taken.loss < 0.5 * deaf.loss
    assert tutor(1e-2).better(taken, Pupil(Deaf(), lesson, 0)).module is taken.module
    enough = Copy(taken.module, taken.before, 9.0, 0.95)
    assert tutor(1e-2).better(enough, Pupil(fresh(), lesson, 0)) is enough


def test_few_queries_are_all_learnt(lesson: Lesson) -> None:
    few = Lesson(lesson.records.take(torch.arange(9)), lesson.answers[:9], 3.0)
    copy = tutor(1e-2).copy(Pupil(fresh(), few, 0))
    assert math.isnan(copy.loss)
    assert tutor(1e-2).better(copy, Pupil(Deaf(), few, 0)) is copy
    assert few.loss(TorchTarget(copy.module).logits(few.records.x), torch.arange(9)) < 1


def test_copies_side_by_side_are_those_trained_alone(lesson: Lesson) -> None:
    first = torch.arange(60)
    short = Lesson(lesson.records.take(first), lesson.answers[:60], 3.0)
    few = Lesson(lesson.records.take(first[:9]), F.one_hot(lesson.records.y[:9], 3).float())
    teacher = tutor(2e-2, steps=30)
    pupils = [Pupil(fresh(), lesson, 0, 3), Pupil(fresh(), short, 1), Pupil(fresh(), few, 2)]
    together = teacher.copies(pupils)
    again = teacher.copies(pupils)
    assert [one.loss for one in again[:2]] == [one.loss for one in together[:2]]
    assert math.isnan(together[2].loss)
    alone = teacher.copy(pupils[0])
    assert together[0].loss == pytest.approx(alone.loss, rel=1e-3), "the longest sets the number of steps"
    assert together[0].spent == alone.spent
    for copy, pupil in zip(together, pupils, strict=True):
        assert pupil.lesson.loss(TorchTarget(copy.module).logits(pupil.lesson.records.x[:9]), torch.arange(9)) < 1


def test_no_copy_is_carried_along_for_more_than_twice_its_steps(lesson: Lesson) -> None:
    teacher = Tutor(Training(epochs=10, batch_size=5), 0)
    lessons = [Lesson(lesson.records.take(torch.arange(n)), lesson.answers[:n]) for n in (20, 100, 60, 50, 30)]
    assert teacher.groups([Pupil(fresh(), one, 0) for one in lessons]) == [[1, 2, 3], [4, 0]]
    wide = Lesson(Records(torch.zeros(1, 2**20).expand(100, -1), lesson.records.y), lesson.answers)
    large = nn.Sequential(nn.Tanh(), nn.AvgPool1d(2**20), nn.Linear(1, 3))
    assert teacher.groups([Pupil(large, wide, 0)] * 5) == [[0, 1], [2, 3], [4]], "what they hold is bounded"
    unstackable = nn.LSTM(4, 3)
    assert teacher.groups([Pupil(unstackable, one, 0) for one in lessons[:2]]) == [[1], [0]]


def test_a_kill_costs_one_copy(target: nn.Module) -> None:
    stream = torch.Generator().manual_seed(4)
    x, own = torch.rand(60, 4, generator=stream), torch.rand(30, 4, generator=stream)
    with torch.no_grad():
        evaluation, attacker = (Records(some, target(some).argmax(1)) for some in (x, own))
    case = Case(TorchTarget(target), target, target, target, evaluation, np.arange(60), attacker, Bounds.of(0, 1), 3)
    attack = Extraction(budgets=(20, 40), least_steps=20, transfer_steps=2)
    direct, folder = attack.run(case, seed=0), Folder()
    for folder.room in (1, 3, 5):
        with heard_by(folder), pytest.raises(KilledError):
            attack.run(case, seed=0)
    folder.room = 100
    with heard_by(folder):
        resumed = attack.run(case, seed=0)
    copies = ["scores/20", "scores/40", "labels/40", "without-queries"]
    assert list(folder.parts)[:4] == [f"copy/{copy}" for copy in copies]
    assert resumed.summary == direct.summary
    assert resumed.ledger == direct.ledger
    assert all(np.array_equal(resumed.arrays[name], direct.arrays[name]) for name in direct.arrays)

    right = {copy: folder.parts[f"copy/{copy}"]["held-out"] for copy in copies}
    assert [len(one) for one in right.values()] == [0, 8, 0, 8], "the strongest and the other see the same answers"
    assert direct.summary["kept"] == (
        "without-queries" if right[copies[3]].sum() > right[copies[1]].sum() else copies[1]
    )
    right[copies[1]][:], right[copies[3]][0] = False, True
    with heard_by(folder):
        other = attack.run(case, seed=0)
    assert other.summary["kept"] == "without-queries", "its own labels say more"
    assert other.summary["transfer"].keys() == {"scores/40", "labels/40", "without-queries"}
