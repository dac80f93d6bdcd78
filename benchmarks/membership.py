"""Membership inference: its power by score, shadows and their price; its calibration; leaks that were planted.

    python benchmarks/membership.py --data DIR [--only SECTION ...] [--keep FOLDER] [--json FILE]

Location-30 (4,000 records) and scikit-learn's digits; 64 shadow models and 12 targets each, every one trained on a
random half of the records. TPR at a false positive rate of 1 %, mean over the targets. CPU seconds, one thread. What
`--keep` names holds the models and margins, so that a run that was killed goes on. Without `--data`: digits alone.
`held-out`: Adult, MNIST and token sequences, on which no constant of a score was chosen.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish
from membership_peers import privacy_meter_rmia
from membership_world import SHADOWS, Kept, World, digits, held_out, location, phi_of
from scipy import stats
from torch.nn import functional as F

from crushproof.attacks.membership.case import ShadowSignals, related
from crushproof.attacks.membership.likeness import masked, restored
from crushproof.attacks.membership.scoring.pseudo_targets import choose, pseudo_targets, score_all, score_names
from crushproof.attacks.membership.scoring.quantile import quantile
from crushproof.attacks.membership.scoring.scores import WITH_SHADOWS, bavaria, loss, population, rmia
from crushproof.attacks.membership.signals import margin
from crushproof.attacks.statistics import ranking
from crushproof.attacks.statistics.roc import area, tpr_at_fpr
from crushproof.targets.model import TorchTarget
from crushproof.targets.seeds import derive
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many, train_stack
from crushproof.training.networks import Mlp

Array = np.ndarray[Any, Any]
TUNE = {"epochs": 10, "batch_size": 64, "learning_rate": 1e-2, "weight_decay": 1.0}
TAUGHT = {"epochs": 15, "batch_size": 64, "learning_rate": 5e-3, "weight_decay": 0.0}
PRUNED: dict[str, Any] = {"kind": "prune", "sparsity": 0.8, "fine_tune": TUNE}
DISTILLED: dict[str, Any] = {"kind": "distill", "width": 0.25, "alpha": 0.1, "training": TAUGHT}
VERSIONS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "int8": {"kind": "quantize", "weight_bits": 8},
    "int4": {"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False},
    "prune 50 %": {"kind": "prune", "sparsity": 0.5},
    "prune 80 %": {"kind": "prune", "sparsity": 0.8},
    "16 shared values": {"kind": "share", "clusters": 16},
    "low rank": {"kind": "factorize", "energy": 0.9},
    "prune 80 % + fine-tune": PRUNED,
    "distilled": DISTILLED,
}
USED = 32  # shadows of the figures by version
COUNTS = (1, 2, 3, 4, 8, 16, 64)
FEW = ("dense", "prune 80 % + fine-tune", "distilled")


def rate(scores: Array, truths: Array) -> float:
    """TPR at 1 %, in percent, mean over targets."""
    return 100 * float(np.mean([tpr_at_fpr(row, truth, 0.01) for row, truth in zip(scores, truths, strict=True)]))


def mean_area(scores: Array, truths: Array) -> float:
    return float(np.mean([area(row, truth) for row, truth in zip(scores, truths, strict=True)]))


def versions(world: World) -> list[Row]:
    """Nine versions audited together, against nine audits each with shadows of its own."""
    training, replays = USED * world.training_seconds, [USED * world.signals(one)[1] for one in VERSIONS.values()]
    together, apart = training + sum(replays), len(replays) * training + sum(replays)
    rows = [Row(world.name, f"nine versions, {USED} shadows", together, "CPU s", peer=apart, target=0.25)]
    rows += [Row(world.name, f"of it, {name}", one, "CPU s") for name, one in zip(VERSIONS, replays, strict=True)]
    return rows


def power(world: World) -> list[Row]:
    """Every score with shadows compressed alike and with uncompressed ones; the headline is chosen on shadows."""
    rows, dense = [], world.shadows(world.signals(None)[0]["phi"], 0, USED)
    asked = {"dense": 46.0, "prune 80 % + fine-tune": 14.0, "distilled": 7.5} if world.name == "location" else {}
    for name in ("dense", "int8", "prune 80 % + fine-tune", "distilled"):
        phi = world.signals(VERSIONS[name])[0]["phi"]
        kinds = {"own": world.shadows(phi, 0, USED)} | ({} if name == "dense" else {"dense": dense})
        chosen = choose(pseudo_targets(kinds), "tpr_mean", shadows=USED)
        found = score_all(phi[SHADOWS:].astype(np.float64), kinds)
        figures = {score: (rate(one, world.truths), mean_area(one, world.truths)) for score, one in found.items()}
        setting = f"{name}: headline, {chosen}"
        rows.append(Row(world.name, setting, figures[chosen][0], "% TPR", target=asked.get(name), better="higher"))
        if "dense" in kinds:
            best = max((score for score in figures if score.endswith("/dense")), key=lambda one: figures[one][0])
            least = 3.0 if asked and name.startswith("prune") else None
            setting_dense = f"{name}: BaVarIA, uncompressed shadows"
            rows.append(Row(world.name, setting_dense, figures["bavaria/dense"][0], "% TPR", target=least))
            rows.append(Row(world.name, f"{name}: the best with those, {best}", figures[best][0], "% TPR"))
        rows.append(Row(world.name, setting, figures[chosen][1], "AUC"))
        rows += [Row(world.name, f"{name}: {score}", one[0], "% TPR") for score, one in figures.items()]
    return rows


def few(world: World) -> list[Row]:
    """BaVarIA beside the better of LiRA and RMIA, by the number of shadows; means over groups of shadows too.

    Every model outside of a group is a target; of 64, the shadows are too, each without itself and its complement.
    """
    rows = []
    for name in FEW:
        if world.name == "tokens" and name == "distilled":  # a recurrent net has no narrow student
            continue
        phi, inside = world.signals(VERSIONS[name])[0]["phi"], world.plan.inside
        for count in COUNTS:
            found: dict[str, list[float]] = {score: [] for score in (*score_names(count), "headline")}
            for first in list(range(0, SHADOWS, count))[:6]:
                group = world.shadows(phi, first, first + count)
                asked = [one for one in range(len(phi)) if count == SHADOWS or not first <= one < first + count]
                targets, truths, keep = phi[asked].astype(float), inside[asked], ~related(inside[asked], group.inside)
                for score in score_names(count):
                    found[score].append(rate(WITH_SHADOWS[score](targets, group, keep), truths))
                chosen = choose(pseudo_targets({"own": group}), "tpr_mean", shadows=count)
                found["headline"].append(found[chosen.partition("/")[0]][-1])
            rates = {score: float(np.mean(some)) for score, some in found.items()}
            peer = max(rates.keys() & {"lira", "lira-offline", "rmia"}, key=lambda one: (rates[one], one))
            asked_for = 0.95 if count > 1 else None
            for score in ("bavaria", "headline") if count > 1 else ("headline",):
                setting = f"{name}, {count} shadows: {score}, {peer}"
                rows.append(Row(world.name, setting, rates[score], "% TPR", rates[peer], asked_for, "higher"))
    return rows


def privacy_meter(world: World) -> list[Row]:
    rows = []
    for name in ("dense", "prune 80 % + fine-tune"):
        found = world.signals(VERSIONS[name])[0]
        chance, chance_z = (1 / (1 + np.exp(-found[one].astype(np.float64))) for one in ("phi", "own"))
        inside = world.plan.inside[:USED]
        theirs = [
            privacy_meter_rmia(one, chance[:USED], inside, z, chance_z[:USED])
            for one, z in zip(chance[SHADOWS:], chance_z[SHADOWS:], strict=True)
        ]
        ours = rmia(found["phi"][SHADOWS:].astype(np.float64), world.shadows(found["phi"], 0, USED))
        for unit, figure in (("% TPR", rate), ("AUC", mean_area)):
            each = [
                [figure(row[None], truth[None]) for row, truth in zip(scores, world.truths, strict=True)]
                for scores in (ours, theirs)
            ]
            mine, peer = (float(np.mean(one)) for one in each)
            setting = f"{name}: RMIA, Privacy Meter's"
            rows.append(Row(world.name, setting, mine, unit, peer, 1.0, "higher", paired(*each)))
    return rows


def paired(some: list[float], others: list[float]) -> tuple[float, float]:
    """95 % interval of the mean difference over the same targets (Student's t)."""
    differences = np.array(some) - np.array(others)
    reach = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() - reach), float(differences.mean() + reach)


