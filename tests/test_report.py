"""The report: every finding is in it, hostile names are text, the same audit gives the same bytes, a browser agrees."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crushproof.audit import charts, defense_views, dot_charts, footprint_views, views, words
from crushproof.audit.findings import (
    Audit,
    Candidate,
    Certificate,
    Change,
    DataSummary,
    Environment,
    Estimate,
    Finding,
    Footprint,
    Gate,
    Latency,
    Macs,
    NotMeasured,
    Part,
    Point,
    ThreatModel,
)
from crushproof.audit.report import render, to_html

SCRIPT = "</script><script>alert(1)</script>"
HOSTILE = [
    SCRIPT,
    "nul\0byte",
    "\x1b[31mred\x1b[0m",
    r"$\frac{1}$",
    "_hidden",
    "\u202egnp.exe",
    "a" * 500,
    "   ",
    "<b>&amp;",
]

# name, technique, words, parent, defense, accuracy, robust accuracy, TPR, fidelity, ratio, milliseconds at batch 1
MODELS: list[tuple[str, str, str, str | None, str | None, float, float, float, float, float, float]] = [
    ("dense", "dense", "residual CNN, 10,218 parameters", None, None, 0.981, 0.497, 0.068, 0.941, 1.0, 0.081),
    (
        "dense-advtrain",
        "dense",
        "trained on PGD-4",
        None,
        "adversarial-training",
        0.970,
        0.741,
        0.081,
        0.934,
        1.0,
        0.080,
    ),
    ("dense-dpsgd", "dense", "trained by DP-SGD", None, "dp-sgd", 0.921, 0.385, 0.014, 0.915, 1.0, 0.084),
    (
        "prune50",
        "prune",
        "50 % of the weights, by global magnitude",
        "dense",
        None,
        0.979,
        0.489,
        0.066,
        0.940,
        2.1,
        0.082,
    ),
    (
        "prune80",
        "prune",
        "80 % of the weights, then 5 epochs of fine-tuning",
        "dense",
        None,
        0.973,
        0.452,
        0.073,
        0.936,
        4.6,
        0.082,
    ),
    ("channels50", "prune", "half of the channels", "dense", None, 0.958, 0.371, 0.062, 0.930, 3.2, 0.049),
    ("int8", "quantize", "8-bit weights and activations", "dense", None, 0.980, 0.493, 0.068, 0.941, 3.9, 0.052),
    ("int4", "quantize", "4-bit weights", "dense", None, 0.976, 0.480, 0.064, 0.938, 7.6, 0.080),
    ("int2", "quantize", "2-bit weights", "dense", None, 0.884, 0.214, 0.031, 0.861, 14.1, 0.081),
    ("student", "distill", "half the width, temperature 4", "dense", None, 0.968, 0.327, 0.059, 0.931, 3.6, 0.044),
    ("svd90", "factorize", "90 % of the energy kept", "dense", None, 0.977, 0.476, 0.067, 0.939, 1.9, 0.093),
    ("shared16", "share", "16 shared values a layer", "dense", None, 0.978, 0.484, 0.066, 0.939, 7.2, 0.081),
    ("prune80-int8", "chain", "80 % pruned, then 8-bit", "dense", None, 0.972, 0.449, 0.072, 0.935, 11.8, 0.053),
    (
        "int4-stochastic",
        "quantize",
        "4-bit weights, stochastic rounding",
        "dense",
        "stochastic-rounding",
        0.966,
        0.461,
        0.060,
        0.933,
        7.6,
        0.080,
    ),
    (
        "int8-advtrain",
        "quantize",
        "8-bit weights and activations",
        "dense-advtrain",
        "adversarial-training",
        0.969,
        0.738,
        0.081,
        0.934,
        3.9,
        0.052,
    ),
    (
        "student-advtrain",
        "distill",
        "half the width, temperature 4",
        "dense-advtrain",
        "adversarial-training",
        0.955,
        0.716,
        0.069,
        0.929,
        3.6,
        0.044,
    ),
    ("int8-dpsgd", "quantize", "8-bit weights", "dense-dpsgd", "dp-sgd", 0.920, 0.381, 0.014, 0.914, 3.9, 0.083),
]
EPSILONS = (0.03, 0.05, 0.1, 0.15)


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


def synthetic_audit(renamed: dict[str, str] | None = None, classes: list[str] | None = None) -> Audit:
    """An audit as the built-in plan makes one: 3 dense models, 14 candidates, three risks each; figures invented."""
    naming = renamed or {}
    rows = {row[0]: row for row in MODELS}
    candidates, findings, gates = [], [], []
    rng = np.random.default_rng(7)
    classes = classes or [str(i) for i in range(10)]
    for row in MODELS:
        key, technique, text, parent_key, defense, accuracy, robust, tpr, fidelity, ratio, _ = row
        name, parent = naming.get(key, key), naming.get(parent_key or "", parent_key)
        baseline_key = parent_key or ("dense" if defense else None)
        base = rows[baseline_key] if baseline_key else None
        base_name = naming.get(baseline_key or "", baseline_key) or ""

        def versus(
            column: int, value: float, half: float, base: Any = base, base_name: str = base_name
        ) -> list[Change]:
            return [changed(base_name, base[column], value, half)] if base else []

        role = "dense" if technique == "dense" else "candidate"
        gated = role == "candidate"
        evasion = Finding(
            id=f"{name}/evasion",
            candidate=name,
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
            estimate=rate(robust, 300),
            changes=versus(6, robust, 0.028),
            gateable=gated,
            gated=gated,
            verdict=judged(next(iter(versus(6, robust, 0.028)), None), -0.05) if gated else "not-gated",
            flags=["twin-disagrees"] if key == "int2" else [],
            parts=[
                Part(
                    name="pgd",
                    estimate=robust + 0.01,
                    low=robust - 0.04,
                    high=robust + 0.06,
                    flags=["black-box-wins"] if key == "int2" else [],
                ),
                Part(name="apgd", estimate=robust + 0.004, low=robust - 0.05, high=robust + 0.05, headline=True),
                Part(
                    name="transfer", estimate=min(0.97, robust + 0.11), low=robust + 0.05, high=min(0.99, robust + 0.16)
                ),
                Part(
                    name="square", estimate=min(0.97, robust + 0.19), low=robust + 0.13, high=min(0.99, robust + 0.24)
                ),
                Part(
                    name="hopskipjump",
                    estimate=None,
                    skipped="not in this plan: the quick set leaves decision-based attacks out",
                ),
            ],
            curves={
                "worst case": [Point(x=0.0, estimate=accuracy)]
                + [
                    Point(x=e, estimate=v, low=max(0, v - 0.05), high=min(1, v + 0.05))
                    for e in EPSILONS
                    for v in [accuracy * (robust / accuracy) ** ((e / 0.1) ** 1.6)]
                ],
                "square": [
                    Point(x=e, estimate=min(1, accuracy * (robust / accuracy) ** ((e / 0.13) ** 1.6))) for e in EPSILONS
                ],
            },
            who_is_hit=[
                {
                    "name": c,
                    "estimate": round(float(np.clip(robust + rng.normal(0, 0.09) - 0.12 * (i == 8), 0, 1)), 3),
                    "n": 30,
                }
                for i, c in enumerate(classes)
            ],
            taxonomy={
                "NIST AI 100-2e2025": ["NISTAML.022", "NISTAML.025"],
                "MITRE ATLAS": ["AML.T0015", "AML.T0043"],
                "OWASP ML": ["ML01"],
                "NIST AI RMF": ["MEASURE 2.6", "MEASURE 2.7"],
            },
            queries=42_300,
            forwards=91_200,
            backwards=60_100,
            evidence=f"evidence/{len(findings)}.safetensors",
            evidence_digest="ab" * 32,
            reproduce=f"crushproof audit digits.yaml --only '{name}/evasion'",
        )
        auc = 0.5 + tpr * 1.6
        fpr = np.geomspace(0.0025, 1, 200)
        power = np.log(tpr) / np.log(0.01)
        shadows = 16 if key in ("student", "prune80", "dense-dpsgd", "dense-advtrain") else 64
        common: dict[str, Any] = {
            "candidate": name,
            "risk": "membership",
            "better": "lower",
            "gateable": gated,
            "gated": gated,
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
            "evidence": f"evidence/m{len(findings)}.safetensors",
            "evidence_digest": "cd" * 32,
        }
        if key == "svd90":
            leak = [
                Finding(
                    id=f"{name}/membership",
                    metric="tpr_at_1_percent_fpr",
                    estimate=None,
                    verdict="not-measured",
                    reason="The shadow replay of this recipe failed: a layer of rank 1.",
                    **common,
                )
            ]
        else:
            moved, auc_moved = (
                versus(7, tpr, 0.021),
                [changed(base_name, 0.5 + base[7] * 1.6, auc, 0.018)] if base else [],
            )
            leak = [
                Finding(
                    id=f"{name}/membership",
                    metric="tpr_at_1_percent_fpr",
                    estimate=Estimate(estimate=tpr, low=max(0.004, tpr - 0.024), high=tpr + 0.028, n=797),
                    changes=moved,
                    verdict=judged(next(iter(moved), None), 0.05) if gated else "not-gated",
                    flags=["few-shadows"] if shadows < 64 and key == "student" else [],
                    notes=["The attacker knows the remaining members: they are in every shadow."],
                    curves={"roc": [Point(x=float(f), estimate=float(f**power)) for f in fpr]},
                    reproduce=f"crushproof audit digits.yaml --only '{name}/membership'",
                    parts=[
                        Part(
                            name=f"{a}, {k} shadows",
                            estimate=tpr * s,
                            low=max(0, tpr * s - 0.02),
                            high=tpr * s + 0.025,
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
                    id=f"{name}/membership/auc",
                    metric="auc",
                    estimate=Estimate(estimate=auc, low=auc - 0.027, high=auc + 0.027, n=1594),
                    changes=auc_moved,
                    verdict=judged(next(iter(auc_moved), None), 0.05) if gated else "not-gated",
                    reproduce=f"crushproof audit digits.yaml --only '{name}/membership'",
                    **common,
                ),
            ]
        extraction = Finding(
            id=f"{name}/extraction",
            candidate=name,
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
            estimate=rate(fidelity, 540),
            changes=versus(8, fidelity, 0.012),
            gateable=gated,
            verdict="not-gated",
            reason="the policy has no limit for it",
            parts=[
                Part(name="scores", estimate=fidelity, low=fidelity - 0.02, high=fidelity + 0.02, headline=True),
                Part(name="labels", estimate=fidelity - 0.03, low=fidelity - 0.05, high=fidelity - 0.01),
            ],
            curves={
                "scores": [
                    Point(x=q, estimate=fidelity - d, low=fidelity - d - 0.03, high=min(1, fidelity - d + 0.03))
                    for q, d in ((50, 0.22), (150, 0.08), (500, 0))
                ],
                "labels": [Point(x=q, estimate=fidelity - d - 0.03) for q, d in ((50, 0.25), (150, 0.1), (500, 0))],
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
            reproduce=f"crushproof audit digits.yaml --only '{name}/extraction'",
        )
        mine = [evasion, *leak, extraction]
        if defense == "stochastic-rounding":
            without = {
                "id": f"{name}/evasion/without-draw",
                "estimate": rate(0.66, 300),
                "parts": [],
                "gateable": False,
            }
            mine.append(evasion.model_copy(update={**without, "gated": False, "verdict": "not-gated", "changes": []}))
        findings += mine
        quality_change = next(iter(versus(5, accuracy, 0.011)), None)
        own = []
        if gated and quality_change:
            own.append(
                Gate(
                    candidate=name,
                    rule="accuracy",
                    finding=None,
                    value=quality_change.difference,
                    low=quality_change.low,
                    high=quality_change.high,
                    limit=-0.02,
                    compares="change",
                    verdict=judged(quality_change, -0.02),
                    sentence=f"{name}: accuracy changes by {100 * quality_change.difference:.1f}; −2.0 is allowed.",
                )
            )
            for f in mine:
                if f.gated and f.changes:
                    limit = -0.05 if f.better == "higher" else 0.05
                    own.append(
                        Gate(
                            candidate=name,
                            rule=f.metric,
                            finding=f.id,
                            value=f.changes[0].difference,
                            low=f.changes[0].low,
                            high=f.changes[0].high,
                            limit=limit,
                            compares="change",
                            verdict=f.verdict,
                            p_value=0.0004 if f.verdict == "fail" else None,
                            sentence=f"{name}: {words.finding_words(f)}; the policy allows {100 * limit:+.1f} points.",
                        )
                    )
        gates += own
        found = [g.verdict for g in own] + ["inconclusive"] * (key == "svd90")
        verdict = (
            "not-gated"
            if not gated
            else "fail"
            if "fail" in found
            else "inconclusive"
            if "inconclusive" in found
            else "pass"
        )
        candidates.append(
            Candidate(
                name=name,
                role=role,
                technique=technique,
                recipe=None if not gated else {"kind": technique, "words": text.split(",")[0]},
                recipe_words=text,
                parent=parent,
                defense=defense,
                defense_words={
                    "adversarial-training": "adversarial training, PGD-4 at eps 0.1",
                    "dp-sgd": "DP-SGD, epsilon 8.0 at delta 1e-5",
                    "stochastic-rounding": "stochastic rounding, stored draw",
                }.get(defense or ""),
                statement={
                    "epsilon": 8.0,
                    "delta": 1e-5,
                    "steps": 1120,
                    "sampling_rate": 0.0713,
                    "accountant": "prv",
                    "noise_multiplier": 1.1,
                    "max_gradient_norm": 1.0,
                    "neighbours": "one record added or removed",
                    "condition": "the seed stays secret",
                    "epsilon_pld_check": 7.9,
                }
                if defense == "dp-sgd"
                else {},
                verdict=verdict,
                deciding=next((g.sentence for g in own if g.verdict == verdict), None),
                accuracy=rate(accuracy, 540),
                quality_change=quality_change,
                footprint=Footprint(
                    disk_bytes=int(46_200 / ratio + 6200),
                    payload_bytes=int(40_872 / ratio),
                    ratio=ratio,
                    parameters=10_218,
                    nonzero_parameters=int(10_218 / max(1, ratio / 2)),
                    macs=391_000,
                    macs_by_width=[
                        Macs(weight_bits=8, activation_bits=8, macs=361_000),
                        Macs(weight_bits=32, activation_bits=32, macs=30_000),
                    ],
                    entropy_bytes=int(39_000 / ratio),
                    energy_memory_share=0.9,
                    energy_uj_modelled=1.83 / ratio**0.5,
                ),
                certificate=Certificate(
                    inputs="clean, random and adversarial",
                    n=1500,
                    label_agreement=0.991 if key == "int2" else 0.9993,
                    max_logit_difference=0.087,
                    logit_difference_99=0.021,
                )
                if gated
                else None,
                worst_risk=f"{name}/evasion" if tpr < 0.07 or role == "dense" else f"{name}/membership",
                digest=f"{len(candidates):02d}" * 32,
                draws=[
                    {
                        "draw": s,
                        **{
                            "accuracy": 0.966 - 0.004 * s,
                            "accuracy_low": 0.9,
                            "accuracy_high": 0.98,
                            "accuracy_n": 600,
                        },
                        **{"robust_accuracy": 0.461 - 0.006 * s, "robust_accuracy_low": 0.38},
                        **{"robust_accuracy_high": 0.52, "robust_accuracy_n": 300},
                    }
                    for s in range(5)
                ]
                if defense == "stochastic-rounding"
                else [],
            )
        )
    release = [c.name for c in candidates if c.role == "candidate"]
    failing = [c for c in candidates if c.verdict == "fail"]
    return Audit(
        name="digits: compressed CNN",
        verdict="fail",
        deciding=[failing[-1].deciding or "", f"{len(failing)} of {len(release)} candidates fail the policy."],
        plan={"name": "digits", "seed": 0, "candidates": release, "attacks": "quick"},
        plan_digest="9f2c" * 16,
        seed=0,
        data=DataSummary(
            name="digits (scikit-learn)",
            digest="5e1d" * 16,
            shape=[1, 8, 8],
            classes=classes,
            members=898,
            non_members=899,
            evaluation=540,
            attacker=359,
        ),
        candidates=candidates,
        findings=findings,
        policy=gates,
        policy_name="release",
        release=release,
        not_measured=[
            NotMeasured(candidate=None, what="TPR at 0.1 % FPR", reason="needs 1,000 non-members; there are 797"),
            NotMeasured(
                candidate=naming.get("svd90", "svd90"),
                what="AUC of membership",
                reason="The shadow replay of this recipe failed: a layer of rank 1.",
            ),
        ],
        power=[
            "With 64 shadows and 797 non-members a rise of TPR at 1 % FPR below 3.9 points would not be seen.",
            "With 300 records a loss of robust accuracy below 4.1 points would not be seen.",
        ],
        limits=[
            "Robust accuracy is an upper bound: a stronger attack may find more.",
            "A passing membership test is evidence, never proof, of anonymity.",
            "Figures hold for data like the evaluation records.",
        ],
        declared={"encryption at rest": "AES-256 on the model store"},
        environment=Environment(
            date="2026-11-20 09:14 UTC",
            versions={"crushproof": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1", "numpy": "2.4.6"},
            machine={"processor": "x86-64, 2 cores", "memory": "8 GB", "device": "cpu", "threads": "1"},
            seconds={
                "train": 14.2,
                "shadows": 88.1,
                "compress": 9.7,
                "evasion": 71.3,
                "membership": 4.4,
                "extraction": 30.9,
                "report": 3.1,
            },
            wall_seconds=131.0,
            peak_bytes=1_410_000_000,
            latency={
                naming.get(row[0], row[0]): [
                    Latency(batch=1, threads=1, p50=row[10], p95=row[10] * 1.3, records_per_second=1e3 / row[10]),
                    Latency(
                        batch=256,
                        threads=1,
                        p50=row[10] * 61,
                        p95=row[10] * 70,
                        records_per_second=256e3 / (row[10] * 61),
                    ),
                ]
                for row in MODELS
            },
        ),
    )


class Page(HTMLParser):
    """What a reader or a test may ask of a page without a browser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def audit() -> Audit:
    return synthetic_audit()


