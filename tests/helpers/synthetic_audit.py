"""An audit as the built-in plan makes one, with invented figures: what the tests of the report draw."""

from __future__ import annotations

import numpy as np
from synthetic_findings import Model, Named, evasion, extraction, judged, membership, rate, transfers

from crushproof.attacks.evasion.risk import EVASION, ROBUST_ACCURACY
from crushproof.attacks.extraction.risk import EXTRACTION, FIDELITY
from crushproof.attacks.membership.risk import AUC, MEMBERSHIP, TPR
from crushproof.attacks.risk import QUALITIES
from crushproof.audit.schema import wording
from crushproof.audit.schema.data_rows import DataSummary
from crushproof.audit.schema.file_rows import Certificate, Footprint, Macs
from crushproof.audit.schema.policy_rows import Gate
from crushproof.audit.schema.rows import (
    Audit,
    Candidate,
    Draw,
    Environment,
    Estimate,
    Finding,
    Latency,
    Machine,
    NotMeasured,
)
from crushproof.audit.verdict.policy import BUILT_IN

METRICS = {metric.name: metric for metric in (*QUALITIES, ROBUST_ACCURACY, TPR, AUC, FIDELITY)}
FAMILIES = {
    "prune": "Pruning",
    "quantize": "Quantization",
    "distill": "Distillation",
    "factorize": "Factorization",
    "share": "Weight sharing",
    "chain": "Chains",
}
DEFENSES = {"dp-sgd": "DP-SGD"}

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

# key|technique|words|parent|defense|accuracy, robust accuracy, TPR, fidelity, ratio, milliseconds at batch 1
TABLE = """
dense|dense|residual CNN, 10,218 parameters|-|-|.981 .497 .068 .941 1.0 .081
dense-advtrain|dense|trained on PGD-4|-|adversarial-training|.97 .741 .081 .934 1.0 .08
dense-dpsgd|dense|trained by DP-SGD|-|dp-sgd|.921 .385 .014 .915 1.0 .084
prune50|prune|50 % of the weights, by global magnitude|dense|-|.979 .489 .066 .94 2.1 .082
prune80|prune|80 % of the weights, then 5 epochs of fine-tuning|dense|-|.973 .452 .073 .936 4.6 .082
channels50|prune|half of the channels|dense|-|.958 .371 .062 .93 3.2 .049
int8|quantize|8-bit weights and activations|dense|-|.98 .493 .068 .941 3.9 .052
int4|quantize|4-bit weights|dense|-|.976 .48 .064 .938 7.6 .08
int2|quantize|2-bit weights|dense|-|.884 .214 .031 .861 14.1 .081
student|distill|half the width, temperature 4|dense|-|.968 .327 .059 .931 3.6 .044
svd90|factorize|90 % of the energy kept|dense|-|.977 .476 .067 .939 1.9 .093
shared16|share|16 shared values a layer|dense|-|.978 .484 .066 .939 7.2 .081
prune80-int8|chain|80 % pruned, then 8-bit|dense|-|.972 .449 .072 .935 11.8 .053
int4-stochastic|quantize|4-bit weights, stochastic rounding|dense|stochastic-rounding|.966 .461 .06 .933 7.6 .08
int8-advtrain|quantize|8-bit weights and activations|dense-advtrain|adversarial-training|.969 .738 .081 .934 3.9 .052
student-advtrain|distill|half the width, temperature 4|dense-advtrain|adversarial-training|.955 .716 .069 .929 3.6 .044
int8-dpsgd|quantize|8-bit weights|dense-dpsgd|dp-sgd|.92 .381 .014 .914 3.9 .083
"""


def model_of(line: str) -> Model:
    key, technique, text, parent, defense, figures = (cell.strip() for cell in line.split("|"))
    return Model(
        key,
        technique,
        text,
        *(None if cell == "-" else cell for cell in (parent, defense)),
        *map(float, figures.split()),
    )


MODELS = [model_of(line) for line in TABLE.strip().splitlines()]


def gates_of(named: Named, findings: list[Finding]) -> list[Gate]:
    name = named.name
    quality_change = next(iter(named.change("accuracy", 0.011)), None)
    own: list[Gate] = []
    if named.gated and quality_change:
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
        for f in findings:
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
                        sentence=f"{name}: {wording.finding_words(f, METRICS[f.metric])}; "
                        f"the policy allows {100 * limit:+.1f} points.",
                    )
                )
    return own


