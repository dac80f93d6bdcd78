"""What defenses buy against the attacker who knows them, and what they cost: digits, means over seeds.

    python benchmarks/defenses.py [--net cnn] [--only SECTION ...] [--seeds N] [--json FILE]

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
from functools import partial
from typing import Any

import numpy as np
import torch
from contract import Row, alternate, parser, publish
from torch import nn

from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.attacks.extraction.extract import extract
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import PopulationPlan, masks
from crushproof.attacks.membership.scoring.scores import lira
from crushproof.attacks.membership.signals import phi_of
from crushproof.attacks.statistics.roc import placements, tpr_at_fpr
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES
from crushproof.compression.wrapping import behind
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.defense import TrainingDefense
from crushproof.defenses.limited_answers import LimitedAnswers
from crushproof.defenses.regularization import Regularization
from crushproof.defenses.stochastic_rounding import ExpectationTwin, StochasticRounding
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.seeds import derive
from crushproof.training.adversarial import perturbed
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train
from crushproof.training.networks import Mlp, digits_cnn
from crushproof.training.trainer import BuiltinTrainer

DATA = load_digits()
assert DATA.members is not None
MEMBERS, OTHERS, BOUNDS = DATA.members, DATA.non_members, DATA.bounds
ATTACKED, EPSILON = OTHERS.take(torch.arange(250)), 0.1
CNN = Architecture("digits_cnn", digits_cnn), Training(epochs=12), {"epochs": 4, "learning_rate": 4e-3}
MLP = Architecture("mlp", lambda: Mlp(64, 10, (128, 64))), Training(epochs=40), {"epochs": 15, "learning_rate": 3e-3}
ATTACK = {"epsilon": EPSILON, "steps": 3}
INT4 = Quantize(weight_bits=4, activations="float")
CPU = torch.device("cpu")
NET, PLAIN, TUNE = MLP


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


REGULARIZED: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing .1": {"label_smoothing": 0.1},
    "mixup 1": {"mixup": 1.0},
    "early stopping 10": {"early_stopping": 10},
    "weight decay .5": {"weight_decay": 0.5},
    "gradient penalty .05": {"gradient_penalty": 0.05},
    "RelaxLoss .3": {"relax_loss": 0.3},
}
SHADOWS, HALF = 16, 600


def regularization(seeds: range) -> list[Row]:
    """Membership of a small net that is trained for long; the shadows are trained with the same regulariser."""
    records = Records(torch.cat([MEMBERS.x, OTHERS.x])[: 2 * HALF], torch.cat([MEMBERS.y, OTHERS.y])[: 2 * HALF])
    left = Records(OTHERS.x[-400:], OTHERS.y[-400:])
    n, kind = len(records), Architecture("mlp", lambda: Mlp(64, 10, (48,)))
    inside = np.concatenate([masks(n, SHADOWS, 1), masks(n, 2 * len(seeds), 2)[::2]])
    draws = tuple(derive(0, "regularization", model) for model in range(len(inside)))
    plan = PopulationPlan(records, n, np.zeros(n, dtype=bool), np.arange(n), inside, draws)
    plain, found = BuiltinTrainer(Training(epochs=60)), dict[str, dict[str, list[float]]]()
    unaware: ShadowSignals | None = None
    for name, fields in REGULARIZED.items():
        trainer = Regularization.model_validate(fields).trainer(plain, BOUNDS) if fields else plain
        models = plan.fit(trainer, kind, first=0, last=len(inside), device=CPU)
        phi = np.stack([phi_of(TorchTarget(model), records) for model in models])
        shadows, own = ShadowSignals(inside[:SHADOWS], phi[:SHADOWS]), found.setdefault(name, {})
        unaware = unaware or shadows
        for model, margins, truth in zip(models[SHADOWS:], phi[SHADOWS:], inside[SHADOWS:], strict=True):
            scores = lira(margins[None].astype(np.float64), shadows)[0]
            own.setdefault("AUC", []).append(float(placements(scores, truth)[0].mean()))
            naive = lira(margins[None].astype(np.float64), unaware)[0]
            own.setdefault("AUC, plain shadows", []).append(float(placements(naive, truth)[0].mean()))
            own.setdefault("TPR at 1 %", []).append(tpr_at_fpr(scores, truth, 0.01))
            own.setdefault("accuracy", []).append(accuracy(TorchTarget(model), left.x, left.y))
        say(f"regularization, {name}: {own}")
    rows = [row(f"{name}: {key}", values, "share") for name, own in found.items() for key, values in own.items()]
    leak = minus(found["label smoothing .1"]["AUC"], found["plain"]["AUC"])
    return [*rows, row("label smoothing: AUC gained by the attacker", leak, "share", 0.0)]


def outputs(seeds: range) -> list[Row]:
    """Rounded scores against a thief, labels only against one who differentiates, random rounding under expectation."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed in seeds:
        dense = fitted(None, seed)
        for name, defense in {
            "scores": None,
            "rounded to .1": LimitedAnswers(show="rounded", decimals=1),
            "labels": LimitedAnswers(),
        }.items():
            model = INT4 if defense is None else defense.recipes(INT4)[0]
            module = model.apply(dense, MEMBERS, BOUNDS, seed=seed)
            copied = extract(module, DATA.attacker.x, architecture=NET, budget=300, seed=seed)
            note(f"{name}: fidelity of a copy", copied.fidelity(DATA.evaluation.x))
            note(f"{name}: robust, naive", robust(module))
            note(f"{name}: robust, behind the layer", robust(module, behind(module)))
        shipped, *others = (
            one.apply(dense, MEMBERS, BOUNDS, seed=seed) for one in StochasticRounding(draws=5).recipes(INT4)
        )
        note("stochastic rounding: robust, the draw itself", robust(shipped))
        note("stochastic rounding: robust, under expectation", robust(shipped, ExpectationTwin(others)))
        say(f"outputs, seed {seed}: {found}")
    rows = [row(name, values, "share") for name, values in found.items()]
    plain = found["scores: robust, behind the layer"]
    for name in ("rounded to .1", "labels"):
        lost = minus(found["scores: fidelity of a copy"], found[f"{name}: fidelity of a copy"])
        rows.append(row(f"{name}: fidelity taken from a thief", lost, "share", 0.05, "lower"))
        gain = minus(found[f"{name}: robust, behind the layer"], plain)
        rows.append(row(f"{name}: robust accuracy gained", gain, "share", 0.05, "lower"))
    gain = minus(found["stochastic rounding: robust, under expectation"], plain)
    return [*rows, row("stochastic rounding: gained under expectation", gain, "share", 0.05, "lower")]