@pytest.fixture(scope="module")
def html(audit: Audit) -> str:
    return to_html(audit)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_finding_and_every_gap_is_there(audit: Audit, page: Page) -> None:
    for finding in audit.findings:
        assert finding.id in page.text
        assert finding.reproduce in page.text
        if finding.estimate is not None:
            low, high = (words.bare(v, finding.metric) for v in (finding.estimate.low, finding.estimate.high))
            assert (
                f"{words.figure(finding.estimate.estimate, finding.metric)} [{low}, {high}]".replace("\u00a0", " ")
                in page.text
            )
    for gap in audit.not_measured:
        assert gap.what in page.text
        assert gap.reason in page.text
    for finding in audit.findings:
        for part in finding.parts:
            assert part.skipped is None or part.skipped in page.text
    for flag in ("twin-disagrees", "black-box-wins", "few-shadows"):
        assert words.FLAGS[flag] in page.text
    for sentence in [*audit.deciding, *audit.power, *audit.limits]:
        assert sentence.replace("\u00a0", " ") in page.text


def test_links_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {str(attrs["href"]) for tag, attrs in page.tags if tag == "a"}
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)


def test_the_page_needs_nothing_from_elsewhere(html: str, page: Page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    sources = [str(v) for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "srcset", "data", "poster")]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.findall(r"url\(|@import|https?://", html)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'none'" in policy
    assert len(html.encode()) < 1_500_000