def alone(world: World) -> list[Row]:
    """No shadows: the attacker's own records."""
    found, labels = world.signals(None)[0], world.records.y.numpy()
    pairs = list(zip(found["phi"][SHADOWS:], found["own"][SHADOWS:], strict=True))
    scores = {
        "loss": [loss(phi) for phi, _ in pairs],
        "population": [population(phi, labels, own, world.own.y.numpy()) for phi, own in pairs],
        "quantile": [quantile(phi, world.records, own, world.own, seed=0) for phi, own in pairs],
    }
    rows = [Row(world.name, f"0 shadows: {one}", rate(np.array(s), world.truths), "% TPR") for one, s in scores.items()]
    return rows + [
        Row(world.name, f"0 shadows: {one}", mean_area(np.array(s), world.truths), "AUC") for one, s in scores.items()
    ]


def masking(world: World) -> list[Row]:
    """Arg-max and a thousandth of the logits: what the mask hides, and what is left of it once scores are restored."""
    phi = world.signals(None)[0]["phi"]
    shadows = world.shadows(phi, 0, USED)
    chosen = choose(pseudo_targets({"own": shadows}), "tpr_mean", shadows=USED)
    labels, changes, rates = world.records.y.numpy(), [], []
    for module, plain, truth in zip(world.models[SHADOWS:], phi[SHADOWS:], world.truths, strict=True):
        logits = TorchTarget(module).logits(world.records.x)
        hidden = F.one_hot(logits.argmax(1), logits.shape[1]) + 1e-3 * logits
        seen = margin(hidden, world.records.y)
        assert masked(seen, shadows.phi, labels)
        again = restored(hidden, world.records.y, shadows.phi)
        before, read, blind = (
            score_all(one[None].astype(np.float64), {"own": shadows})[chosen][0] for one in (plain, again, seen)
        )
        interval = ranking.tpr_at_fpr(before, truth)
        after = tpr_at_fpr(read, truth, 0.01)
        changes.append((after - interval.estimate) / (interval.high - interval.low))
        rates.append([interval.estimate, after, tpr_at_fpr(blind, truth, 0.01)])
    plain_rate, restored_rate, blind_rate = 100 * np.mean(rates, axis=0)
    worst = float(np.abs(changes).max())
    return [
        Row(world.name, "masked: largest change of the headline, 12 targets", worst, "of its interval", target=1.0),
        Row(world.name, "masked: restored, unmasked", restored_rate, "% TPR", plain_rate),
        Row(world.name, "masked: read as it is, unmasked", blind_rate, "% TPR", plain_rate),
    ]


