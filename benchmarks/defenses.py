"""What defenses buy against the attacker who knows them, and what they cost: digits, means over seeds.

    python benchmarks/defenses.py [--only SECTION ...] [--seeds N] [--json FILE]

`training`: PGD, TRADES and single-step adversarial training; int4 after it. `pruning`: 80 and 90 % pruned, fine-tuned
on clean and on adversarial records, and by scores learnt under attack. `regularization`: membership by shadow models
trained with the regulariser. `outputs`: rounded scores against extraction, labels only and stochastic rounding against
evasion. `cost`: adversarial training by the plain passes that it makes. Robust accuracy: PGD with 40 steps, two starts,
on the first 250 test records.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from contract import Row, parser, publish
from torch import nn

from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.defense import TrainingDefense
from crushproof.targets.data.digits import load_digits
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.seeds import derive
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import digits_cnn
from crushproof.training.trainer import BuiltinTrainer

DATA = load_digits()
assert DATA.members is not None
MEMBERS, OTHERS, BOUNDS = DATA.members, DATA.non_members, DATA.bounds
ATTACKED, EPSILON = OTHERS.take(torch.arange(250)), 0.1
PLAIN = Training(epochs=12)
TUNE: dict[str, Any] = {"epochs": 4, "learning_rate": 4e-3}
ATTACK = {"epsilon": EPSILON, "steps": 3}
INT4 = Quantize(weight_bits=4, activations="float")
CPU = torch.device("cpu")
NET = Architecture("digits_cnn", digits_cnn)


def fitted(defense: TrainingDefense | None, seed: int) -> nn.Module:
    plain = BuiltinTrainer(PLAIN)
    trainer = plain if defense is None else defense.trainer(plain, BOUNDS)
    return trainer.fit(TrainingJob.of_one(NET, MEMBERS, derive(seed, "benchmark"), CPU))[0]


def right(module: nn.Module) -> float:
    return accuracy(TorchTarget(module), OTHERS.x, OTHERS.y)


def robust(module: nn.Module, through: nn.Module | None = None, norm: str = "linf", epsilon: float = EPSILON) -> float:
    """Of `module` under what was crafted on `through`: itself, or what its attacker differentiates."""
    target = TorchTarget(module)
    stands = target.logits(ATTACKED.x).argmax(1) == ATTACKED.y
    for start in (0, 1):
        found = craft(through or module, ATTACKED, [epsilon], norm, BOUNDS, seed=start)[epsilon]  # type: ignore[arg-type]  # a Norm
        stands &= target.logits(found).argmax(1) == ATTACKED.y
    return float(stands.float().mean())


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds (t)."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    half = 0.0 if n < 2 else float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def row(name: str, values: list[float], unit: str, target: float | None = None, better: str = "higher") -> Row:
    setting = f"{interval(values)}, {len(values)} seeds"
    return Row(name, setting, statistics.fmean(values), unit, target=target, better=better)  # type: ignore[arg-type]  # one of two words


def minus(one: list[float], other: list[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


PARENTS: dict[int, nn.Module] = {}


def training(seeds: range) -> list[Row]:
    defenses: dict[str, AdversarialTraining | None] = {
        "plain": None,
        "pgd": AdversarialTraining(epsilon=EPSILON, steps=3),
        "trades": AdversarialTraining(epsilon=EPSILON, method="trades"),
        "fast": AdversarialTraining(epsilon=EPSILON, steps=1),
        "pgd l2": AdversarialTraining(epsilon=0.5, norm="l2"),
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in defenses}
    for seed in seeds:
        for name, defense in defenses.items():
            module = fitted(defense, seed)
            figures = {"accuracy": right(module), "robust": robust(module)}
            if name in ("plain", "pgd l2"):
                figures["robust l2 .5"] = robust(module, norm="l2", epsilon=0.5)
            if name in ("pgd", "trades"):
                figures["int4"] = robust(INT4.apply(module, MEMBERS, BOUNDS, seed=seed))
            if name == "pgd":
                PARENTS[seed] = module
            for key, value in figures.items():
                found[name].setdefault(key, []).append(value)
        say(f"training, seed {seed}: {found}")
    plain = found["plain"]
    rows = [row(f"{name}: {key}", values, "share") for name, own in found.items() for key, values in own.items()]
    for name in ("pgd", "trades"):
        own = found[name]
        rows += [
            row(f"{name}: robust accuracy gained", minus(own["robust"], plain["robust"]), "share", 0.30),
            row(f"{name}: accuracy lost", minus(plain["accuracy"], own["accuracy"]), "share", 0.02, "lower"),
            row(f"{name}: robust accuracy lost by int4", minus(own["robust"], own["int4"]), "share", 0.05, "lower"),
        ]
    return rows


def pruning(seeds: range) -> list[Row]:
    found: dict[str, list[float]] = {}
    for seed in seeds:
        parent = PARENTS.get(seed) or fitted(AdversarialTraining(epsilon=EPSILON, steps=3), seed)
        for sparsity in (0.8, 0.9):
            pruned = {"kind": "prune", "sparsity": sparsity, "scope": "layer"}
            attacked = {**TUNE, "adversarial": ATTACK}
            for name, recipe in {
                "clean": {**pruned, "fine_tune": TUNE},
                "adversarial": {**pruned, "fine_tune": attacked},
                "taylor under attack": {**pruned, "fine_tune": attacked, "importance": "adversarial-taylor"},
                "scores learnt": {**pruned, "fine_tune": attacked, "importance": "adversarial-scores"},
            }.items():
                module = RECIPES.parse(recipe).apply(parent, MEMBERS, BOUNDS, seed=seed)
                found.setdefault(f"{sparsity:.0%} {name}: robust", []).append(robust(module))
                found.setdefault(f"{sparsity:.0%} {name}: accuracy", []).append(right(module))
        say(f"pruning, seed {seed}: {found}")
    rows = [row(name, values, "share") for name, values in found.items()]
    for share, learnt in (("80%", 0.0), ("90%", 0.03)):
        clean, adversarial, scores = (
            found[f"{share} {name}: robust"] for name in ("clean", "adversarial", "scores learnt")
        )
        rows += [
            row(f"{share}: adversarial fine-tuning over clean", minus(adversarial, clean), "share", 0.05),
            row(f"{share}: scores learnt over magnitude", minus(scores, adversarial), "share", learnt),
        ]
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


SECTIONS: dict[str, Callable[[range], list[Row]]] = {"training": training, "pruning": pruning}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options.add_argument("--seeds", type=int, default=5)
    given = options.parse_args()
    torch.set_num_threads(1)
    publish([line for name in given.only for line in SECTIONS[name](range(given.seeds))], given.json)


if __name__ == "__main__":
    main()