def test_charts_have_words_sizes_and_figures(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) >= 16  # size; three risks of five panels; defenses
    for attrs in images:
        assert len(str(attrs["alt"])) > 40
        svg = base64.b64decode(str(attrs["src"]).partition(",")[2]).decode("utf-8")
        assert f'width="{attrs["width"]}" height="{attrs["height"]}"' in svg
    assert page.text.count("Figures of this chart") == len(images)


def test_same_audit_same_bytes(audit: Audit, html: str) -> None:
    again = Audit.model_validate_json(audit.model_dump_json(by_alias=True))
    assert to_html(again) == html


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = dict(
        zip(
            ("dense", "prune50", "int8", "int4", "int2", "student", "svd90", "int8-dpsgd", "shared16"),
            HOSTILE,
            strict=True,
        )
    )
    hostile = synthetic_audit(renamed=names, classes=HOSTILE)
    render(hostile, tmp_path / "report.html")
    raw = (tmp_path / "report.html").read_bytes().decode("utf-8", errors="strict")
    page = Page(raw)
    assert "script" not in {tag for tag, _ in page.tags}
    assert SCRIPT in page.text
    assert r"$\frac{1}$" in page.text
    assert "_hidden" in page.text
    assert "<b>&amp;" in page.text
    shown = [raw, *(base64.b64decode(found).decode("utf-8") for found in re.findall(r"base64,([\w+/=]+)", raw))]
    assert not any(re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text) for text in shown)
    drawn = "".join(shown[1:])
    assert "_hidden" in drawn
    assert r"$\frac{1}$" in drawn
    assert "<script" not in drawn


