"""Accuracy under random noise: an attack with a risk, a figure and a chart of its own."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from crushproof.attacks.access import Access, Ledger
from crushproof.attacks.attack import Attack
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.measurement import Comparison, Measurement, Rate, ThreatModel
from crushproof.attacks.preparation import Ran, Results
from crushproof.attacks.risk import Chart, Metric, Risk
from crushproof.targets.seeds import generator

NOISY_ACCURACY = Metric(
    name="noisy_accuracy",
    title="Accuracy under noise",
    subject="accuracy under noise",
    unit="percent",
    better="higher",
    meaning="Share of records still classified correctly when Gaussian noise is added to the input.",
)
NOISE = Risk(
    name="noise",
    title="Random noise",
    question="Does a bad sensor break the model?",
    wants="Nothing: noise is chance. What an attacker finds is worse.",
    harm="Wrong answers in poor light, on old cameras and over bad lines.",
    advice=("Train on noisy inputs.", "Check the change against the parent: compression may cost more here."),
    reading="Each line shows the accuracy as the noise grows. Higher is better.",
    chart=Chart(x="standard deviation", curve="accuracy"),
    taxonomy={"NIST AI RMF": ("MEASURE 2.6",)},
)


class GaussianNoise(Attack):
    """Gaussian noise on every input (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    Evidence: `correct/<sigma>` bool [n], by standard deviation.
    """

    risk: ClassVar[Risk] = NOISE
    metrics: ClassVar[tuple[Metric, ...]] = (NOISY_ACCURACY,)

    kind: Literal["gaussian-noise"] = "gaussian-noise"
    sigma: float = Field(0.2, gt=0, description="standard deviation that the policy judges, in units of [0, 1] inputs")

    @property
    def sigmas(self) -> tuple[float, ...]:
        return (self.sigma / 2, self.sigma, 2 * self.sigma)

    def run(self, case: Case, *, seed: int) -> Evidence:
        x, arrays = case.evaluation.x, {}
        for sigma in self.sigmas:
            noise = torch.randn(x.shape, generator=generator(seed, "noise", repr(sigma))).to(x.device)
            answers = case.deployed.logits(case.bounds.clamp(x + sigma * case.bounds.scale * noise))
            arrays[f"correct/{sigma!r}"] = (answers.argmax(1) == case.evaluation.y).cpu().numpy()
        return Evidence(arrays, {}, ledger=Ledger(queries=len(self.sigmas) * len(x)))

    def measure(self, results: Results) -> list[Measurement]:
        model, name = results.model, f"correct/{self.sigma!r}"
        evidence, words = results.evidence(Ran(model.name)), "one draw of noise per record"
        if evidence is None:
            return [Measurement(NOISY_ACCURACY, words, None, reason=results.why(Ran(model.name)))]
        outcome = Rate(evidence.arrays[name])
        comparisons = [
            Comparison(other, outcome, Rate(theirs.arrays[name]), flags=tuple(sorted(results.flags(other))))
            for other in model.baselines
            if (theirs := results.evidence(Ran(other))) is not None
        ]
        return [
            Measurement(
                NOISY_ACCURACY,
                words,
                outcome,
                ThreatModel(Access.LABELS, "is chance and knows nothing", f"sigma {self.sigma:g}"),
                setting={"sigma": self.sigma},
                comparisons=tuple(comparisons),
                curves={"accuracy": [(one, Rate(evidence.arrays[f"correct/{one!r}"])) for one in self.sigmas]},
                flags=tuple(sorted(results.flags(model.name))),
            )
        ]