def candidate_of(named: Named, own: list[Gate], parent: str | None, count: int) -> Candidate:
    name, model = named.name, named.model
    found = [g.verdict for g in own] + ["inconclusive"] * (model.key == "svd90")
    verdict = (
        "not-gated"
        if not named.gated
        else "fail"
        if "fail" in found
        else "inconclusive"
        if "inconclusive" in found
        else "pass"
    )
    return Candidate(
        name=name,
        role="candidate" if named.gated else "dense",
        technique=model.technique,
        family=FAMILIES.get(model.technique, model.technique),
        recipe=None if not named.gated else {"kind": model.technique, "words": model.words.split(",")[0]},
        recipe_words=model.words,
        parent=parent,
        defense=model.defense,
        defense_title=DEFENSES.get(model.defense, model.defense.replace("-", " ").capitalize())
        if model.defense
        else None,
        defense_words={
            "adversarial-training": "adversarial training, PGD-4 at eps 0.1",
            "dp-sgd": "DP-SGD, epsilon 8.0 at delta 1e-5",
            "stochastic-rounding": "stochastic rounding, stored draw",
        }.get(model.defense or ""),
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
        if model.defense == "dp-sgd"
        else {},
        verdict=verdict,
        deciding=next((g.sentence for g in own if g.verdict == verdict), None),
        accuracy=rate(model.accuracy, 540),
        quality_change=next(iter(named.change("accuracy", 0.011)), None),
        footprint=Footprint(
            disk_bytes=int(46_200 / model.ratio + 6200),
            payload_bytes=int(40_872 / model.ratio),
            ratio=model.ratio,
            parameters=10_218,
            nonzero_parameters=int(10_218 / max(1, model.ratio / 2)),
            macs=391_000,
            macs_by_width=[
                Macs(weight_bits=8, activation_bits=8, macs=361_000),
                Macs(weight_bits=32, activation_bits=32, macs=30_000),
            ],
            entropy_bytes=int(39_000 / model.ratio),
            energy_memory_share=0.9,
            energy_uj_modelled=1.83 / model.ratio**0.5,
        ),
        certificate=Certificate(
            inputs="clean, random and adversarial",
            n=1500,
            label_agreement=0.991 if model.key == "int2" else 0.9993,
            max_logit_difference=0.087,
            logit_difference_99=0.021,
        )
        if named.gated
        else None,
        worst_risk=f"{name}/evasion" if model.tpr < 0.07 or not named.gated else f"{name}/membership",
        digest=f"{count:02d}" * 32,
        draws=[
            Draw(
                draw=s,
                figures={
                    "accuracy": Estimate(estimate=0.966 - 0.004 * s, low=0.9, high=0.98, n=600),
                    "robust_accuracy": Estimate(estimate=0.461 - 0.006 * s, low=0.38, high=0.52, n=300),
                },
            )
            for s in range(5)
        ]
        if model.defense == "stochastic-rounding"
        else [],
    )


def synthetic_audit(renamed: dict[str, str] | None = None, classes: list[str] | None = None) -> Audit:
    """3 dense models, 14 candidates, three risks each."""
    naming = renamed or {}
    by_key = {model.key: model for model in MODELS}
    candidates: list[Candidate] = []
    findings: list[Finding] = []
    gates: list[Gate] = []
    rng = np.random.default_rng(7)
    classes = classes or [str(i) for i in range(10)]
    for model in MODELS:
        parent = naming.get(model.parent or "", model.parent)
        baseline = model.parent or ("dense" if model.defense else None)
        named = Named(
            naming.get(model.key, model.key),
            model,
            naming.get(baseline or "", baseline) or "",
            by_key[baseline] if baseline else None,
        )
        robustness = evasion(named, classes, rng, len(findings))
        everyone = {naming.get(one.key, one.key): one for one in MODELS}
        robustness = robustness.model_copy(update={"transfers": transfers(named.name, everyone)})
        mine = [robustness, *membership(named, len(findings)), extraction(named)]
        if model.defense == "stochastic-rounding":
            without = {
                "id": f"{named.name}/evasion/without-draw",
                "estimate": rate(0.66, 300),
                "parts": [],
                "transfers": [],
                "gateable": False,
            }
            mine.append(
                robustness.model_copy(update={**without, "gated": False, "verdict": "not-gated", "changes": []})
            )
        findings += mine
        own = gates_of(named, mine)
        gates += own
        candidates.append(candidate_of(named, own, parent, len(candidates)))
    release = [c.name for c in candidates if c.role == "candidate"]
    failing = [c for c in candidates if c.verdict == "fail"]
    return Audit(
        name="digits: compressed CNN",
        verdict="fail",
        deciding=[failing[-1].deciding or "", f"{len(failing)} of {len(release)} candidates fail the policy."],
        beside=["What a reader of the verdict must know."],
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
        risks={risk.name: risk for risk in (EVASION, MEMBERSHIP, EXTRACTION)},
        metrics=METRICS,
        policy=gates,
        policy_name="release",
        policy_limits=BUILT_IN["release"].limits,
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
            machine=Machine(system="Linux x86_64", processor="x86-64", cores="2", device="cpu"),
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