@pytest.mark.parametrize("name", [*HOSTILE, "lone\ud800surrogate"])
def test_labels_are_short_visible_and_encodable(name: str) -> None:
    shown = words.label(name)
    assert 0 < len(shown) <= 64
    assert shown.isprintable()
    shown.encode("utf-8")


def test_a_bare_audit_still_reads() -> None:
    """No candidate, no finding, no rule, no training records: everything says so instead of failing."""
    full = synthetic_audit()
    data = full.data.model_copy(update={"members": None})
    bare = full.model_copy(
        update={
            "candidates": full.candidates[:1],
            "findings": [],
            "policy": [],
            "release": [],
            "not_measured": [],
            "power": [],
            "limits": [],
            "declared": {},
            "environment": Environment(),
            "data": data,
            "verdict": "inconclusive",
            "deciding": ["No candidate is up for release."],
        }
    )
    text = Page(to_html(bare)).text
    assert "INCONCLUSIVE" in text
    assert "No risk was measured." in text
    assert "training records not given" in text


def test_what_was_not_counted_is_said() -> None:
    """A .tflite file has a size, and no counts: null in audit.json, words on the page."""
    full = synthetic_audit()
    counts = ("parameters", "nonzero_parameters", "macs", "entropy_bytes", "energy_uj_modelled", "energy_memory_share")
    bare = full.candidates[1].footprint.model_copy(update={**dict.fromkeys(counts), "macs_by_width": []})
    rows = [c.model_copy(update={"footprint": bare}) for c in full.candidates[:2]]
    few = full.model_copy(update={"candidates": rows, "findings": [], "policy": [], "release": []})
    read = Audit.model_validate_json(few.model_dump_json(by_alias=True))
    assert read.candidates[1].footprint.macs is None
    assert Page(to_html(read)).text.count("not counted") == 6
    mixed = few.model_copy(update={"candidates": [rows[0], full.candidates[1]]})
    assert {level.energy for level in footprint_views.levels(views.index(mixed))} == {None}


