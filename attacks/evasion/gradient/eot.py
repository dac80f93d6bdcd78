"""Expectation over transformation (Athalye et al. 2018, arXiv:1707.07397 and 1802.00420): a model that draws lots."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ....targets.model import Target, TorchTarget
from ....targets.seeds import global_seed
from ....targets.steadiness import variation
from ....targets.twin.logits import logits_of
from ...case import Case
from ...effort import Effort
from ..engine import PERTURBERS, Search
from .pgd import GradientPerturber, Pgd


@PERTURBERS.register
class Eot(GradientPerturber):
    """PGD against a model that answers at random: gradients of the mean over draws (EOT, Athalye et al. 2018).

    A record counts as fooled when the deployed model answers so more often than its class, of several answers: a single
    lucky one is no success. It runs only where the module is found to vary (`targets.steadiness`). What is drawn for a
    record follows from the seed and from the records it is passed with: the lots are the model's own.
    """

    kind: Literal["eot"] = "eot"
    together: ClassVar[int] = 10  # draws that a gradient holds at a time
    draws: PositiveInt = Field(20, le=1000, description="passes of the module whose mean is differentiated")
    answers: PositiveInt = Field(11, le=1000, description="of the deployed model to one input, whose majority decides")

    @property
    def effort(self) -> Effort:
        return Effort(answers=self.answers, gradients=self.steps * self.restarts * self.draws)

    def why_not(self, case: Case) -> str | None:
        reason, module = super().why_not(case), self.module(case)
        if reason is None and module is not None and variation(TorchTarget(module), _some(case.evaluation.x)) is None:
            reason = "the module answers the same each time: there is nothing to take the mean of"
        return reason

    def asked(self, case: Case) -> Target:
        return Majority(case.deployed, self.answers)

    def perturb(self, search: Search, case: Case) -> None:
        module, ledger = self.module(case), search.ledger
        assert module is not None  # why_not came first
        pgd = Pgd(steps=self.steps, restarts=self.restarts, loss=self.loss, gradients=self.gradients)
        mean = Expectation(module, self.draws)
        forwards, backwards, queries = ledger.forwards, ledger.backwards, ledger.queries
        with global_seed(search.seed, "lots"):
            pgd.perturb(search, replace(case, twin=mean, native=mean))
            search.close()  # here, where its answers are counted
        ledger.forwards += (self.draws - 1) * (ledger.forwards - forwards)
        ledger.backwards += (self.draws - 1) * (ledger.backwards - backwards)
        ledger.queries += (self.answers - 1) * (ledger.queries - queries)


class Expectation(nn.Module):
    """The mean of a module's logits over several passes: float32 [n, classes] of x float32 [n, *shape]."""

    def __init__(self, module: nn.Module, draws: int) -> None:
        super().__init__()
        self.module, self.draws = module, draws

    def forward(self, x: Tensor) -> Tensor:
        total = logits_of(self.module, x)
        for _ in range(self.draws - 1):
            total = total + logits_of(self.module, x)
        return total / self.draws


class Majority:
    """A target that answers with how often another one answers each class; ties go by its mean probabilities."""

    def __init__(self, target: Target, answers: int) -> None:
        self._target, self._answers = target, answers
        self.queries = 0

    def logits(self, x: Tensor) -> Tensor:
        """float32 [n, classes]: votes, and a half of the mean probability."""
        self.queries += len(x)
        votes = torch.zeros(())
        for _ in range(self._answers):
            logits = self._target.logits(x)
            one = F.one_hot(logits.argmax(1), logits.shape[1]).float()
            votes = votes.to(one.device) + one + logits.softmax(1) / (2 * self._answers)
        return votes


def _some(x: Tensor) -> Tensor:
    """At least two records, which `variation` asks for."""
    return x if len(x) > 1 else x.repeat(2, *[1] * (x.dim() - 1))
