"""How a copy is trained from answers: for as long as it gets better on answers that it does not learn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Records
from ...targets.model import TorchTarget, device_of, frozen_copy, records_at_once
from ...targets.recent import LARGE, give_back
from ...targets.seeds import derive
from ...training.loop import Forward, Objective, Training, rows, train_group
from ...training.stacked import group_size
from ..access import Ledger

HELD_OUT = 5  # every fifth query is one whose answer decides how to train, and is learnt last
BETTER = 0.9  # of the held-out loss that a further round must reach to be followed by another
ALIKE = 0.95  # of the held-out labels, from which a copy needs no further round
SLOWER = 4.0  # by how much the learning rate is lowered where training got nowhere
MOST_SLOWDOWNS = 2
ENOUGH = 0.9  # of the held-out labels, from which no other architecture is tried
FEWEST = 4  # records of a batch that a large network is trained on: batch norm needs some
NEAR = 1.25  # times the held-out loss


@dataclass(frozen=True)
class Lesson:
    """What a copy is trained on.

    Args:
        records: the queries, with the answers' labels.
        answers: the distributions answered, float32 [n, classes], softened by the temperature (`answers.told`).
    """

    records: Records
    answers: Tensor
    temperature: float = 1.0

    def loss(self, logits: Tensor, index: Tensor) -> float:
        """Mean KL divergence times temperature^2 on the queries at `index`; infinity where it is no number."""
        learnt = F.log_softmax(logits.double() / self.temperature, 1)
        losses = F.kl_div(learnt, self.answers[index].to(learnt), reduction="none").sum(1)
        loss = self.temperature**2 * float(losses.mean())
        return loss if math.isfinite(loss) else math.inf

    def always_the_same(self, learnt: Tensor, asked: Tensor) -> float:
        """The loss on `asked` of giving every query the mean of the answers on `learnt`."""
        classes = self.answers.shape[1]
        mean = (self.answers[learnt].double().sum(0) + 1 / classes) / (len(learnt) + 1)
        return self.loss((self.temperature * mean.log()).expand(len(asked), -1), asked)

    def commonest(self, asked: Tensor) -> float:
        """The share of `asked` that have the commonest label."""
        return float(torch.bincount(self.records.y[asked]).max()) / len(asked)


@dataclass(frozen=True)
class Pupil:
    """A copy to be trained.

    Args:
        start: what it starts from, left as it is.
        rounds: of training, at most.
        held: int64 [h], positions of the queries that are held out; None: every fifth.
    """

    start: nn.Module
    lesson: Lesson
    seed: int
    rounds: int = 1
    held: Tensor | None = None

    def halves(self) -> tuple[Tensor, Tensor]:
        """Which queries are learnt, and which are held out: none of fewer than 15."""
        index = torch.arange(len(self.lesson.records))
        held = index % HELD_OUT == HELD_OUT - 1
        if self.held is not None:
            held = torch.isin(index, self.held)
        held &= len(index) >= 3 * HELD_OUT
        return index[~held], index[held]


@dataclass(frozen=True)
class Copy:
    """What training gave.

    Args:
        module: the copy, in evaluation mode.
        before: the same before it learnt the held-out queries: what further rounds go on from.
        loss: on the held-out queries, the mean; NaN where none were.
        agreement: share of the held-out queries on which it gives the answer's label; NaN where none were.
        spent: passes.
    """

    module: nn.Module
    before: nn.Module
    loss: float = math.nan
    agreement: float = math.nan
    spent: Ledger = field(default_factory=Ledger)


class _Trained:
    """A copy on its way: the best so far, by the queries at `asked`, of which there may be none."""

    def __init__(self, pupil: Pupil, learnt: Tensor, asked: Tensor) -> None:
        self.pupil, self.learnt, self.asked = pupil, learnt, asked
        self.module, self.rate, self.spent = pupil.start, math.nan, Ledger()
        self.loss, self.agreement = (math.inf, 0.0) if len(asked) else (math.nan, math.nan)
        self.improved = True  # in the last round, by enough for another one

    def take(self, tried: nn.Module) -> None:
        """Keeps the module if it answers the held-out queries better than the best so far."""
        if not len(self.asked):
            self.module = tried
            return
        lesson, before = self.pupil.lesson, self.loss
        self.spent.forwards += len(self.asked)
        logits = TorchTarget(tried).logits(lesson.records.x[self.asked])
        loss = lesson.loss(logits, self.asked)
        if loss < self.loss:
            self.loss, self.module = loss, tried
            self.agreement = float((logits.argmax(1) == lesson.records.y[self.asked]).double().mean())
        self.improved = loss < BETTER * before

    @property
    def began(self) -> bool:
        """Whether loss or labels are better than one and the same answer to everything."""
        lesson = self.pupil.lesson
        if not len(self.asked):
            return True
        same = lesson.always_the_same(self.learnt, self.asked)
        return self.loss < same or self.agreement > lesson.commonest(self.asked)


@dataclass(frozen=True)
class Tutor:
    """How copies are trained.

    Args:
        training: its epochs, with at least `least_steps` steps, are one round.
        enough: share of the held-out labels from which no further round follows.
        alike: what becomes of a copy is the same, bit for bit, whichever others of as many queries are trained beside
            it; where they are trained side by side at all.
    """

    training: Training
    least_steps: int
    enough: float = ALIKE
    alike: bool = False

    def size(self, pupil: Pupil) -> int:
        """How many copies like this one are trained side by side, at most."""
        start, x = pupil.start, pupil.lesson.records.x[:1]
        size = group_size(start, self.training.batch_size, device_of(start))
        if size > 1:  # a stack of copies holds one's activations as many times
            size = max(1, min(size, records_at_once(x, frozen_copy(start)) // self.training.batch_size))
        return size

    def groups(self, pupils: Sequence[Pupil]) -> list[list[int]]:
        """Which of these, of one architecture, are trained side by side: their positions.

        A small network leaves a processor idle between its operations: five together take two fifths of the time.
        A copy is not carried along for more than twice the steps it needs.
        """
        if not pupils:
            return []
        size = self.size(pupils[0])
        steps = [self._steps(len(pupil.lesson.records)) for pupil in pupils]
        groups: list[list[int]] = []
        for position in sorted(range(len(pupils)), key=lambda position: -steps[position]):
            if not groups or len(groups[-1]) == size or 2 * steps[position] < steps[groups[-1][0]]:
                groups.append([])
            groups[-1].append(position)
        return groups

    def copy(self, pupil: Pupil) -> Copy:
        """The copy, trained by itself."""
        return self.copies([pupil])[0]

    def copies(self, pupils: Sequence[Pupil]) -> list[Copy]:
        """Trains copies of one architecture side by side, in rounds while these bring something.

        They end where a round lowers the held-out loss by less than a tenth, or enough held-out labels are right.

        A first round after which neither that loss nor the labels are better than one and the same answer to everything
        (it diverged, or has not begun to learn) is repeated from the start at a quarter of the learning rate, twice at
        most. The last, short round takes the held-out queries, too. Fewer than 15 queries are all learnt, in one round.
        """
        everyone = [_Trained(pupil, *pupil.halves()) for pupil in pupils]
        most = max(everyone, key=lambda one: len(one.learnt))
        training = in_memory(self.training, most.pupil.start, most.pupil.lesson.records)
        training = at_least(training, self.least_steps, len(most.learnt))
        again, alike = everyone, self.alike and self.size(pupils[0]) > 1
        learn = partial(_round, length=len(most.learnt), alike=alike)
        for slowdown in range(MOST_SLOWDOWNS + 1):
            for one in again:
                one.rate = training.learning_rate / SLOWER**slowdown
            for one, module in zip(again, learn(again, training, "round", 0, from_start=True), strict=True):
                one.take(module)
            again = [one for one in again if not one.began]
        going = everyone
        for number in range(1, max(pupil.rounds for pupil in pupils)):
            going = [
                one
                for one in going
                if number < one.pupil.rounds and one.agreement < self.enough and (number == 1 or one.improved)
            ]
            for one, module in zip(going, learn(going, training, "round", number), strict=True):
                one.take(module)
        short = training.model_copy(update={"epochs": max(1, training.epochs // 5)})
        before = [one.module for one in everyone]
        judged = [one for one in everyone if len(one.asked)]
        for one in judged:
            one.learnt, one.rate = torch.arange(len(one.pupil.lesson.records)), one.rate / SLOWER
        longest = max([len(one.learnt) for one in judged], default=0)
        for one, module in zip(judged, _round(judged, short, "last", length=longest, alike=alike), strict=True):
            one.module = module
        return [
            Copy(one.module, earlier, one.loss, one.agreement, one.spent)
            for one, earlier in zip(everyone, before, strict=True)
        ]

    def better(self, known: Copy, other: Pupil) -> Copy:
        """The known copy, or the other one where that learns the answers it holds out better; `spent` is for both.

        The other one is tried where the known one misses one held-out label in ten, for one round, and goes on where
        its loss is then within a quarter of the known one's.
        """
        if not known.agreement < ENOUGH:
            return known
        rival = self.copy(replace(other, rounds=1, seed=derive(other.seed, "built-in")))
        total = replace(known.spent)
        total.add(rival.spent)
        if rival.loss < NEAR * known.loss and other.rounds > 1:
            further = Pupil(rival.before, other.lesson, derive(other.seed, "built-in", "more"), other.rounds - 1)
            rival = self.copy(further)
            total.add(rival.spent)
        return replace(rival if rival.loss < known.loss else known, spent=total)

    def _steps(self, queries: int) -> int:
        """Of a round."""
        learnt = queries - queries // HELD_OUT
        return at_least(self.training, self.least_steps, learnt).epochs * max(1, learnt // self.training.batch_size)


def _round(
    trained: Sequence[_Trained],
    training: Training,
    *labels: str | int,
    length: int,
    alike: bool,
    from_start: bool = False,
) -> list[nn.Module]:
    """What each becomes when it learns its queries, those of one learning rate side by side.

    Args:
        length: queries that an epoch goes through, those of the copy that has most.
        alike: as `Tutor` has it. A model alone is no stack, and its sums are rounded otherwise: another one of which
            nothing is kept stands beside it.
    """
    give_back(LARGE)  # what the round before held
    modules: dict[int, nn.Module] = {}
    for rate in dict.fromkeys(one.rate for one in trained):
        group = [one for one in trained if one.rate == rate]
        lessons = [one.pupil.lesson for one in group]
        firsts = [0, *accumulate(len(lesson.records) for lesson in lessons)]
        records, answers = lessons[0].records, lessons[0].answers
        if len(group) > 1:
            records = Records(*(torch.cat([getattr(one.records, name) for one in lessons]) for name in ("x", "y")))
            answers = torch.cat([lesson.answers for lesson in lessons])
        temperatures = torch.cat([answers.new_full((len(one.records),), one.temperature) for one in lessons])
        spent = Ledger()
        stack = [*zip(group, firsts, strict=False), *([(group[0], 0)] if alike and len(group) == 1 else [])]
        becoming = [copy.deepcopy(one.pupil.start if from_start else one.module) for one, _ in stack]
        train_group(
            becoming,
            records,
            [one.learnt + first for one, first in stack],
            [derive(one.pupil.seed, *labels) for one, _ in stack],
            at_rate(training, rate),
            match_answers(answers, temperatures, spent),
            length=length,
            alike=alike,
        )
        for one, module in zip(group, becoming, strict=False):
            one.spent.forwards += spent.forwards // len(stack)
            one.spent.backwards += spent.backwards // len(stack)
            modules[id(one)] = module
    return [modules[id(one)] for one in trained]


def match_answers(answers: Tensor, temperatures: Tensor, ledger: Ledger) -> Objective:
    """KL divergence from the answered to the copy's distribution, both softened (Hinton et al. 2015).

    It is scaled by temperature^2, as distillation is, and the copy's is computed from logits: an answer of probability
    1 is no trouble.

    Args:
        answers: float32 [n, classes], looked up by index as the temperatures [n] are.
        ledger: notes every pass.
    """

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        ledger.forwards += y.numel()
        ledger.backwards += y.numel()
        index = index.to(answers.device)
        temperature = temperatures[index]
        learnt = F.log_softmax(forward(x) / temperature.unsqueeze(-1), -1)
        return temperature**2 * F.kl_div(learnt, rows(answers, index), reduction="none").sum(-1)

    return objective


def at_rate(training: Training, rate: float) -> Training:
    return training.model_copy(update={"learning_rate": rate})


def in_memory(training: Training, module: nn.Module, records: Records) -> Training:
    """The same training in smaller batches where a large network would hold too much of them: `FEWEST` records, or as
    many as `targets.model.records_at_once` allows where that is more. It follows from the network and the shape alone.
    """
    if training.batch_size <= FEWEST:
        return training
    most = max(FEWEST, records_at_once(records.x[:1], frozen_copy(module)))
    return training.model_copy(update={"batch_size": min(training.batch_size, most)})


def at_least(training: Training, steps: int, records: int) -> Training:
    """The same training with as many epochs as it takes to make `steps` steps on so many records."""
    per_epoch = max(1, records // min(training.batch_size, records))
    return training.model_copy(update={"epochs": max(training.epochs, math.ceil(steps / per_epoch))})
