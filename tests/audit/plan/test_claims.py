"""What a plan claims of a training: what makes no sense is refused, and it belongs to the user's own training alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crushproof.attacks.dp_audit.privacy_audit import PrivacyAudit
from crushproof.audit.plan.plan import Plan, parse_plan
from crushproof.audit.plan.presets import attacks_of
from crushproof.audit.subject.claims import claim_of
from crushproof.targets.data.digits import load_digits
from crushproof.targets.errors import InputError

PLAN = """data: {kind: digits}
model: {architecture: a:b, %s}
candidates: {int8: int8}
claims: {epsilon: 8, %s}
"""
OWN = "weights: w.safetensors"


@pytest.mark.parametrize(
    ("model", "claims", "told"),
    [
        ("parameters: {}", "delta: 1.0e-5", r"line 4.*private training of your own.*defense: dp-sgd"),
        (OWN, "delta: 2", "delta.*less than 1"),
        (OWN, "delta: 1.0e-5, step: my_step.py", "module:function"),
        (OWN, "delta: 1.0e-5, noise: 1", "noise"),
        (OWN, "steps: 3", "delta.*is missing"),
    ],
)
def test_each_mistake_is_named(model: str, claims: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_plan(PLAN % (model, claims))


def test_a_delta_that_allows_a_whole_record_is_refused() -> None:
    plan = parse_plan(PLAN % (OWN, "delta: 0.01"))
    with pytest.raises(InputError, match="publishing a whole record would be allowed"):
        claim_of(plan.claims, load_digits(), None)


def test_a_claim_brings_its_test_and_no_other_plan_has_it() -> None:
    def audited(attacks: Any, **said: bool) -> bool:
        return any(isinstance(one, PrivacyAudit) for one in attacks_of(attacks, load_digits(), **said))

    assert audited("quick", claimed=True)
    assert audited(["churn"], claimed=True)
    assert audited("thorough", promised=True)
    assert not audited("standard", promised=True)
    assert not audited("thorough")
    plan: Plan = parse_plan(PLAN % (OWN, "delta: 1.0e-5, steps: 3"))
    claim = claim_of(plan.claims, load_digits(), lambda gradients, draws: torch.zeros(8))
    assert claim is not None
    assert (claim.epsilon, claim.steps, claim.step is not None) == (8, 3, True)