def cost(seeds: range) -> list[Row]:
    """Adversarial training of `steps` ascents makes steps + 1 forward and backward passes of each batch."""
    rows, module = [], digits_cnn()
    for steps in (1, 2, 7):
        defense = AdversarialTraining(epsilon=EPSILON, steps=steps)
        plain, once = Training(epochs=steps + 1), Training(epochs=1)
        objective = perturbed(once, defense, BOUNDS)
        ours, theirs = alternate(
            partial(train, module, MEMBERS, once, seed=0, objective=objective),
            partial(train, module, MEMBERS, plain, seed=0),
            rounds=3 if steps < 7 else 1,
        )
        rows.append(Row("cost", f"PGD-{steps}, against {steps + 1} plain passes", ours, "CPU s", theirs, 1.5))
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


SECTIONS: dict[str, Callable[[range], list[Row]]] = {
    "training": training,
    "pruning": pruning,
    "regularization": regularization,
    "outputs": outputs,
    "cost": cost,
}


def main() -> None:
    global NET, PLAIN, TUNE
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--net", choices=["mlp", "cnn"], default="mlp")
    given = options.parse_args()
    if given.net == "cnn":
        NET, PLAIN, TUNE = CNN
    torch.set_num_threads(1)
    publish([line for name in given.only for line in SECTIONS[name](range(given.seeds))], given.json)


if __name__ == "__main__":
    main()