def test_writing_is_whole_or_not_at_all(tmp_path: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("the old one")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crushproof.audit.writing.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render(audit, target)
    assert target.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_picks_are_the_best_of_those_that_pass(audit: Audit) -> None:
    passing = [c for c in audit.candidates if c.verdict == "pass"]
    found = {what: c for what, c, _ in views.picks(views.index(audit))}
    assert found["Smallest that passes"].footprint.payload_bytes == min(c.footprint.payload_bytes for c in passing)
    times = {c.name: audit.environment.latency[c.name][0].p50 for c in passing}
    assert times[found["Fastest that passes"].name] == min(times.values())


def test_a_mend_is_named_only_where_it_was_measured(audit: Audit) -> None:
    ix = views.index(audit)
    assert "int8-advtrain" in views.mend(ix, ix.candidates["int2"])
    assert "another recipe" in views.mend(ix, ix.candidates["int2"])
    assert "None of the measured defenses" in views.mend(ix, ix.candidates["channels50"])
    # Its hardened twin is inconclusive on robust accuracy, so it mends nothing yet.
    assert "None of the measured defenses" in views.mend(ix, ix.candidates["student"])
    passed = [
        f.model_copy(update={"verdict": "pass"}) if f.id == "student-advtrain/evasion" else f for f in audit.findings
    ]
    ix = views.index(audit.model_copy(update={"findings": passed}))
    sentence = views.mend(ix, ix.candidates["student"])
    assert "student-advtrain" in sentence
    assert "another recipe" not in sentence


def test_defenses_are_compared_with_the_same_recipe_without_them(audit: Audit) -> None:
    ix = views.index(audit)
    pairs = {
        h.candidate.name: h.plain.name if h.plain else None
        for h in defense_views.hardened_models(ix, views.columns(audit))
    }
    assert pairs["dense-dpsgd"] == "dense"
    assert pairs["int8-advtrain"] == "int8"
    assert pairs["int4-stochastic"] == "int4"
    assert pairs["int8-dpsgd"] is None  # "8-bit weights" alone was not audited without DP-SGD


def test_what_a_defense_only_seems_to_buy(audit: Audit) -> None:
    """Random rounding: the attacker without the stored draw; else the single attack that flatters most."""
    ix = views.index(audit)
    found = defense_views.naive(ix, ix.findings["int4-stochastic/evasion"])
    assert found is not None
    assert (found.name, found.estimate) == ("an attacker without the draw", 0.66)
    found = defense_views.naive(ix, ix.findings["int8-advtrain/evasion"])
    assert found is not None
    assert found.name == "square alone"
    assert found.estimate == max(p.estimate or 0 for p in ix.findings["int8-advtrain/evasion"].parts)
    found = defense_views.naive(ix, ix.findings["int8-dpsgd/membership"])
    assert found is not None
    assert found.estimate == min(p.estimate or 1 for p in ix.findings["int8-dpsgd/membership"].parts)


def test_difference_interval_is_newcombes() -> None:
    """Newcombe (1998), table II, method 10: 56/70 - 48/80 with Wilson intervals gives .2 [.0524, .3339]."""
    one = Estimate(estimate=56 / 70, low=0.6916, high=0.8771, n=70)
    other = Estimate(estimate=48 / 80, low=0.4904, high=0.7003, n=80)
    assert defense_views.difference(one, other) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-4)