def cheaper(world: World) -> list[Row]:
    """Four shadows: trained, fine-tuned from the target's weights, or of a smaller net; against 64 trained ones."""
    phi, targets = world.signals(None)[0]["phi"], range(SHADOWS, SHADOWS + 4)
    truths, full = world.plan.inside[SHADOWS : SHADOWS + 4], world.training_seconds
    inside = world.plan.inside[:4]
    subsets = [torch.from_numpy(np.flatnonzero(row)) for row in inside]
    seeds = [derive(5, shadow) for shadow in range(4)]

    def told(setting: str, signals: list[ShadowSignals], seconds: float) -> list[Row]:
        asked = [one[None].astype(np.float64) for one in phi[list(targets)]]
        rows = []
        for name, score in (("BaVarIA", bavaria), ("RMIA", rmia)):
            found = np.concatenate([score(one, own) for one, own in zip(asked, signals, strict=True)])
            rows.append(Row(world.name, f"{setting}: {name}", rate(found, truths), "% TPR"))
        return [*rows, Row(world.name, f"{setting}: a target", seconds, "CPU s")]

    rows = told("64 trained", [world.shadows(phi)] * 4, 64 * full)
    rows += told("4 trained", [world.shadows(phi, 0, 4)] * 4, 4 * full)
    for share in (0.1, 0.3):
        epochs = max(1, round(share * world.training.epochs))
        training = world.training.model_copy(update={"epochs": epochs})

        def tuned(target: int, training: Training = training) -> dict[str, Array]:
            modules = [copy.deepcopy(world.models[target]).requires_grad_(True) for _ in range(4)]
            train_stack(modules, world.records, subsets, seeds, training)
            return {"phi": np.stack([phi_of(module, world.records) for module in modules])}

        key = [world.training.model_dump(mode="json"), epochs]
        made = [world.kept.get(f"{world.name}-tuned", [*key, one], partial(tuned, one)) for one in targets]
        signals = [ShadowSignals(inside, one["phi"]) for one in made]
        setting = f"4 fine-tuned from the target, {epochs} of {world.training.epochs} epochs"
        rows += told(setting, signals, float(np.mean([one["seconds"] for one in made])))
    features, classes = world.records.x[0].numel(), int(world.records.y.max()) + 1
    small = Architecture("stand-in", lambda: Mlp(features, classes, (24,)))

    def stand_ins() -> dict[str, Array]:
        job = TrainingJob(small, world.records, subsets, seeds, torch.device("cpu"))
        return {"phi": np.stack([phi_of(one, world.records) for one in train_many(job, world.training)])}

    made_small = world.kept.get(f"{world.name}-small", world.training.model_dump(mode="json"), stand_ins)
    signals = [ShadowSignals(inside, made_small["phi"])] * 4
    return rows + told("4 stand-ins of 24 units", signals, float(made_small["seconds"]))


