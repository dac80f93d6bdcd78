"""A claimed epsilon put to the test: what the private training step shows to be spent of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...targets.errors import NotApplicable
from ...targets.form import Amount, Arrays, Document, Form, require
from ...targets.steps import pulse
from ...training.privacy import PrivacyClaim, PrivateStep
from ..access import Access, Flag
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import AtLeast, Measurement, ThreatModel
from ..preparation import Audited, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .bounds import MOST
from .claim import claimed_epsilon
from .risk import EPSILON_SHOWN, PRIVACY_CLAIM
from .worlds import audit_dp

FEWEST_WORLDS, MOST_WORLDS, PILOT = 100, 4000, 2.75  # of either kind; steps taken for each world, the pilot's included
CONFIDENCE = 0.999
NOTHING = "no epsilon is claimed of its training"
STACKED = 1000  # times as fast a step is that takes many worlds at once


class Summary(Document):
    """`Evidence.summary`: what `claim.DpAudit` says of `steps` steps, and `promised`, the epsilon of all `of_steps`."""

    epsilon_low: Amount
    bounds: dict[str, Amount]
    claimed: Annotated[float, Field(gt=0)]
    promised: Annotated[float, Field(gt=0)]
    of_steps: Annotated[int, Field(ge=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    told: Annotated[int, Field(ge=0)]
    pairs: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    access: str


@ATTACKS.register
class PrivacyAudit(Attack):
    """The training step behind a claimed epsilon, audited by thousands of tiny worlds (Nasr et al. 2023,
    arXiv:2302.07956): a lower bound on the true epsilon beside the claim, of DP-SGD here or of a plan's `claims`.

    A candidate has the bound of the model it came from, because compression that looks at no training record changes
    nothing of it; one whose compression did has nothing left to test. Trainings of many steps are audited for as many
    as `calls` allow, against what the accountant gives for those.

    Evidence: no arrays; the summary is `Summary`.
    """

    kind: Literal["dp-audit"] = "dp-audit"
    risk: ClassVar[Risk] = PRIVACY_CLAIM
    metrics: ClassVar[tuple[Metric, ...]] = (EPSILON_SHOWN,)
    access: ClassVar[Access] = Access.WHITE_BOX
    of_claims: ClassVar[bool] = True

    calls: int = Field(
        40_000,
        ge=1_000,
        le=10**8,
        description="steps that are taken at most; of stacked steps as many a thousand times",
    )

    def unfit(self, scope: Scope) -> str | None:
        promised = any(model.parent is not None and model.parent.promise for model in scope.models.values())
        return None if promised and scope.data.members is not None else NOTHING

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if not model.is_dense or model.parent is None or not model.parent.promise or scope.data.members is None:
            return ()
        # a step takes about 0.4 ms, a stacked one for a thousand worlds 1 ms
        effort = Effort(seconds=3.0 + 4e-4 * self.calls)
        return (Run(prepare=partial(_promise, model.name), identity=model.parent.promise, effort=effort),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        return () if model.parent is None else (Ran(model.parent.name),)

    def form(self, model: Audited, scope: Scope) -> Form:
        return Form(Summary, {}, holds=_holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        claim = case.prepared
        if not isinstance(claim, PrivacyClaim):
            raise NotApplicable(NOTHING)
        if claim.step is None:
            raise NotApplicable(
                "the plan names no step of the private training (claims.step), and only it can be tested"
            )
        calls = self.calls * (STACKED if claim.stacked else 1)
        steps = min(claim.steps, max(1, int(calls / (PILOT * FEWEST_WORLDS))))
        epsilon = claim.epsilon
        if steps < claim.steps:
            if claim.noise_multiplier is None:
                raise NotApplicable(
                    f"{claim.steps:,} steps are more than {self.calls:,} calls can audit: say claims.noise_multiplier, "
                    "from which the epsilon of fewer follows, or allow more calls"
                )
            epsilon = claimed_epsilon(None, claim.noise_multiplier, claim.delta, claim.sampling_rate, steps)
        found = audit_dp(
            _counted(claim.step),
            epsilon=epsilon,
            noise_multiplier=claim.noise_multiplier,
            delta=claim.delta,
            sampling_rate=claim.sampling_rate,
            steps=steps,
            worlds=min(MOST_WORLDS, max(FEWEST_WORLDS, int(calls / (PILOT * steps)))),
            confidence=CONFIDENCE,
            stacked=claim.stacked,
            seed=seed,
        )
        summary = {
            "epsilon_low": found.epsilon_low,
            "bounds": found.bounds,
            "claimed": found.claimed,
            "promised": claim.epsilon,
            "of_steps": claim.steps,
            "delta": found.delta,
            "confidence": found.confidence,
            "told": found.told,
            "pairs": found.pairs,
            "steps": steps,
            "access": found.access,
        }
        return Evidence({}, summary)

    def measure(self, results: Results) -> list[Measurement]:
        model = results.model
        if model.parent is None or not model.parent.promise:
            return [Measurement(EPSILON_SHOWN, "claimed epsilon", None, reason=f"not applicable: {NOTHING}")]
        if model.void is not None:
            return [Measurement(EPSILON_SHOWN, "claimed epsilon", None, reason=model.void)]
        evidence = results.evidence(Ran(model.parent.name))
        if evidence is None:
            why = results.why(Ran(model.parent.name))
            return [Measurement(EPSILON_SHOWN, "claimed epsilon", None, reason=why)]
        found = evidence.summary
        part = f" of {found['steps']} of {found['of_steps']} steps" if found["steps"] < found["of_steps"] else ""
        bound = (
            f"Epsilon{part} is at least {found['epsilon_low']:.2f} at delta {found['delta']:.1g} (confidence "
            f"{100 * found['confidence']:.1f} %, {found['told']} of {found['pairs']} pairs of worlds told apart, where "
            f"guessing tells half); claimed is {found['claimed']:.2f}. "
        )
        refuted = found["epsilon_low"] > found["claimed"]
        bound += (
            "The claim is false for this step."
            if refuted
            else "That does not refute the claim, nor does it show that the claim is true."
        )
        flags = {Flag.FEW_RECORDS.value} if found["pairs"] < 10 * FEWEST_WORLDS and not refuted else set()
        return [
            Measurement(
                EPSILON_SHOWN,
                "the private step, with and without one record",
                AtLeast(found["epsilon_low"] / found["claimed"], MOST / found["claimed"], found["pairs"]),
                ThreatModel(Access.WHITE_BOX, "sees every private gradient and chooses all records", found["access"]),
                setting={"claimed epsilon": round(found["promised"], 4), "delta": found["delta"]},
                notes=(bound,),
                flags=tuple(sorted(flags | results.flags(model.name))),
            )
        ]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "A claimed epsilon that is not refuted is not confirmed: the bound is of the step that was named, by one "
            "way of telling worlds apart, and says nothing of how data were chosen or hyper-parameters tuned."
        ]


def _promise(model: str, inputs: Inputs) -> PrivacyClaim | None:
    parent, members = inputs.scope.models[model].parent, inputs.scope.data.members
    return None if parent is None or members is None else parent.privacy(len(members))


def _counted(step: PrivateStep) -> PrivateStep:
    """The same step, which says how often it was taken."""
    taken = 0

    def counted(gradients: Tensor, draws: torch.Generator) -> Tensor:
        nonlocal taken
        taken += 1
        pulse("private step", taken, taken)
        return step(gradients, draws)

    return counted


def _holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    require(found.told <= found.pairs, "more pairs are told apart than there are")
    require(found.epsilon_low == max(found.bounds.values(), default=-1.0), "the bound is not the largest of its bounds")
    require(found.steps <= found.of_steps, "more steps were audited than there are")