def test_figures_read_as_people_write_them() -> None:
    assert words.figure(0.0654, "tpr_at_1_percent_fpr") == "6.5\u00a0%"
    assert words.figure(0.6118, "auc") == "0.612"
    assert words.signed(-0.0321, "accuracy") == "\u22123.2"
    assert words.signed(-0.00001, "auc") == "0.000"
    assert words.size(40_872) == "40.9\u00a0kB"
    assert words.size(999_999) == "1\u00a0MB"
    assert words.number(1e-5) == "1e\u22125"
    assert words.number(12_345) == "12\u00a0345"
    assert words.duration(224.0) == "3.73\u00a0min"
    assert words.setting({"norm": "linf", "epsilon": 0.1}) == "L\u221e, eps 0.1"


def test_charts_survive_odd_figures() -> None:
    axis, log = charts.Axis("x"), charts.Axis("y", log=True, percent=True, ends=(0.01, 1.0))
    nothing = [charts.Series("a", [Point(x=0.0, estimate=0.0)], 1)]
    assert charts.lines("all zero on a logarithmic axis", nothing, log, log, key_rows=1) is None
    one = [charts.Series("a", [Point(x=0.1, estimate=0.5)], 1)]
    assert charts.lines("one point", one, axis, charts.Axis("y", percent=True), key_rows=1) is not None
    same = [dot_charts.Dot("a" * 300, 1.0, 1.0, 1.0, 1.0, "pass")] * 40
    assert dot_charts.quality_against_size(same, words.metric("accuracy")) is not None
    assert dot_charts.quality_against_size([], words.metric("accuracy")) is None


