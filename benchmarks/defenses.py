"""What defenses buy against the attacker who knows them, and what they cost: digits or MNIST, means over seeds.

    python benchmarks/defenses.py [--net mlp|cnn|mnist] [--only SECTION ...] [--seeds N] [--keep FOLDER] [--json FILE]

`training`: PGD, TRADES and single-step adversarial training; int4 after it. `pruning`: 80 and 90 % pruned, fine-tuned
on clean and on adversarial records, and by scores learnt under attack. `membership`: regularisation, DP-SGD and
distillation on public records, by shadow models trained alike. `outputs`: rounded scores against extraction, labels
only and stochastic rounding against evasion. `cost`: adversarial training by the plain passes that it makes. Robust
accuracy: PGD with 40 steps, two starts, on the first 250 test records.

FOLDER keeps a JSON for each row and seed, and trained parents: what is there is not measured again, so a run can be cut
off anywhere and go on. Seeds that are measured together are trained side by side, equal up to float rounding. `mnist`
takes mnist.npz from the folder given as `--data`, and leaves out `membership`, which is asked of few records.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from contract import Row, alternate, parser, publish
from defense_worlds import CPU, Figures, World, world
from torch import nn

from crushproof.attacks.extraction.extract import extract
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import PopulationPlan, masks
from crushproof.attacks.membership.scoring.scores import lira
from crushproof.attacks.membership.signals import phi_of
from crushproof.attacks.statistics.roc import area, tpr_at_fpr
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.recipe import RECIPES, work_of
from crushproof.compression.wrapping import behind
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.dp_sgd import DpSgd, DpSgdTrainer
from crushproof.defenses.limited_answers import LimitedAnswers
from crushproof.defenses.public_distillation import PublicDistillation, PublicTrainer
from crushproof.defenses.regularization import Regularization
from crushproof.defenses.stochastic_rounding import ExpectationTwin, StochasticRounding
from crushproof.targets.data.records import Records
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.seeds import derive
from crushproof.training.adversarial import perturbed
from crushproof.training.architecture import Architecture
from crushproof.training.lessons import together
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer, Trainer

INT4 = Quantize(weight_bits=4, activations="float")


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds (t)."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    half = 0.0 if n < 2 else float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]" if n > 1 else f"{mean:.3f}"


def row(name: str, values: list[float], unit: str, target: float | None = None, better: str = "higher") -> Row:
    setting = f"{interval(values)}, {len(values)} seeds"
    return Row(name, setting, statistics.fmean(values), unit, target=target, better=better)  # type: ignore[arg-type]  # one of two words


def minus(one: list[float], other: list[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def rows_of(found: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    return [row(f"{name}: {key}", values, "share") for name, own in found.items() for key, values in own.items()]


def training(own: World, seeds: range) -> list[Row]:
    def measure(name: str, new: list[int]) -> list[Figures]:
        figures = []
        for seed, module in zip(new, own.trained(name, new), strict=True):
            figures.append({"accuracy": own.right(module), "robust": own.robust(module)})
            if name in ("plain", "pgd l2"):
                figures[-1]["robust l2"] = own.robust(module, norm="l2", epsilon=5 * own.epsilon)
            if name in ("pgd", "trades"):
                figures[-1]["int4"] = own.robust(INT4.apply(module, own.members, own.bounds, seed=seed))
        return figures

    found = {name: own.measured(f"training {name}", seeds, partial(measure, name)) for name in own.defenses}
    rows, plain = rows_of(found), found["plain"]
    for name in ("pgd", "trades"):
        one = found[name]
        rows += [
            row(f"{name}: robust accuracy gained", minus(one["robust"], plain["robust"]), "share", 0.30),
            row(f"{name}: accuracy lost", minus(plain["accuracy"], one["accuracy"]), "share", 0.02, "lower"),
            row(f"{name}: robust accuracy lost by int4", minus(one["robust"], one["int4"]), "share", 0.05, "lower"),
        ]
    return rows


def pruning(own: World, seeds: range) -> list[Row]:
    attacked = {**own.tune, "adversarial": {"epsilon": own.epsilon, "steps": 3}}
    ways = {
        "clean": {"fine_tune": own.tune},
        "adversarial": {"fine_tune": attacked},
        "taylor under attack": {"fine_tune": attacked, "importance": "adversarial-taylor"},
        "scores learnt": {"fine_tune": attacked, "importance": "adversarial-scores"},
    }

    def measure(sparsity: float, way: str, new: list[int]) -> list[Figures]:
        recipe = RECIPES.parse({"kind": "prune", "sparsity": sparsity, "scope": "layer", **ways[way]})
        parents = zip(new, own.trained("pgd", new), strict=True)
        made = together([work_of(recipe, parent, own.members, own.bounds, seed=seed) for seed, parent in parents])
        return [{"robust": own.robust(module), "accuracy": own.right(module)} for module in made]

    found = {
        f"{sparsity:.0%} {way}": own.measured(f"pruning {sparsity} {way}", seeds, partial(measure, sparsity, way))
        for sparsity in (0.8, 0.9)
        for way in ways
    }
    rows = rows_of(found)
    for share, learnt in (("80%", 0.0), ("90%", 0.03)):
        clean, adversarial, scores = (
            found[f"{share} {way}"]["robust"] for way in ("clean", "adversarial", "scores learnt")
        )
        rows += [
            row(f"{share}: adversarial fine-tuning over clean", minus(adversarial, clean), "share", 0.05),
            row(f"{share}: scores learnt over magnitude", minus(scores, adversarial), "share", learnt),
        ]
    return rows


SHADOWS, HALF, LEFT = 16, 600, 200
LONG = BuiltinTrainer(Training(epochs=60))
ON_MEMBERS, ON_PUBLIC, PRIVATE = "distilled on members", "distilled on public records", "DP-SGD, epsilon 8"
REGULARIZED = {
    "label smoothing .1": Regularization(label_smoothing=0.1),
    "mixup 1": Regularization(mixup=1.0),
    "early stopping 10": Regularization(early_stopping=10),
    "weight decay .5": Regularization(weight_decay=0.5),
    "gradient penalty .05": Regularization(gradient_penalty=0.05),
    "RelaxLoss .3": Regularization(relax_loss=0.3),
}
KINDS = ("plain", *REGULARIZED, PRIVATE, ON_MEMBERS, ON_PUBLIC)


def membership(own: World, seeds: range) -> list[Row]:
    """Of a small net that is trained for long, on 600 of 1,200 records; the shadows are trained as the target is."""
    everybody = Records(torch.cat([own.members.x, own.others.x]), torch.cat([own.members.y, own.others.y]))
    records, n = everybody.take(torch.arange(2 * HALF)), 2 * HALF
    public, left = everybody.x[2 * HALF : -LEFT], everybody.take(torch.arange(len(everybody) - LEFT, len(everybody)))
    net = Architecture("mlp", lambda: Mlp(64, 10, (48,)))

    def models(name: str, inside: np.ndarray, draws: Sequence[int]) -> list[nn.Module]:  # type: ignore[type-arg]  # of bools
        plan = PopulationPlan(records, n, np.zeros(n, dtype=bool), np.arange(n), inside, tuple(draws))
        trainer: Trainer = LONG
        if name in REGULARIZED:
            trainer = REGULARIZED[name].trainer(LONG, own.bounds)
        elif name == PRIVATE:
            trainer = DpSgdTrainer(DpSgd(epochs=30))
        elif name == ON_PUBLIC:
            trainer = PublicTrainer(PublicDistillation(), LONG, public)
        made = plan.fit(trainer, net, first=0, last=len(inside), device=CPU)
        if name != ON_MEMBERS:
            return made
        student = RECIPES.parse({"kind": "distill", "width": 1, "alpha": 1, "training": LONG.training})
        pupils = zip(range(len(made)), made, draws, strict=True)
        return together(
            [work_of(student, one, records.take(plan.subset(at)), own.bounds, seed=draw) for at, one, draw in pupils]
        )

    @cache
    def shadows(name: str) -> ShadowSignals:
        inside = masks(n, SHADOWS, 1)
        made = models(name, inside, [derive(0, "shadow", at) for at in range(SHADOWS)])
        return ShadowSignals(inside, np.stack([phi_of(TorchTarget(one), records) for one in made]))

    def measure(name: str, new: list[int]) -> list[Figures]:
        inside = masks(n, 2 * max(new) + 2, 2)[::2][new]
        figures = []
        for model, truth in zip(models(name, inside, [derive(seed, "target") for seed in new]), inside, strict=True):
            margins = phi_of(TorchTarget(model), records)[None].astype(np.float64)
            scores, naive = (lira(margins, shadows(one))[0] for one in (name, "plain"))
            figures.append(
                {
                    "AUC": area(scores, truth),
                    "AUC, plain shadows": area(naive, truth),
                    "TPR at 1 %": tpr_at_fpr(scores, truth, 0.01),
                    "accuracy": accuracy(TorchTarget(model), left.x, left.y),
                }
            )
        return figures

    found = {name: own.measured(f"membership {name}", seeds, partial(measure, name)) for name in KINDS}
    areas = {name: figures["AUC"] for name, figures in found.items()}
    smoothing = minus(areas["label smoothing .1"], areas["plain"])
    return [
        *rows_of(found),
        row("label smoothing: AUC gained by the attacker", smoothing, "share", 0.0),
        row(f"{PRIVATE}: accuracy asked for", found[PRIVATE]["accuracy"], "share", 0.88),
        row(f"{PRIVATE}: AUC asked for", areas[PRIVATE], "share", 0.57, "lower"),
        row(f"{ON_PUBLIC}: AUC below that of members", minus(areas[ON_MEMBERS], areas[ON_PUBLIC]), "share", 0.0),
    ]


def outputs(own: World, seeds: range) -> list[Row]:
    """Rounded scores against a thief, labels only against one who differentiates, random rounding under expectation."""
    queries, judged = own.others.x[250:650], own.others.x[650:]
    answers = {
        "scores": None,
        "rounded to .1": LimitedAnswers(show="rounded", decimals=1),
        "labels": LimitedAnswers(),
    }
    rounding = "stochastic rounding"

    def measure(name: str, new: list[int]) -> list[Figures]:
        figures = []
        for seed, dense in zip(new, own.trained("plain", new), strict=True):
            if name == rounding:
                shipped, *others = (
                    one.apply(dense, own.members, own.bounds, seed=seed)
                    for one in StochasticRounding(draws=5).recipes(INT4)
                )
                through = ExpectationTwin(others)
                figures.append({"the draw itself": own.robust(shipped), "known": own.robust(shipped, through)})
                continue
            defense = answers[name]
            recipe = INT4 if defense is None else defense.recipes(INT4)[0]
            module = recipe.apply(dense, own.members, own.bounds, seed=seed)
            copied = extract(module, queries, architecture=own.net, budget=300, seed=seed)
            naive, known = own.robust(module), own.robust(module, behind(module))
            figures.append({"fidelity of a copy": copied.fidelity(judged), "naive": naive, "known": known})
        return figures

    found = {name: own.measured(f"outputs {name}", seeds, partial(measure, name)) for name in (*answers, rounding)}
    plain, rows = found["scores"], rows_of(found)
    for name in ("rounded to .1", "labels"):
        lost = minus(plain["fidelity of a copy"], found[name]["fidelity of a copy"])
        rows.append(row(f"{name}: fidelity taken from a thief", lost, "share", 0.05, "lower"))
    for name in ("rounded to .1", "labels", rounding):
        gain = minus(found[name]["known"], plain["known"])
        rows.append(row(f"{name}: robust accuracy gained where it is known", gain, "share", 0.05, "lower"))
    return rows


def cost(own: World, seeds: range) -> list[Row]:
    """Adversarial training of `steps` ascents makes steps + 1 forward and backward passes of each batch."""
    rows, module, records = [], own.net.fresh(0), own.members.take(torch.arange(898))
    for steps in (1, 2, 7):
        defense = AdversarialTraining(epsilon=own.epsilon, steps=steps)
        once = Training(epochs=1)
        ours, theirs = alternate(
            partial(train, module, records, once, seed=0, objective=perturbed(once, defense, own.bounds)),
            partial(train, module, records, Training(epochs=steps + 1), seed=0),
        )
        rows.append(Row("cost", f"PGD-{steps}, against {steps + 1} plain passes", ours, "CPU s", theirs, 1.5))
    return rows


SECTIONS: dict[str, Callable[[World, range], list[Row]]] = {
    "training": training,
    "pruning": pruning,
    "membership": membership,
    "outputs": outputs,
    "cost": cost,
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--net", choices=["mlp", "cnn", "mnist"], default="mlp")
    options.add_argument("--keep", type=Path, default=None, help="folder for what is measured; a later run goes on")
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    own = world(given.net, given.data, given.keep)
    asked = [name for name in given.only if not (name == "membership" and given.net == "mnist")]
    publish([line for name in asked for line in SECTIONS[name](own, range(given.seeds))], given.json)


if __name__ == "__main__":
    main()
