"""What goes before or behind a deployed model, against who knows it and who does not: digits, means over seeds.

    python benchmarks/wrappers.py [--only SECTION ...] [--seeds N] [--json FILE]

`inputs`: rounded and smoothed inputs, by their own gradients and straight through; noisy inputs, by who takes the model
without its noise, who averages over own draws, and who holds the file. Robust accuracy as in defenses.py. `answers`:
noise on answers against membership, by shadow models without noise, with noise of another seed, with the file's own,
and by the mean of 64 answers to neighbours of a record (of the shadows too). `votes`: majority vote under noise, by who
takes the model without it and who averages over noise that is new at every step, and what is certified of the same
records. `thieves`: copies from noisy answers, by as many queries of as many records, and of fewer whose neighbours'
answers are averaged. `streams`: whether a watcher calibrated on one honest client notices other honest clients, and a
thief by strategy, who spreads his queries over four names, or asks as many honest ones.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from contract import Row, parser, publish
from defense_worlds import world
from torch import Tensor, nn

from crushproof.attacks.extraction.asking.strategies import STRATEGIES
from crushproof.attacks.extraction.extract import extract
from crushproof.attacks.membership.averaging import NEIGHBOURS, Averaged, neighbourhood
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import PopulationPlan, masks
from crushproof.attacks.membership.scoring.scores import lira
from crushproof.attacks.membership.signals import phi_of
from crushproof.attacks.statistics.roc import area
from crushproof.audit.suite.attack_cells import true_gradients_of
from crushproof.compression.pruning.prune import Prune
from crushproof.compression.smoothed import SmoothedAnswers, softened
from crushproof.defenses.limited_answers import LimitedAnswers
from crushproof.defenses.noisy_inputs import NoisyInputs
from crushproof.defenses.randomized_smoothing import RandomizedSmoothing
from crushproof.defenses.stochastic_rounding import ExpectationTwin
from crushproof.defenses.transformed_inputs import TransformedInputs
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.targets.model import Target, TorchTarget
from crushproof.targets.seeds import derive
from crushproof.targets.serving.query_streams import Watcher
from crushproof.targets.serving.smoothed import Voted
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer
from defenses import HALF, INT4, SHADOWS, minus, row

CPU = torch.device("cpu")
OWN = world("mlp", None, None)
STOLEN, CERTIFIED, FAR = 288, 0.2, 0.5  # queries; L2 radii, that are certified and attacked
BUDGET, HONEST = 300, 300
FARTHER = 0.17  # beyond half a step of four levels, below which a black or white pixel is out of reach


def inputs(seeds: range) -> list[Row]:
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    transformed = {
        "4 levels": TransformedInputs(levels=4),
        "8 levels": TransformedInputs(levels=8),
        "median": TransformedInputs(smoothing="median"),
    }
    for seed in seeds:
        dense = OWN.trained("plain", [seed])[0]
        plain = INT4.apply(dense, OWN.members, OWN.bounds, seed=seed)
        note("none: robust", OWN.robust(plain))
        note(f"none: robust, eps {FARTHER}", OWN.robust(plain, epsilon=FARTHER))
        for name, defense in transformed.items():
            module = defense.recipes(INT4)[0].apply(dense, OWN.members, OWN.bounds, seed=seed)
            note(f"{name}: accuracy", OWN.right(module))
            note(f"{name}: robust, naive", OWN.robust(module, true_gradients_of(module)))
            note(f"{name}: robust, straight through", OWN.robust(module))
            if name == "4 levels":
                note(f"{name}: robust, straight through, eps {FARTHER}", OWN.robust(module, epsilon=FARTHER))
        for sigma in (0.1, 0.25):
            draws = NoisyInputs(sigma=sigma).recipes(INT4)
            shipped, *others = (one.apply(dense, OWN.members, OWN.bounds, seed=seed) for one in draws)
            inner: nn.Module = shipped.inner  # type: ignore[assignment]  # of a wrapper
            note(f"noise {sigma}: accuracy", OWN.right(shipped))
            note(f"noise {sigma}: robust, naive", OWN.robust(shipped, inner))
            note(f"noise {sigma}: robust, expectation", OWN.robust(shipped, ExpectationTwin(others)))
            note(f"noise {sigma}: robust, the draw itself", OWN.robust(shipped))
        print(f"inputs, seed {seed}: {found}", file=sys.stderr, flush=True)
    rows = [row(name, values, "share") for name, values in found.items()]
    knowing = ("8 levels: robust, straight through", "noise 0.1: robust, the draw itself")
    gained = {name: minus(found[name], found["none: robust"]) for name in knowing}
    return [*rows, *(row(f"{name}: gained", gain, "share", 0.05, "lower") for name, gain in gained.items())]


def averaging(target: Target, neighbours: int, *, seed: int) -> Averaged:
    step = neighbourhood(OWN.bounds, tuple(OWN.members.x.shape[1:]))
    assert step is not None
    return Averaged(target, OWN.bounds, step, neighbours, seed=seed)


def answers(seeds: range) -> list[Row]:
    records = Records(
        torch.cat([OWN.members.x, OWN.others.x])[: 2 * HALF], torch.cat([OWN.members.y, OWN.others.y])[: 2 * HALF]
    )
    n, kind = len(records), Architecture("mlp", lambda: Mlp(64, 10, (48,)))
    inside = np.concatenate([masks(n, SHADOWS, 1), masks(n, 2 * len(seeds), 2)[::2]])
    plan = PopulationPlan(
        records,
        n,
        np.zeros(n, dtype=bool),
        np.arange(n),
        inside,
        tuple(derive(0, "answers", model) for model in range(len(inside))),
    )
    models = plan.fit(BuiltinTrainer(Training(epochs=60)), kind, first=0, last=len(inside), device=CPU)
    plain = np.stack([phi_of(TorchTarget(model), records) for model in models])
    found: dict[str, list[float]] = {}

    def note(name: str, signals: np.ndarray, shadows: np.ndarray) -> None:
        known = ShadowSignals(inside[:SHADOWS], shadows)
        for margins, truth in zip(signals, inside[SHADOWS:], strict=True):
            scores = lira(margins[None].astype(np.float64), known)[0]
            found.setdefault(name, []).append(area(scores, truth))

    note("none: AUC", plain[SHADOWS:], plain[:SHADOWS])
    for noise in (1.0, 4.0):
        noisy, averaged, other = [], [], []
        for at, model in enumerate(models):
            for seed in (0, 1):
                (recipe,) = LimitedAnswers(show="noisy", noise=noise, noise_seed=seed).recipes(Prune(sparsity=0.01))
                target = TorchTarget(recipe.apply(model, records, OWN.bounds, seed=0))
                if seed == (at < SHADOWS):  # the attacker's own has another seed than the file
                    averaged.append(phi_of(averaging(target, NEIGHBOURS, seed=0), records))
                (other if seed else noisy).append(phi_of(target, records))
        own = np.stack(noisy)
        note(f"noise {noise:g}: AUC, shadows without it", own[SHADOWS:], plain[:SHADOWS])
        note(f"noise {noise:g}: AUC, other noise", own[SHADOWS:], np.stack(other[:SHADOWS]))
        note(f"noise {noise:g}: AUC, the file's noise", own[SHADOWS:], own[:SHADOWS])
        every = np.stack(averaged)
        note(f"noise {noise:g}: AUC, averaged over neighbours", every[SHADOWS:], every[:SHADOWS])
    rows = [row(name, values, "share") for name, values in found.items()]
    lost = minus(found["none: AUC"], found["noise 1: AUC, averaged over neighbours"])
    return [*rows, row("noise 1: AUC taken from who averages", lost, "share", 0.02, "lower")]


def votes(seeds: range) -> list[Row]:
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed in seeds:
        dense = OWN.trained("plain", [seed])[0]
        plain = INT4.apply(dense, OWN.members, OWN.bounds, seed=seed)
        note("none: robust, L2", OWN.robust(plain, norm="l2", epsilon=FAR))
        for sigma in (0.1, 0.25):
            (recipe,) = RandomizedSmoothing(sigma=sigma, samples=16).recipes(INT4)
            module = recipe.apply(dense, OWN.members, OWN.bounds, seed=seed)
            assert isinstance(module, SmoothedAnswers)
            voted = Voted(TorchTarget(module.inner), module.vote)
            labels, radii = voted.certified(OWN.attacked.x, samples=500)
            right = labels == OWN.attacked.y.numpy()
            note(f"vote {sigma}: accuracy", OWN.right(module))
            note(f"vote {sigma}: certified at L2 {CERTIFIED}", float((right & (radii >= CERTIFIED)).mean()))
            note(f"vote {sigma}: abstained on", float((labels < 0).mean()))
            note(f"vote {sigma}: robust, L2, naive", OWN.robust(module, module.inner, norm="l2", epsilon=FAR))
            knowing = softened(module.vote, module.inner)
            note(f"vote {sigma}: robust, L2, knowing", OWN.robust(module, knowing, norm="l2", epsilon=FAR))
        print(f"votes, seed {seed}: {found}", file=sys.stderr, flush=True)
    return [row(name, values, "share") for name, values in found.items()]


def thieves(seeds: range) -> list[Row]:
    found: dict[str, list[float]] = {}
    x = load_digits().attacker.x
    for seed in seeds:
        dense = OWN.trained("plain", [seed])[0]
        for noise in (1.0, 4.0):
            (recipe,) = LimitedAnswers(show="noisy", noise=noise).recipes(INT4)
            target = TorchTarget(recipe.apply(dense, OWN.members, OWN.bounds, seed=seed))
            for each in (1, 4):
                asked: Target = target if each == 1 else averaging(target, each, seed=seed)
                stolen = extract(asked, x, architecture=OWN.net, budget=STOLEN // each, seed=seed)
                name = f"noise {noise:g}: fidelity, {STOLEN // each} records, {each} answers each"
                agree = told(TorchTarget(stolen.module), OWN.others.x) == told(target, OWN.others.x)
                found.setdefault(name, []).append(float(agree.float().mean()))
    return [row(name, values, "share") for name, values in found.items()]


def streams(seeds: range) -> list[Row]:
    found: dict[str, list[float]] = {}
    for seed in seeds:
        data, target = load_digits(), TorchTarget(OWN.trained("plain", [seed])[0])
        order = torch.randperm(len(OWN.others.x), generator=torch.Generator().manual_seed(seed))
        honest, padding, client = OWN.others.x[order].split([HONEST, HONEST, len(order) - 2 * HONEST])
        below = Watcher.calibrated(honest, told(target, honest)).below

        def flagged(name: str, x: Tensor, clients: int = 1, of: TorchTarget = target, limit: float = below) -> None:
            watcher, labels = Watcher(limit), told(of, x)
            for at in range(clients):
                watcher.see(str(at), x[at::clients], labels[at::clients])
            seen = any(watcher.noticed(str(at)) is not None for at in range(clients))
            found.setdefault(name, []).append(float(seen))

        for number in range(5):
            stream = torch.Generator().manual_seed(1000 * seed + number)
            flagged("honest client flagged", client[torch.randperm(len(client), generator=stream)])
        for strategy in STRATEGIES:
            stolen = extract(target, data.attacker.x, architecture=OWN.net, budget=BUDGET, seed=seed, strategy=strategy)
            found.setdefault(f"{strategy}: fidelity", []).append(stolen.fidelity(data.evaluation.x))
            flagged(f"{strategy}: noticed", stolen.queries)
            if strategy == "jacobian":
                mixed = torch.stack([stolen.queries, padding], 1).flatten(0, 1)
                flagged("jacobian, a honest query after each: noticed", mixed)
                flagged("jacobian, spread over 4 names: noticed", stolen.queries, 4)
        print(f"streams, seed {seed}: {found}", file=sys.stderr, flush=True)
    rows = [row(name, values, "share") for name, values in found.items()]
    wanted = {"honest client flagged": (0.05, "lower"), "jacobian: noticed": (0.95, "higher")}
    for name, (limit, better) in wanted.items():
        rows.append(row(f"{name}, in all", [statistics.fmean(found[name])], "share", limit, better))
    return rows


def told(target: Target, x: Tensor) -> Tensor:
    return target.logits(x).argmax(1)


SECTIONS: dict[str, Callable[[range], list[Row]]] = {
    "inputs": inputs,
    "answers": answers,
    "votes": votes,
    "thieves": thieves,
    "streams": streams,
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    options.add_argument("--seeds", type=int, default=5)
    given = options.parse_args()
    torch.set_num_threads(1)
    publish([line for name in given.only for line in SECTIONS[name](range(given.seeds))], given.json)


if __name__ == "__main__":
    main()