# --- in a browser ----------------------------------------------------------------------------------------------------

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.mark.browser
def test_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """No console message, no policy violation, no request, every chart drawn, hostile names shown, phone and paper."""
    path = tmp_path / "report.html"
    render(synthetic_audit(renamed={"int8": SCRIPT, "int4": "x" * 300}, classes=[SCRIPT, *HOSTILE[1:]]), path)
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(path.as_uri())
    for width in (1280, 768, 390):
        view.set_viewport_size({"width": width, "height": 900})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        charts_drawn = view.evaluate(
            "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.checkVisibility(), i.width])"
        )
        assert len(charts_drawn) >= 16
        assert all(
            done and w > 0 and h > 0 and seen and 200 < shown <= width for done, w, h, seen, shown in charts_drawn
        )
    assert SCRIPT in view.locator("#ship").text_content()  # inner_text is empty where no font is installed
    view.goto(path.as_uri() + "#finding-20")  # inside two closed <details>: the browser opens them
    assert view.locator("#finding-20").is_visible()
    pdf = view.pdf(format="A4", prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 10
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) <= 2
    view.close()


# Boxes that stick out of the page (but for what scrolls by itself), text that sticks out of its box, text cut off.
ASTRAY = """() => {
  const page = document.documentElement.clientWidth, text = 'p, li, dt, dd, h1, h2, h3, td, th, figcaption, summary';
  const name = e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`;
  const wider = e => e.scrollWidth > e.clientWidth + 2;
  const scrolls = e => e && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
  const seen = [...document.body.querySelectorAll('*')].filter(e => e.clientWidth > 0 && !e.closest('.cards thead'));
  return [
    ...seen.filter(e => e.getBoundingClientRect().right > page + 0.5 && !scrolls(e.parentElement)),
    ...seen.filter(e => wider(e) && (e.matches(text) || ['hidden', 'clip'].includes(getComputedStyle(e).overflowX))),
  ].map(name).concat(document.documentElement.scrollWidth > page ? ['the page'] : []);
}"""
WIDTH_OF = """families => families.map(family => {
  const pen = document.createElement('canvas').getContext('2d');
  pen.font = `16px "${family}"`;
  return pen.measureText('Robust accuracy 49.7 %, inconclusive').width;
})"""


