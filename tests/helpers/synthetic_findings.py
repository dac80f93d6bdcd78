"""Findings with invented figures, one per risk and model, shaped as the built-in plan's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from crushproof.audit.schema.quantity_rows import Fragile, Quantity, Transfer
from crushproof.audit.schema.rows import Change, Estimate, Finding, GroupEstimate, Part, Point, ThreatModel

EPSILONS = (0.03, 0.05, 0.1, 0.15)


class Model(NamedTuple):
    """What is known of a model: `tpr` is at 1 % FPR, `milliseconds` at batch 1."""

    key: str
    technique: str
    words: str
    parent: str | None
    defense: str | None
    accuracy: float
    robust: float
    tpr: float
    fidelity: float
    ratio: float
    milliseconds: float

    @property
    def auc(self) -> float:
        return 0.5 + self.tpr * 1.6


def rate(value: float, n: int) -> Estimate:
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return Estimate(estimate=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n)


def changed(baseline: str, base: float, value: float, half: float) -> Change:
    return Change(
        baseline=baseline,
        baseline_estimate=base,
        difference=value - base,
        low=value - base - half,
        high=value - base + half,
        p_value=0.21,
    )


def judged(change: Change | None, limit: float) -> str:
    """The verdict of a limit on a change; a positive limit bounds a rise."""
    if change is None:
        return "not-gated"
    sign = 1 if limit < 0 else -1
    low, high = sorted((sign * change.low, sign * change.high))
    return "pass" if low >= -abs(limit) else "fail" if high < -abs(limit) else "inconclusive"


class Named(NamedTuple):
    """A model by the name the audit gives it, beside what it is compared with."""

    name: str
    model: Model
    baseline_name: str
    baseline: Model | None

    @property
    def gated(self) -> bool:
        return self.model.technique != "dense"

    def change(self, figure: str, half: float) -> list[Change]:
        """The change of a figure against the baseline's; none where there is no baseline."""
        if self.baseline is None:
            return []
        return [changed(self.baseline_name, getattr(self.baseline, figure), getattr(self.model, figure), half)]


def described(model: Model, n: int) -> list[Quantity]:
    """The smallest epsilon that fools, norms, and similarity."""
    fooled = int(n * (model.accuracy - model.robust))
    beyond = model.robust > 0.6
    smallest = Quantity(
        name="Smallest epsilon that fools",
        statistic="median",
        value=None if beyond else 0.1,
        low=0.1 if beyond else 0.05,
        high=None if beyond else 0.1,
        above=0.15,
        n=n,
    )
    plain = [
        ("L-inf change", "median", 0.0981),
        ("L-inf change", "largest", 0.1),
        ("L2 change", "median", 0.55),
        ("L2 change", "largest", 0.7432),
        ("Changed values", "median", 52.5),
        ("Changed values", "largest", 64.0),
        ("SSIM", "mean", 0.9312),
        ("SSIM", "lowest", 0.712),
    ]
    return [smallest, *(Quantity(name=name, statistic=of, value=value, n=fooled) for name, of, value in plain)]


def transfers(name: str, models: dict[str, Model]) -> list[Transfer]:
    """By name all other models: those of one defense are fooled together, and by weak models few others are."""
    found = []
    for other, model in models.items():
        share = 0.97 if model.defense == models[name].defense else 0.31
        own = rate(round(share * models[name].accuracy, 3), 120)
        found += [] if other == name else [Transfer(model=other, **own.model_dump())]
    return found


