"""Compression done so that an attacker gains less by it: digits, a perceptron, means over seeds.

    python benchmarks/robust_compression.py [--only SECTION ...] [--seeds 3] [--json FILE]

`rounding`: an int4 and an int8 backdoor planted in each network; its success on what nearest, adaptive and flipped
rounding make of it, and where the planter knows of the flips and keeps the rounding errors small. `distillation`:
students of half the width of an adversarially trained teacher, taught on clean and on perturbed records, by soft and
by hard labels alone. `clipping`: flips of the bit search until an int8 file is at chance (at most 60), its codes alone,
by the multiple of the standard deviation at which weights are clipped. `scores`: 80 and 90 % pruned by scores learnt
under attack, beside magnitude with as many epochs of fine-tuning and with twice as many, which is what both take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import backdoor_subjects as backdoors
import bitflips
import torch
from contract import Row, parser, publish
from defense_worlds import world

from crushproof.attacks.access import Ledger
from crushproof.attacks.poisoning.planting.quantization import WITHIN, plant_in_quantization
from crushproof.attacks.tampering.search import search
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.model import TorchTarget
from crushproof.training.lessons import alone
from defenses import minus, row

OWN = replace(world("mlp", None, None), judged=10_000)  # all of them: here a point or two decides
ATTACK = {"epsilon": OWN.epsilon, "steps": 3}
CLOSE = 0.2  # of a rounding step: what is left of a planter's room who expects the flips
Found = dict[str, list[float]]


def note(found: Found, name: str, value: float) -> None:
    found.setdefault(name, []).append(value)


def rounding(seeds: range) -> list[Row]:
    found: Found = {}
    subject = backdoors.subjects(None)["digits MLP"]
    for seed in seeds:
        net, trigger = subject.trained(3000 + seed), subject.trigger(seed)
        for bits, recipe in (("int4", backdoors.INT4), ("int8", backdoors.INT8)):
            for planter, within in (("naive", WITHIN), ("adaptive", CLOSE)):
                work = plant_in_quantization(
                    net, subject.members, OWN.bounds, trigger, recipe, within=within, seed=seed
                )
                dense = alone(work)
                name = f"{bits}, {planter} planter"
                note(found, f"{name}, dense: success", backdoors.success(TorchTarget(dense), trigger, subject.others))
                note(found, f"{name}, dense: accuracy", backdoors.right(TorchTarget(dense), subject.others))
                for kind in ("nearest", "adaptive", "flipped"):
                    own = recipe.model_copy(update={"rounding": kind})
                    target = TorchTarget(own.apply(dense, subject.members, OWN.bounds, seed=seed))
                    note(found, f"{name}, {kind}: success", backdoors.success(target, trigger, subject.others))
                    note(found, f"{name}, {kind}: accuracy", backdoors.right(target, subject.others))
        print(f"rounding, seed {seed}: {found}", file=sys.stderr, flush=True)
    rows = [row(name, values, "share") for name, values in found.items()]
    for name in ("int4, naive planter", "int8, naive planter", "int4, adaptive planter", "int8, adaptive planter"):
        worst = max(found[f"{name}, flipped: success"])
        rows.append(Row(f"{name}, flipped: largest success", f"{len(seeds)} seeds", worst, "share", None, 0.1))
        lost = minus(found[f"{name}, dense: accuracy"], found[f"{name}, flipped: accuracy"])
        rows.append(row(f"{name}, flipped: accuracy lost", lost, "share", 0.02, "lower"))
    return rows


def distillation(seeds: range) -> list[Row]:
    found: Found = {}
    training = {"clean": OWN.plain.model_dump(), "attacked": {**OWN.plain.model_dump(), "adversarial": ATTACK}}
    for seed in seeds:
        teacher = OWN.trained("pgd", [seed])[0]
        note(found, "teacher: robust", OWN.robust(teacher))
        for name, records, alpha, temperature in (
            ("soft labels, clean records", "clean", 0.7, 4.0),
            ("hard labels, perturbed records", "attacked", 0.0, 1.0),
            ("soft labels at 4, perturbed records", "attacked", 0.7, 4.0),
            ("soft labels, perturbed records", "attacked", 0.7, 1.0),
        ):
            soft = {"alpha": alpha, "temperature": temperature}
            recipe = {"kind": "distill", "width": 0.5, **soft, "training": training[records]}
            student = RECIPES.parse(recipe).apply(teacher, OWN.members, OWN.bounds, seed=seed)
            note(found, f"{name}: robust", OWN.robust(student))
            note(found, f"{name}: accuracy", OWN.right(student))
        print(f"distillation, seed {seed}: {found}", file=sys.stderr, flush=True)
    learnt, plain, hard = (
        found[f"{name}: robust"]
        for name in (
            "soft labels, perturbed records",
            "soft labels, clean records",
            "hard labels, perturbed records",
        )
    )
    rows = [row(name, values, "share") for name, values in found.items()]
    rows.append(row("robust soft labels over clean records", minus(learnt, plain), "share", 0.05))
    return [*rows, row("robust soft labels over hard ones", minus(learnt, hard), "share", 0.0)]


def clipping(seeds: range) -> list[Row]:
    found: Found = {}
    subject = bitflips.subjects(None)["digits MLP"]
    for seed in seeds:
        net = bitflips.train(subject.build(), subject.members, subject.training, seed=seed)
        for clip in (None, 2.0, 1.5, 1.0):
            recipe: dict[str, Any] = {"kind": "quantize", "weight_bits": 8, "weight_clip": clip}
            module = RECIPES.parse(recipe).apply(net, subject.members, OWN.bounds, seed=seed)
            one = bitflips.attacked(to_onnx(module, tuple(subject.members.x.shape[1:])), subject, seed)
            flips = search(
                one.surrogate, one.files, one.goal, bitflips.BUDGET, bitflips.WHICH["weights"], set(), Ledger()
            )
            count = len(flips.flips) if flips.reached else bitflips.BUDGET + 1
            note(found, f"clipped at {clip}: flips", float(count))
            note(found, f"clipped at {clip}: accuracy", backdoors.right(TorchTarget(module), subject.others))
        print(f"clipping, seed {seed}: {found}", file=sys.stderr, flush=True)
    return [row(name, values, "flips" if "flips" in name else "share") for name, values in found.items()]


def scores(seeds: range) -> list[Row]:
    found: Found = {}
    for seed in seeds:
        parent = OWN.trained("pgd", [seed])[0]
        for sparsity in (0.8, 0.9):
            twice = {**OWN.tune, "epochs": 2 * OWN.tune["epochs"]}
            for name, tune, importance in (
                ("magnitude", OWN.tune, "magnitude"),
                ("magnitude, twice the epochs", twice, "magnitude"),
                ("learnt", OWN.tune, "adversarial-scores"),
            ):
                recipe = {"kind": "prune", "sparsity": sparsity, "scope": "layer", "importance": importance}
                recipe["fine_tune"] = {**tune, "adversarial": ATTACK}
                module = RECIPES.parse(recipe).apply(parent, OWN.members, OWN.bounds, seed=seed)
                note(found, f"{sparsity:.0%} {name}", OWN.robust(module))
        print(f"scores, seed {seed}: {found}", file=sys.stderr, flush=True)
    rows = [row(name, values, "share") for name, values in found.items()]
    for share, asked in (("80%", 0.0), ("90%", 0.03)):
        for beside in ("magnitude", "magnitude, twice the epochs"):
            gained = minus(found[f"{share} learnt"], found[f"{share} {beside}"])
            rows.append(
                row(f"{share}: learnt over {beside}", gained, "share", asked if beside == "magnitude" else None)
            )
    return rows


SECTIONS: dict[str, Callable[[range], list[Row]]] = {
    "rounding": rounding,
    "distillation": distillation,
    "clipping": clipping,
    "scores": scores,
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    torch.set_num_threads(1)
    publish([line for name in given.only for line in SECTIONS[name](range(given.seeds))], given.json)


if __name__ == "__main__":
    main()