SECTIONS: dict[str, Callable[[World], list[Row]]] = {
    "versions": versions,
    "power": power,
    "few": few,
    "privacy-meter": privacy_meter,
    "alone": alone,
    "masking": masking,
    "cheaper": cheaper,
}

HELD_OUT = "held-out"  # `few` and `alone` on the worlds on which nothing was chosen


def main() -> None:
    from membership_checks import CHECKS  # it takes digits alone

    options = parser(__doc__ or "")
    names = [*SECTIONS, HELD_OUT, *CHECKS]
    options.add_argument("--only", nargs="+", choices=names, help="these sections")
    options.add_argument("--keep", type=Path, default=None, help="folder of models and margins, to go on from")
    given = options.parse_args()
    torch.set_num_threads(1)
    kept, began = Kept(given.keep), time.process_time()
    worlds = [*([] if given.data is None else [location(given.data, kept)]), digits(kept)]
    rows: list[Row] = []
    for name in given.only or names:
        if name == HELD_OUT:
            others = [] if given.data is None else held_out(given.data, kept)
            found = [row for one in others for row in (*few(one), *alone(one))]
        else:
            of_world = name in SECTIONS
            found = [row for world in worlds for row in SECTIONS[name](world)] if of_world else CHECKS[name](kept)
        rows += [Row(f"{name}, {row.name}", *(getattr(row, key) for key in FIELDS)) for row in found]
        print(f"{name}: done after {time.process_time() - began:.0f} CPU s", flush=True)
    publish(rows, given.json)


FIELDS = ("setting", "ours", "unit", "peer", "target", "better", "apart")

if __name__ == "__main__":
    main()