def evasion(named: Named, classes: list[str], rng: np.random.Generator, count: int) -> Finding:
    model = named.model
    return Finding(
        id=f"{named.name}/evasion",
        candidate=named.name,
        risk="evasion",
        attack="Worst case per record over five attacks",
        metric="robust_accuracy",
        better="higher",
        setting={"norm": "linf", "epsilon": 0.1},
        threat_model=ThreatModel(
            access="white-box",
            knowledge="The attacker has the deployed file and the dense model it came from.",
            budget="L∞ up to eps 0.1; 100 steps; 500 queries",
        ),
        estimate=rate(model.robust, 300),
        changes=named.change("robust", 0.028),
        gateable=named.gated,
        gated=named.gated,
        verdict=judged(next(iter(named.change("robust", 0.028)), None), -0.05) if named.gated else "not-gated",
        flags=["twin-disagrees"] if model.key == "int2" else [],
        parts=[
            Part(
                name="pgd",
                estimate=model.robust + 0.01,
                low=model.robust - 0.04,
                high=model.robust + 0.06,
                flags=["black-box-wins"] if model.key == "int2" else [],
            ),
            Part(
                name="apgd",
                estimate=model.robust + 0.004,
                low=model.robust - 0.05,
                high=model.robust + 0.05,
                headline=True,
            ),
            Part(
                name="transfer",
                estimate=min(0.97, model.robust + 0.11),
                low=model.robust + 0.05,
                high=min(0.99, model.robust + 0.16),
            ),
            Part(
                name="square",
                estimate=min(0.97, model.robust + 0.19),
                low=model.robust + 0.13,
                high=min(0.99, model.robust + 0.24),
            ),
            Part(
                name="hopskipjump",
                estimate=None,
                skipped="not in this plan: the quick set leaves decision-based attacks out",
            ),
        ],
        curves={
            "worst case": [Point(x=0.0, estimate=model.accuracy)]
            + [
                Point(x=e, estimate=v, low=max(0, v - 0.05), high=min(1, v + 0.05))
                for e in EPSILONS
                for v in [model.accuracy * (model.robust / model.accuracy) ** ((e / 0.1) ** 1.6)]
            ],
            "square": [
                Point(x=e, estimate=min(1, model.accuracy * (model.robust / model.accuracy) ** ((e / 0.13) ** 1.6)))
                for e in EPSILONS
            ],
        },
        who_is_hit=[
            GroupEstimate(name=c, estimate=hit, low=max(0, hit - 0.17), high=min(1, hit + 0.17), n=30)
            for i, c in enumerate(classes)
            for hit in [round(float(np.clip(model.robust + rng.normal(0, 0.09) - 0.12 * (i == 8), 0, 1)), 3)]
        ],
        quantities=described(model, 300),
        fragile=Fragile(at=0.03, count=14, ids=[3, 17, 21, 40, 58, 77, 102, 230, 311, 400]),
        taxonomy={
            "NIST AI 100-2e2025": ["NISTAML.022", "NISTAML.025"],
            "MITRE ATLAS": ["AML.T0015", "AML.T0043"],
            "OWASP ML": ["ML01"],
            "NIST AI RMF": ["MEASURE 2.6", "MEASURE 2.7"],
        },
        queries=42_300,
        forwards=91_200,
        backwards=60_100,
        evidence=f"evidence/{count}.safetensors",
        evidence_digest="ab" * 32,
        reproduce=f"crushproof audit digits.yaml --only '{named.name}/evasion'",
    )


