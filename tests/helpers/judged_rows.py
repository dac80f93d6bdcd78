"""Rows of an audit with invented figures, as policies judge them."""

from __future__ import annotations

import hashlib
from typing import Any

from crushproof.attacks.evasion.risk import EVASION
from crushproof.attacks.extraction.risk import EXTRACTION
from crushproof.attacks.membership.risk import MEMBERSHIP
from crushproof.audit.findings.assemble import known_metrics
from crushproof.audit.schema.file_rows import Footprint
from crushproof.audit.schema.rows import (
    Audit,
    Candidate,
    Change,
    DataSummary,
    Environment,
    Estimate,
    Finding,
    ThreatModel,
)
from crushproof.audit.verdict.judging import apply_policy
from crushproof.audit.verdict.policy import Policy

KNOWN = known_metrics(())


def change(difference: float, half: float = 0.01, baseline: float = 0.5) -> Change:
    return Change(
        baseline="dense",
        baseline_estimate=baseline,
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=None,
    )


def estimate(value: float, half: float = 0.04) -> Estimate:
    return Estimate(estimate=value, low=value - half, high=value + half, n=300)


def candidate(name: str, difference: float = 0.0, role: Any = "candidate") -> Candidate:
    return Candidate(
        name=name,
        role=role,
        technique="quantize",
        recipe=None,
        recipe_words="",
        parent=None if role == "dense" else "dense",
        verdict="not-gated",
        accuracy=estimate(0.95, 0.01),
        quality_change=None if role == "dense" else change(difference, 0.005, 0.95),
        footprint=Footprint(
            disk_bytes=1,
            payload_bytes=1,
            ratio=1,
            parameters=1,
            nonzero_parameters=1,
            macs=1,
            macs_by_width=[],
            entropy_bytes=1,
            energy_memory_share=0.5,
            energy_uj_modelled=1,
        ),
        certificate=None,
        digest=hashlib.sha256(name.encode()).hexdigest(),
    )


METRICS = {
    "robust_accuracy": ("evasion", "higher"),
    "tpr_at_1_percent_fpr": ("membership", "lower"),
    "auc": ("membership", "lower"),
    "fidelity": ("extraction", "lower"),
    "forget_auc": ("unlearning", "lower"),
    "epsilon_shown": ("privacy-claim", "lower"),
    "backdoors": ("backdoor", "lower"),
}


def finding(name: str, metric: str, difference: float = 0.0, half: float = 0.01, **fields: Any) -> Finding:
    risk, better = METRICS[metric]
    return Finding.model_validate(
        {
            "id": f"{name}/{metric}",
            "candidate": name,
            "risk": risk,
            "attack": "",
            "metric": metric,
            "better": better,
            "threat_model": ThreatModel(access="white-box", knowledge="", budget=""),
            "estimate": estimate(0.5),
            "changes": [change(difference, half)],
            "gateable": True,
            **fields,
        }
    )


def findings(name: str, **differences: float) -> list[Finding]:
    metrics = ("robust_accuracy", "tpr_at_1_percent_fpr", "auc")
    return [finding(name, metric, differences.get(metric, 0.0)) for metric in metrics]


def audit_of(rows: list[Candidate], found: list[Finding], policy: Policy, plan: dict[str, Any]) -> Audit:
    """A finished audit of these rows, all but dense models up for release."""
    release = [row.name for row in rows if row.role == "candidate"]
    judged = apply_policy(rows, found, policy, release, KNOWN)
    return Audit(
        name="test",
        verdict=judged.verdict,
        deciding=judged.deciding,
        plan=plan,
        plan_digest="0" * 64,
        seed=0,
        data=DataSummary(
            name="x", digest="0" * 64, shape=[4], classes=["0", "1"], members=9, non_members=9, evaluation=6, attacker=3
        ),
        candidates=judged.candidates,
        findings=judged.findings,
        risks={risk.name: risk for risk in (EVASION, MEMBERSHIP, EXTRACTION)},
        metrics=KNOWN,
        policy=judged.gates,
        policy_name=policy.name,
        policy_limits=policy.limits,
        release=release,
        not_measured=[],
        power=[],
        limits=[],
        environment=Environment(),
    )
