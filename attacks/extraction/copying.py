"""How a copy is trained from answers: for as long as it gets better on answers that it does not learn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.data.records import Records
from ...targets.form import MisfitError
from ...targets.model import TorchTarget, frozen_copy, records_at_once
from ...targets.seeds import derive
from ...targets.steps import Arrays, pulse
from ...training.loop import Forward, Objective, Training, train
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
class Copy:
    """What training gave.

    Args:
        module: the copy, in evaluation mode.
        before: the same before it learnt the held-out queries: what a copy from more queries goes on from.
        loss: on the held-out queries, the mean; NaN where none were.
        agreement: share of the held-out queries on which it gives the answer's label; NaN where none were.
    """

    module: nn.Module
    before: nn.Module
    loss: float = math.nan
    agreement: float = math.nan


@dataclass(frozen=True)
class Lesson:
    """What a copy is trained on.

    Args:
        records: the queries, with the answers' labels.
        answers: the distributions answered, float32 [n, classes], softened by the temperature.
        objective: of indices into `records`, as `training.loop.Objective` is.
    """

    records: Records
    answers: Tensor
    objective: Objective
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
class Tutor:
    """How copies are trained.

    Args:
        training: its epochs, with at least `least_steps` steps, are one round, of which there are at most `rounds`.
        ledger: notes every pass.
    """

    training: Training
    least_steps: int
    rounds: int
    ledger: Ledger

    def copy(self, start: nn.Module, lesson: Lesson, seed: int) -> Copy:
        """Trains a copy that starts from `start` (left as it is), in rounds while these bring something.

        They end where a round lowers the held-out loss by less than a tenth, or 95 % of the held-out labels are right.

        A first round after which neither that loss nor the labels are better than one and the same answer to everything
        (it diverged, or has not begun to learn) is repeated from the start at a quarter of the learning rate, twice at
        most. The last, short round takes the held-out queries, too. Fewer than 15 queries are all learnt, in one round.
        """
        index = torch.arange(len(lesson.records))
        training = in_memory(self.training, start, lesson.records)
        if len(index) < 3 * HELD_OUT:
            only = self._round(start, lesson, index, at_least(training, self.least_steps, len(index)), seed)
            return Copy(only, only)
        held = index % HELD_OUT == HELD_OUT - 1
        learnt, asked = index[~held], index[held]
        training = at_least(training, self.least_steps, len(learnt))
        rate, best, module, agreement = training.learning_rate, math.inf, start, 0.0
        for slowdown in range(MOST_SLOWDOWNS + 1):
            rate = training.learning_rate / SLOWER**slowdown
            tried = self._round(start, lesson, learnt, at_rate(training, rate), derive(seed, "round", 0))
            loss = self._loss(tried, lesson, asked)
            if loss < best:
                best, module = loss, tried
            agreement = _agreement(module, lesson, asked)
            if loss < lesson.always_the_same(learnt, asked) or agreement > lesson.commonest(asked):
                break
        for number in range(1, self.rounds):
            if agreement >= ALIKE:
                break
            tried = self._round(module, lesson, learnt, at_rate(training, rate), derive(seed, "round", number))
            loss, before = self._loss(tried, lesson, asked), best
            if loss < best:
                best, module = loss, tried
                agreement = _agreement(module, lesson, asked)
            if not loss < BETTER * before:
                break
        last = training.model_copy(update={"epochs": max(1, training.epochs // 5), "learning_rate": rate / SLOWER})
        return Copy(self._round(module, lesson, index, last, derive(seed, "last")), module, best, agreement)

    def better(self, known: Copy, other: nn.Module, lesson: Lesson, seed: int) -> Copy:
        """The known copy, or one that starts from `other` where that learns the answers it holds out better.

        The other one is tried where the known one misses one held-out label in ten, for one round, and goes on where
        its loss is then within a quarter of the known one's.
        """
        if not known.agreement < ENOUGH:
            return known
        rival = replace(self, rounds=1).copy(other, lesson, derive(seed, "built-in"))
        if rival.loss < NEAR * known.loss and self.rounds > 1:
            rival = replace(self, rounds=self.rounds - 1).copy(rival.before, lesson, derive(seed, "built-in", "more"))
        return rival if rival.loss < known.loss else known

    def _round(self, module: nn.Module, lesson: Lesson, index: Tensor, training: Training, seed: int) -> nn.Module:
        """The module trained on the queries at `index`."""
        steps = training.epochs * max(1, len(index) // training.batch_size)
        done = 0

        def objective(
            forward: Forward, x: Tensor, y: Tensor, chosen: Tensor, generators: Sequence[torch.Generator]
        ) -> Tensor:
            nonlocal done
            done += 1
            pulse("training step", min(done, steps), steps)
            self.ledger.forwards += y.numel()
            self.ledger.backwards += y.numel()
            return lesson.objective(forward, x, y, index.to(chosen.device)[chosen], generators)

        return train(module, lesson.records.take(index), training, seed=seed, objective=objective)

    def _loss(self, module: nn.Module, lesson: Lesson, index: Tensor) -> float:
        self.ledger.forwards += len(index)
        return lesson.loss(TorchTarget(module).logits(lesson.records.x[index]), index)


def _agreement(module: nn.Module, lesson: Lesson, index: Tensor) -> float:
    labels = TorchTarget(module).logits(lesson.records.x[index]).argmax(1)
    return float((labels == lesson.records.y[index]).double().mean())


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


def with_state(module: nn.Module, arrays: Arrays, prefix: str) -> nn.Module:
    """A copy of the module with the weights stored under `prefix`, to be asked or trained."""
    module = copy.deepcopy(module)
    state = {name: torch.from_numpy(np.array(arrays[f"{prefix}/{name}"])) for name in module.state_dict()}
    module.load_state_dict(state)
    return module.eval()


def check_copy(start: nn.Module, rival: nn.Module | None, kept: Arrays) -> None:
    """Raises MisfitError unless these are weights of the module started from, or of its rival, and of the next one."""
    try:
        with_state(rival if kept["built-in"].item() else start, kept, "copy")  # type: ignore[arg-type]  # None fails too
        with_state(start, kept, "before")
    except Exception as error:
        raise MisfitError(str(error)) from error
