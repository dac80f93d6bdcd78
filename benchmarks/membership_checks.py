"""Calibration of membership's scores without a leak, and leaks that were planted: sections of `membership.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contract import Row
from membership_world import Arrays, Kept, phi_of

from crushproof.attacks.case import Case
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.likeness import on_scale_of
from crushproof.attacks.membership.membership import Membership
from crushproof.attacks.membership.population import PopulationPlan, masks, plan_population
from crushproof.attacks.membership.scoring.pseudo_targets import score_all
from crushproof.attacks.membership.scoring.quantile import quantile
from crushproof.attacks.membership.scoring.scores import population
from crushproof.attacks.statistics import ranking
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import digits_mlp
from crushproof.training.trainer import BuiltinTrainer

CPU = torch.device("cpu")
MLP = Architecture("mlp", digits_mlp)
SEEDS, NULLS = 1000, 20
PLANTED, LOOKED_AT = 50, 75


def null_scores(kept: Kept) -> list[Row]:
    """Margins without a leak, difficulties and spreads that differ by record: do the intervals hold .5 and 1 %?"""
    held: dict[str, list[tuple[bool, bool]]] = {}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        n, k = 400, (2, 4, 8, 16)[seed % 4]
        difficulty, spread = 3 + 3 * rng.standard_t(4, n), np.exp(0.5 * rng.normal(size=n))
        phi = (difficulty + spread * rng.normal(size=(k + 1, n))).astype(np.float32)
        is_member, labels = rng.permutation(n) < n // 2, rng.integers(0, 5, n)
        target, shadows = phi[:1].astype(np.float64), ShadowSignals(masks(n, k, seed), phi[1:])
        found = {name: one[0] for name, one in score_all(target, {"own": shadows}).items()}
        found["restored"] = score_all(on_scale_of(phi[0], labels, phi[1:])[None], {"own": shadows})["bavaria/own"][0]
        x = torch.from_numpy((difficulty[:, None] + rng.normal(size=(n, 6))).astype(np.float32))
        known = slice(0, n // 4)  # the attacker's own are other draws of the same kind
        records, own = Records(x, torch.from_numpy(labels)), Records(x[known], torch.from_numpy(labels[known]))
        own_phi = (difficulty + spread * rng.normal(size=n))[known]
        found["population"] = population(phi[0], labels, own_phi, labels[known])
        found["quantile"] = quantile(phi[0], records, own_phi, own, seed=0)
        for name, score in found.items():
            area, rate = ranking.auc(score, is_member), ranking.tpr_at_fpr(score, is_member)
            held.setdefault(name, []).append((area.low <= 0.5 <= area.high, rate.low <= 0.01 <= rate.high))
    rows = []
    for name, told in held.items():
        for figure, share in zip(("AUC", "TPR at 1 %"), 100 * np.mean(told, axis=0), strict=True):
            rows.append(Row(name, f"{figure}, {SEEDS} seeds", float(share), "% held", target=93.5, better="higher"))
    return rows


def _case(plan: PopulationPlan, target: Any, prepared: Any, attacker: Records) -> Case:
    return Case(target, None, None, None, plan.targets, plan.ids, attacker, Bounds.of(0, 1), 10, prepared=prepared)


def null_models(kept: Kept) -> list[Row]:
    """Whole runs on models that saw none of the attacked records, which a coin calls members."""
    data = load_digits(0)
    plan = plan_population(data, 16, seed=0)
    modules = plan.fit(BuiltinTrainer(Training(epochs=15)), MLP, first=0, last=16, device=CPU)
    shadows = ShadowSignals(plan.inside, np.stack([phi_of(module, plan.targets) for module in modules]))
    rest = plan.records.take(torch.arange(plan.attacked, len(plan.records)))
    coin = torch.Generator().manual_seed(0)
    half = len(data.attacker) // 2
    seen, own = data.attacker.take(torch.arange(half)), data.attacker.take(torch.arange(half, len(data.attacker)))
    others = Records(torch.cat([rest.x, seen.x]), torch.cat([rest.y, seen.y]))
    subsets = [torch.randperm(len(others), generator=coin)[:400] for _ in range(NULLS)]
    seeds = list(range(100, 100 + NULLS))
    models = BuiltinTrainer(Training(epochs=6)).fit(TrainingJob(MLP, others, subsets, seeds, CPU))
    rows = []
    for words, signals in (("16 shadows", shadows), ("no shadows", None)):
        held = np.zeros(2)
        for model, is_member in zip(models, masks(plan.attacked, 2 * NULLS, 5)[::2], strict=True):
            prepared = plan.case(signals, blind=np.zeros(plan.attacked))
            prepared = dataclasses.replace(prepared, is_member=is_member)
            evidence = Membership().run(_case(plan, TorchTarget(model), prepared, own), seed=0)
            for at, (name, figure) in enumerate(
                ((evidence.summary["headline_auc"], ranking.auc), (evidence.summary["headline"], ranking.tpr_at_fpr))
            ):
                found = figure(evidence.arrays[f"score/{name}"], is_member)
                held[at] += found.low <= (0.5, 0.01)[at] <= found.high
        for figure_name, count in zip(("AUC", "TPR at 1 %"), held, strict=True):
            setting = f"{words}: {figure_name}, of {NULLS}"
            rows.append(Row("whole runs", setting, float(count), "held", target=17, better="higher"))
    return rows


def planted(kept: Kept) -> list[Row]:
    """50 members with wrong labels, which a model can only memorise: are they the most exposed?"""
    data = load_digits(0)
    plan = plan_population(data, 16, seed=0)
    wrong = np.random.default_rng(0).permutation(np.flatnonzero(plan.is_member))[:PLANTED]
    labels = plan.records.y.clone()
    labels[wrong] = (labels[wrong] + 1 + torch.arange(PLANTED) % 9) % 10
    plan = dataclasses.replace(plan, records=Records(plan.records.x, labels))
    trainer = BuiltinTrainer(Training(epochs=40))

    def made() -> Arrays:
        modules = plan.fit(trainer, MLP, first=0, last=16, device=CPU)
        members = torch.cat([torch.from_numpy(np.flatnonzero(plan.is_member)), _rest(plan)])
        target = trainer.fit(TrainingJob(MLP, plan.records, [members], [77], CPU))
        return {"phi": np.stack([phi_of(module, plan.targets) for module in [*modules, *target]])}

    phi = kept.get("planted", [40, PLANTED], made)["phi"]
    shadows = ShadowSignals(plan.inside, phi[:16])
    rows = []
    for name, score in score_all(phi[16:].astype(np.float64), {"own": shadows}).items():
        most = np.argsort(-score[0])[:LOOKED_AT]
        count = len({*most.tolist()} & {*wrong.tolist()})
        odds = name == "bavaria/own"  # a record's exposure is its odds; a rank by RMIA ends at a ratio of 2
        setting = f"{PLANTED} mislabelled members among the {LOOKED_AT} most exposed: {name}{', odds' * odds}"
        rows.append(Row("planted", setting, count, "found", target=45 if odds else None, better="higher"))
    return rows


def _rest(plan: PopulationPlan) -> torch.Tensor:
    return torch.arange(plan.attacked, len(plan.records))


CHECKS: dict[str, Callable[[Kept], list[Row]]] = {
    "null-scores": null_scores,
    "null-models": null_models,
    "planted": planted,
}
