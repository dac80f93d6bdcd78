"""The row of a claimed epsilon: a false claim fails under any policy, a true one is not refuted and not confirmed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from judged_rows import KNOWN, candidate, finding, findings
from torch import Tensor

from crushproof.attacks.dp_audit.bounds import gaussian_epsilon
from crushproof.attacks.dp_audit.privacy_audit import PrivacyAudit
from crushproof.attacks.measurement import Measurement
from crushproof.audit.findings.estimates import estimate
from crushproof.audit.verdict.judging import apply_policy
from crushproof.audit.verdict.policy import BUILT_IN, Policy
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.targets.errors import NotApplicable
from crushproof.training.privacy import PrivacyClaim

QUICK = PrivacyAudit(calls=1000)  # stacked: a million of one world each
NOISE = 1.2  # epsilon 2.92 at delta 1e-5 and a sampling rate of 1


def private(gradients: Tensor, draws: torch.Generator) -> Tensor:
    total = (gradients / gradients.norm(dim=-1, keepdim=True).clamp_min(1)).sum(-2)
    return total + NOISE * torch.randn(total.shape, generator=draws)


def forgets_noise(gradients: Tensor, draws: torch.Generator) -> Tensor:
    return (gradients / gradients.norm(dim=-1, keepdim=True).clamp_min(1)).sum(-2)


def measured(claim: PrivacyClaim, *, void: str | None = None) -> Measurement:
    case: Any = SimpleNamespace(prepared=claim)
    evidence = QUICK.run(case, seed=0)
    QUICK.form(case, case).document.model_validate(evidence.summary)  # type: ignore[union-attr]  # it has one
    parent = SimpleNamespace(name="dense", promise=["a claim"])
    model = SimpleNamespace(name="int8", parent=parent, void=void)
    results: Any = SimpleNamespace(model=model, scope=None, evidence=lambda _: evidence, flags=lambda _: set())
    (found,) = QUICK.measure(results)
    return found


@pytest.mark.parametrize(("step", "refuted"), [(private, False), (forgets_noise, True)])
def test_a_false_claim_fails_under_any_policy_and_a_true_one_is_not_confirmed(step: Any, refuted: bool) -> None:
    found = measured(PrivacyClaim(3.5, 1e-5, step=step, stacked=True))
    assert found.outcome is not None
    row = finding("a", "epsilon_shown", estimate=estimate(found.outcome), changes=[])
    assert row.estimate is not None
    assert (row.estimate.low > 1) == refuted
    for policy in BUILT_IN.values():
        judged = apply_policy([candidate("a")], [row, *findings("a")], policy, ["a"], KNOWN)
        assert judged.verdict == ("fail" if refuted else "pass")
    asked = Policy(absolutes={"epsilon_shown": 0.99})
    judged = apply_policy([candidate("a")], [row], asked, ["a"], KNOWN)
    assert judged.verdict == ("fail" if refuted else "inconclusive"), "a lower bound keeps no limit"
    assert ("is false" in found.notes[0]) == refuted
    assert ("nor does it show that the claim is true" in found.notes[0]) == (not refuted)


def test_more_steps_than_calls_are_audited_in_part() -> None:
    found = measured(PrivacyClaim(40.0, 1e-5, NOISE, 1.0, 50, private))
    assert found.notes[0].startswith("Epsilon of 3 of 50 steps is at least")
    assert f"claimed is {gaussian_epsilon(3**0.5 / NOISE, 1e-5):.2f}" in found.notes[0], (
        "what the noise gives for three"
    )


def test_what_cannot_be_tested_is_said() -> None:
    case: Any = SimpleNamespace(prepared=PrivacyClaim(8, 1e-5))
    with pytest.raises(NotApplicable, match="names no step"):
        QUICK.run(case, seed=0)
    case.prepared = PrivacyClaim(8, 1e-5, steps=50, step=private)
    with pytest.raises(NotApplicable, match=r"say claims\.noise_multiplier"):
        QUICK.run(case, seed=0)
    void = measured(PrivacyClaim(8, 1e-5, step=private, stacked=True), void="Epsilon: void. It looked.")
    assert (void.outcome, void.reason) == (None, "Epsilon: void. It looked.")


def test_dp_sgd_brings_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DpSgd, "noise", lambda *_: 2.0)  # an accountant takes seconds
    claim = DpSgd(epsilon=8, epochs=2, batch_size=50).privacy(100)
    assert claim.step is not None
    assert (claim.sampling_rate, claim.steps, claim.epsilon) == (0.5, 4, 8)
    gradient = claim.step(torch.zeros(8, 8), torch.Generator().manual_seed(0))
    assert float(gradient.norm()) == pytest.approx(2 * 8**0.5 / 4, rel=0.5), "noise over the expected batch"
