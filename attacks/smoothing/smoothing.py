"""Randomised smoothing of a deployed model: what a wrapper that adds noise could certify, and what compression left."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ...targets.data.data import Data
from ...targets.errors import NotApplicable
from ...targets.form import Form
from ..access import Ledger
from ..attack import ATTACKS, Attack
from ..case import Case, Evidence
from ..effort import Effort
from ..evasion.categories import not_pixels, seen_unfit, without_ball
from ..measurement import Measurement
from ..preparation import Audited, Basis, Results, Scope
from ..risk import Metric, Risk
from .measure import evidence_form, measure_smoothing
from .risk import CERTIFIED_ACCURACY, SMOOTHING
from .sampling import contradictions, sampled

Radius = Annotated[float, Field(ge=0, le=100)]


@ATTACKS.register
class Smoothing(Attack):
    """Certified accuracy of the model smoothed by Gaussian noise (Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918).

    Under noise of standard deviation `sigma` some draws choose the answer and others count how often the model gives
    it; from what that probability is at least, with confidence 1 - alpha for each record, follows an L2 radius within
    which the majority cannot change. A record counts as certified at a radius where its answer is right and its radius
    is at least that; where the majority is not sure, the wrapper abstains, which counts as a failure. It asks for
    labels only, and holds against any attacker; it says nothing of the file that is asked once, without noise.

    A model made from a dense one also gets the dense one's certificate, less what the two disagree on under the same
    noise (`bounds.carried_share`), which takes `compared` draws of it in place of all.

    Evidence arrays, for the first `records` evaluation records, r of them: `ids` int64 [r]; `clean_correct` bool
    [r], without noise; `top` int64 [r], the answer; `hits` int64 [r], how many of the counting draws gave it; `first`
    int32 [r, compared], the labels at the first of these draws. Summary: `sigma`, `chosen_by`, `samples`, `compared`,
    `seed` (of the noise).
    """

    risk: ClassVar[Risk] = SMOOTHING
    metrics: ClassVar[tuple[Metric, ...]] = (CERTIFIED_ACCURACY,)

    kind: Literal["smoothing"] = "smoothing"
    sigma: float = Field(0.25, gt=0, le=10, description="standard deviation of the noise, in [0, 1] units")
    chosen_by: int = Field(100, ge=1, le=10_000, description="draws that choose a record's answer (the paper's n0)")
    samples: int = Field(2000, ge=10, le=1_000_000, description="draws that count how often it comes (the paper's n)")
    compared: int = Field(
        200, ge=1, le=1_000_000, description="of these, draws by which a candidate takes over the dense certificate"
    )
    alpha: float = Field(0.001, gt=0, lt=0.5, description="how probable a certificate may be wrong, for each record")
    radius: Radius | None = Field(None, description="L2, of the headline, in [0, 1] units; default: sigma")
    radii: tuple[Radius, ...] | None = Field(
        None, min_length=1, max_length=50, description="L2, of the curve; default: 0, .5, 1, 1.5 and 2 times sigma"
    )
    records: int = Field(100, ge=1, le=10_000_000, description="evaluation records, at most")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.compared > self.samples:
            raise ValueError("compared are some of the samples: give at most as many")
        return self

    @property
    def headline(self) -> float:
        return self.sigma if self.radius is None else self.radius

    @property
    def curve(self) -> tuple[float, ...]:
        """Ascending, the headline's radius among them."""
        given = self.radii or tuple(share * self.sigma for share in (0.0, 0.5, 1.0, 1.5, 2.0))
        return tuple(sorted({*given, self.headline}))

    @property
    def effort(self) -> Effort:
        return Effort(answers=self.records * (1 + self.chosen_by + self.samples))

    def unfit(self, scope: Scope) -> str | None:
        return seen_unfit(scope)

    def usual(self, data: Data) -> bool:
        return not without_ball(data)

    def form(self, model: Audited, scope: Scope) -> Form:
        return evidence_form(self._settings(), min(self.records, len(scope.data.evaluation_ids)), scope)

    def _settings(self) -> dict[str, float]:
        return {
            "sigma": self.sigma,
            "chosen_by": self.chosen_by,
            "samples": self.samples,
            "compared": self.compared,
        }

    def run(self, case: Case, *, seed: int) -> Evidence:
        reason = not_pixels(case)
        if reason is not None:
            raise NotApplicable(reason)
        count, ledger = min(self.records, len(case.evaluation)), Ledger()
        arrays = sampled(case, count, self.sigma, self.chosen_by, self.samples, self.compared, seed=seed, ledger=ledger)
        ids = np.asarray(case.ids[:count], np.int64)
        return Evidence({"ids": ids, **arrays}, {**self._settings(), "seed": seed}, ledger=ledger)

    def measure(self, results: Results) -> list[Measurement]:
        return measure_smoothing(results, self.curve, self.headline, self.alpha, self._settings())

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        return contradictions(evidence.arrays, case, evidence.summary["sigma"], evidence.summary["seed"])

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        right = evidence.arrays["clean_correct"]
        if basis.contradicted(evidence.arrays["ids"], right, right):
            return ["the records that the model classifies right are others"]
        return []

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Certified accuracy under smoothing is of a wrapper that asks the model many times under noise and takes "
            "the majority: it is no bound for the file asked once. Only a candidate of `randomized-smoothing` is "
            "served so."
        ]