def membership(named: Named, count: int) -> list[Finding]:
    model = named.model
    fpr = np.geomspace(0.0025, 1, 200)
    power = np.log(model.tpr) / np.log(0.01)
    shadows = 16 if model.key in ("student", "prune80", "dense-dpsgd", "dense-advtrain") else 64
    common: dict[str, Any] = {
        "candidate": named.name,
        "risk": "membership",
        "better": "lower",
        "gateable": named.gated,
        "gated": named.gated,
        "attack": "Likelihood ratio (LiRA) with own shadows",
        "threat_model": ThreatModel(
            access="scores",
            knowledge="The attacker has half of the members and trains shadow models, compressed in the same way.",
            budget=f"{shadows} shadow models",
        ),
        "taxonomy": {
            "NIST AI 100-2e2025": ["NISTAML.033"],
            "MITRE ATLAS": ["AML.T0024.000"],
            "OWASP ML": ["ML04"],
            "NIST AI RMF": ["MEASURE 2.10"],
        },
        "queries": 1594,
        "forwards": 102_016,
        "evidence": f"evidence/m{count}.safetensors",
        "evidence_digest": "cd" * 32,
    }
    if model.key == "svd90":
        return [
            Finding(
                id=f"{named.name}/membership",
                metric="tpr_at_1_percent_fpr",
                estimate=None,
                verdict="not-measured",
                reason="The shadow replay of this recipe failed: a layer of rank 1.",
                **common,
            )
        ]
    moved, auc_moved = named.change("tpr", 0.021), named.change("auc", 0.018)
    return [
        Finding(
            id=f"{named.name}/membership",
            metric="tpr_at_1_percent_fpr",
            estimate=Estimate(estimate=model.tpr, low=max(0.004, model.tpr - 0.024), high=model.tpr + 0.028, n=797),
            changes=moved,
            verdict=judged(next(iter(moved), None), 0.05) if named.gated else "not-gated",
            flags=["few-shadows"] if shadows < 64 and model.key == "student" else [],
            notes=["The attacker knows the remaining members: they are in every shadow."],
            curves={"roc": [Point(x=float(f), estimate=float(f**power)) for f in fpr]},
            reproduce=f"crushproof audit digits.yaml --only '{named.name}/membership'",
            parts=[
                Part(
                    name=f"{a}, {k} shadows",
                    estimate=model.tpr * s,
                    low=max(0, model.tpr * s - 0.02),
                    high=model.tpr * s + 0.025,
                    headline=(a, k) == ("LiRA", "own"),
                )
                for a, k, s in [
                    ("LiRA", "own", 1),
                    ("LiRA", "dense", 0.8),
                    ("RMIA ratio", "own", 0.93),
                    ("RMIA ratio", "dense", 0.77),
                    ("LOSS", "no", 0.3),
                ]
            ],
            **common,
        ),
        Finding(
            id=f"{named.name}/membership/auc",
            metric="auc",
            estimate=Estimate(estimate=model.auc, low=model.auc - 0.027, high=model.auc + 0.027, n=1594),
            changes=auc_moved,
            verdict=judged(next(iter(auc_moved), None), 0.05) if named.gated else "not-gated",
            reproduce=f"crushproof audit digits.yaml --only '{named.name}/membership'",
            **common,
        ),
    ]


def extraction(named: Named) -> Finding:
    model = named.model
    return Finding(
        id=f"{named.name}/extraction",
        candidate=named.name,
        risk="extraction",
        attack="A surrogate trained from queries",
        metric="fidelity",
        better="lower",
        setting={"queries": 500},
        threat_model=ThreatModel(
            access="scores",
            knowledge="The attacker has unlabelled records of the same kind and knows the architecture.",
            budget="50, 150 and 500 queries",
        ),
        estimate=rate(model.fidelity, 540),
        changes=named.change("fidelity", 0.012),
        gateable=named.gated,
        verdict="not-gated",
        reason="the policy has no limit for it",
        parts=[
            Part(
                name="scores",
                estimate=model.fidelity,
                low=model.fidelity - 0.02,
                high=model.fidelity + 0.02,
                headline=True,
            ),
            Part(name="labels", estimate=model.fidelity - 0.03, low=model.fidelity - 0.05, high=model.fidelity - 0.01),
        ],
        curves={
            "scores": [
                Point(
                    x=q,
                    estimate=model.fidelity - d,
                    low=model.fidelity - d - 0.03,
                    high=min(1, model.fidelity - d + 0.03),
                )
                for q, d in ((50, 0.22), (150, 0.08), (500, 0))
            ],
            "labels": [Point(x=q, estimate=model.fidelity - d - 0.03) for q, d in ((50, 0.25), (150, 0.1), (500, 0))],
        },
        taxonomy={
            "NIST AI 100-2e2025": ["NISTAML.031"],
            "MITRE ATLAS": ["AML.T0024.002", "AML.T0005.001"],
            "OWASP ML": ["ML05"],
            "NIST AI RMF": ["MEASURE 2.7"],
        },
        queries=500,
        forwards=31_000,
        backwards=31_000,
        reproduce=f"crushproof audit digits.yaml --only '{named.name}/extraction'",
    )