def families() -> list[str]:
    """Every family of fonts that is installed."""
    if shutil.which("fc-list") is None:
        return []
    said = subprocess.run(["fc-list", ":", "family"], capture_output=True, text=True, check=True).stdout
    return sorted({name.strip() for line in said.replace("\\", "").splitlines() for name in line.split(",")})


def check_layout(view: Any, family: str, **widths: tuple[int, ...]) -> None:
    """Looks for what is astray on so many pixels, at the usual text size and at twice that."""
    for percent in (100, 200):
        chosen = f"* {{ font-family: {json.dumps(family)} !important }}" if family else ""
        view.add_style_tag(content=f"html {{ font-size: {percent}% }} {chosen}")
        for width in widths["usual" if percent == 100 else "twice"]:
            view.set_viewport_size({"width": width, "height": 200})  # a small picture: only boxes are looked at
            assert view.evaluate(ASTRAY) == [], f"{family} at {percent} % on {width} pixels"


@pytest.mark.browser
def test_the_layout_holds_with_any_fonts(browser: Any, html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html)
    (tmp_path / "fonts.conf").write_text(f"<fontconfig><cachedir>{tmp_path}</cachedir></fontconfig>")
    address = (tmp_path / "report.html").as_uri()
    with browser.new_page() as view:
        view.goto(address)
        widths = dict(zip(installed := families(), view.evaluate(WIDTH_OF, installed), strict=True))
        for family in sorted({pick(widths, key=widths.__getitem__) for pick in (min, max)} if widths else {""}):
            check_layout(view, family, usual=(390, 768), twice=(390, 1280))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    nothing = {**os.environ, "FONTCONFIG_FILE": str(tmp_path / "fonts.conf")}
    bare = browser.browser_type.launch(executable_path=chromium, args=FLAGS, env=nothing)
    with bare.new_page() as view:
        view.goto(address)
        check_layout(view, "", usual=(768,), twice=(390,))
    bare.close()
