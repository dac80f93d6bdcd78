"""Every defense of the catalogue under who does not know it and under who does, on three seeds, and planted shams.

What hides in a file is passed by who knows it; what is in the weights is attacked through these weights, or by shadow
models trained alike, where who does not know it has those of a plain training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from crushproof.attacks.evasion.gradient.pgd import craft
from crushproof.attacks.membership.case import ShadowSignals
from crushproof.attacks.membership.population import masks
from crushproof.attacks.membership.scoring.scores import bavaria, related
from crushproof.attacks.membership.signals import phi_of
from crushproof.attacks.statistics.roc import area
from crushproof.audit.suite.attack_cells import true_gradients_of
from crushproof.compression.recipe import RECIPES
from crushproof.compression.smoothed import SmoothedAnswers, softened
from crushproof.compression.wrapping import Wrapper, behind
from crushproof.defenses import dp_sgd
from crushproof.defenses.defense import DEFENSES, CompressionDefense, TrainingDefense
from crushproof.defenses.stochastic_rounding import ExpectationTwin
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer, Trainer

SEEDS, CPU = (0, 1, 2), torch.device("cpu")
PRUNED = {"kind": "prune", "sparsity": 0.3}
INT4 = {"kind": "quantize", "weight_bits": 4, "activations": "float", "keep_ends_8bit": False}
LEARNT = {"kind": "prune", "sparsity": 0.8, "importance": "adversarial-scores", "fine_tune": {"epochs": 1}}


# Evasion, of small networks on digits


@cache
def digits() -> Data:
    return load_digits()


def taught() -> Records:
    members = digits().members
    assert members is not None
    return members.take(torch.arange(400))


def trained(defense: TrainingDefense | None) -> list[nn.Module]:
    """One network for each seed."""
    members, net = taught(), Architecture("mlp", lambda: Mlp(64, 10, (32,)))
    plain: Trainer = BuiltinTrainer(Training(epochs=6, batch_size=50, learning_rate=2e-2))
    trainer = plain if defense is None else defense.trained_on(digits(), plain)
    return trainer.fit(TrainingJob(net, members, [torch.arange(len(members))] * len(SEEDS), list(SEEDS), CPU))


plain_nets = cache(partial(trained, None))


def compressed(recipe: Any, seed: int) -> nn.Module:
    parsed = recipe if not isinstance(recipe, dict) else RECIPES.parse(recipe)
    made: nn.Module = parsed.apply(plain_nets()[seed], taught(), digits().bounds, seed=0)
    return made


def fooled(module: nn.Module, through: nn.Module | None, seed: int) -> Tensor:
    """bool [n]: it is wrong on what was crafted through another module, or through itself."""
    assert through is not None
    some = digits().evaluation.take(torch.arange(50))
    found = craft(through, some, [0.1], "linf", digits().bounds, seed=seed, steps=5)[0.1]
    return TorchTarget(module).logits(found).argmax(1) != some.y


@dataclass(frozen=True)
class Fooled:
    """Records fooled by who does not know a defense, by who does, and without the defense; bool [n] of each seed."""

    naive: list[Tensor]
    adaptive: list[Tensor]
    without: list[Tensor]

    def no_weaker(self) -> bool:
        """Nowhere clearly, by an exact McNemar test of the records that one of the two fools."""
        pairs = list(zip(self.adaptive, self.naive, strict=True))
        counts = [(int((a & ~n).sum()), int((n & ~a).sum())) for a, n in pairs]
        return all(a + n == 0 or binomtest(n, a + n, alternative="greater").pvalue > 0.05 for a, n in counts)

    def only_looks_like_a_win(self) -> bool:
        """To one it seems to withstand a quarter of the records that fool the plain model, to the other hardly any."""
        naive, adaptive, without = (
            float(torch.cat(one).float().mean()) for one in (self.naive, self.adaptive, self.without)
        )
        return without - naive >= 0.25 and adaptive >= without - 0.05


def against(
    module: Callable[[int], nn.Module],
    naive: Callable[[nn.Module, int], nn.Module | None],
    adaptive: Callable[[nn.Module, int], nn.Module | None] = lambda made, _: made,
) -> Fooled:
    made = [module(seed) for seed in SEEDS]
    sides = [[fooled(one, side(one, seed), seed) for seed, one in enumerate(made)] for side in (naive, adaptive)]
    return Fooled(*sides, [fooled(one, one, seed) for seed, one in enumerate(plain_nets())])


def hardened(raw: Any) -> Fooled:
    """Who does not know it attacks the plain model, and hopes."""
    defense = DEFENSES.parse(raw)
    assert isinstance(defense, TrainingDefense)
    nets = trained(defense)
    return against(lambda seed: nets[seed], lambda _, seed: plain_nets()[seed])


def wrapped(raw: Any, naive: Callable[[nn.Module], nn.Module | None], recipe: Any = PRUNED) -> Fooled:
    defense = DEFENSES.parse(raw)
    assert isinstance(defense, CompressionDefense)
    first = defense.recipes(RECIPES.parse(recipe))[0]
    return against(lambda seed: compressed(first, seed), lambda made, _: naive(made), lambda made, _: behind(made))


def drawn() -> Fooled:
    """One other draw's gradients, and the expectation over several."""
    defense = DEFENSES.parse({"kind": "stochastic-rounding", "draws": 4})
    assert isinstance(defense, CompressionDefense)
    draws = [[compressed(one, seed) for one in defense.recipes(RECIPES.parse(INT4))] for seed in SEEDS]
    return against(
        lambda seed: draws[seed][0], lambda _, seed: draws[seed][1], lambda _, seed: ExpectationTwin(draws[seed][1:])
    )


def inner(module: nn.Module) -> nn.Module:
    assert isinstance(module, Wrapper)
    return module.inner


def voted() -> Fooled:
    """The model as it is without noise, and the mean over noise."""
    defense = DEFENSES.parse({"kind": "randomized-smoothing", "sigma": 0.1, "samples": 8})
    assert isinstance(defense, CompressionDefense)
    recipe = defense.recipes(RECIPES.parse(PRUNED))[0]

    def mean(made: nn.Module) -> nn.Module:
        assert isinstance(made, SmoothedAnswers)
        return softened(made.vote, made.inner)

    return against(lambda seed: compressed(recipe, seed), lambda made, _: inner(made), lambda made, _: mean(made))


# Membership, of tiny networks on a table in which each record has a column of its own

N, SHADOWS = 40, 8
TABLE = Architecture("mlp", lambda: Mlp(3 + N, 3, (16,)))
PLAIN = BuiltinTrainer(Training(epochs=30, batch_size=20, learning_rate=2e-2, weight_decay=0))


STUDENTS = {"epochs": 15, "batch_size": 60, "learning_rate": 2e-2}


def rows(count: int, name: str) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 3, generator=generator(0, name))
    return 0.3 * x + 0.7 * torch.eye(3)[x.argmax(1)], x.argmax(1)


@cache
def table() -> Data:
    x, y = rows(N, "records")
    own = Records(torch.cat([x, torch.eye(N)], 1), torch.where(torch.arange(N) % 3 == 0, (y + 1) % 3, y))
    public = torch.cat([rows(60, "public")[0], torch.zeros(60, N)], 1)
    others = Records(torch.cat([rows(20, "others")[0], torch.zeros(20, N)], 1), rows(20, "others")[1])
    return Data("table", own, others, Bounds.of(0, 1), ("a", "b", "c"), public=public)


INSIDE = np.concatenate([masks(N, SHADOWS, seed) for seed in SEEDS])


def margins(defense: TrainingDefense | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of the shadow models of all seeds, trained side by side: float32 [k, n]."""
    trainer = PLAIN if defense is None else defense.trained_on(table(), PLAIN)
    own = table().members
    assert own is not None
    subsets = [torch.from_numpy(np.flatnonzero(row)) for row in INSIDE]
    models = trainer.fit(TrainingJob(TABLE, own, subsets, list(range(len(INSIDE))), CPU))
    return np.stack([phi_of(TorchTarget(model), own) for model in models])


plain_margins = cache(partial(margins, None))


@dataclass(frozen=True)
class Told:
    """AUC of each model as a target of the others of its seed, [seeds, shadows]: by shadows of a plain training, by
    those of the defense, and of plain models without it. (By LiRA with so few shadows, ones trained alike say less than
    plain ones of what a defense has blurred.)
    """

    naive: np.ndarray[Any, Any]
    adaptive: np.ndarray[Any, Any]
    without: np.ndarray[Any, Any]

    def no_weaker(self) -> bool:
        """For no seed clearly: within two standard errors over its targets."""
        apart = self.adaptive - self.naive
        return bool((apart.mean(1) + 2 * apart.std(1, ddof=1) / np.sqrt(SHADOWS) >= 0).all())

    def only_looks_like_a_win(self) -> bool:
        naive, adaptive, without = (float(one.mean()) for one in (self.naive, self.adaptive, self.without))
        return naive <= without - 0.1 and adaptive >= without - 0.02


def told(targets: np.ndarray[Any, Any], shadows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    areas = []
    for seed in SEEDS:
        own = slice(seed * SHADOWS, (seed + 1) * SHADOWS)
        inside = INSIDE[own]
        keep = ~related(inside, inside)
        scores = bavaria(targets[own].astype(np.float64), ShadowSignals(inside, shadows[own]), keep)
        areas.append([area(score, truth) for score, truth in zip(scores, inside, strict=True)])
    return np.array(areas)


def shadowed(raw: Any) -> Told:
    defense = DEFENSES.parse(raw)
    assert isinstance(defense, TrainingDefense)
    own, plain = margins(defense), plain_margins()
    return Told(told(own, plain), told(own, own), told(plain, plain))


def offset() -> Told:
    """A planted sham: noise on the margins, the same in every model, which shadows trained alike have too."""
    plain = plain_margins()
    noisy = plain + 10 * torch.randn(N, generator=generator(0, "offsets")).numpy()
    return Told(told(noisy, plain), told(noisy, noisy), told(plain, plain))


# The catalogue

FIGURES: dict[tuple[str, str], Callable[[], Fooled | Told]] = {
    ("adversarial-training", "pgd"): partial(hardened, "adversarial-training"),
    ("adversarial-training", "trades"): partial(hardened, {"kind": "adversarial-training", "method": "trades"}),
    ("adversarial-training", "fast"): partial(hardened, {"kind": "adversarial-training", "steps": 1}),
    ("dp-sgd", ""): partial(shadowed, {"kind": "dp-sgd", "noise_multiplier": 0.5, "epochs": 8, "batch_size": 20}),
    ("limited-answers", ""): partial(wrapped, "limited-answers", lambda made: made),
    ("noisy-inputs", ""): partial(wrapped, {"kind": "noisy-inputs", "samples": 4}, inner),
    ("public-distillation", ""): partial(shadowed, {"kind": "public-distillation", "training": STUDENTS}),
    ("randomized-smoothing", ""): voted,
    ("regularization", "penalty"): partial(hardened, {"kind": "regularization", "gradient_penalty": 1.0}),
    ("regularization", "relax loss"): partial(shadowed, {"kind": "regularization", "relax_loss": 1.0}),
    ("regularization", "smooth labels"): partial(shadowed, {"kind": "regularization", "label_smoothing": 0.3}),
    ("stochastic-rounding", ""): drawn,
    ("transformed-inputs", ""): partial(wrapped, {"kind": "transformed-inputs", "levels": 8}, true_gradients_of),
    ("prune", "learnt scores"): lambda: against(partial(compressed, LEARNT), lambda _, seed: plain_nets()[seed]),
    ("sham", "an offset of each record's own"): offset,
}


@cache
def found(kind: str, name: str) -> Fooled | Told:
    return FIGURES[kind, name]()


@pytest.fixture(autouse=True)
def no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds, and what DP-SGD spends here does not matter."""
    monkeypatch.setattr(dp_sgd, "prv_epsilon", lambda *_: 1.0)


def test_a_defense_without_both_figures_is_none() -> None:
    ours = {kind for kind, made in DEFENSES.kinds().items() if made.__module__.startswith("crushproof.")}
    assert ours <= {kind for kind, _ in FIGURES}


@pytest.mark.parametrize(("kind", "name"), FIGURES)
def test_who_knows_a_defense_is_no_weaker_than_who_does_not(kind: str, name: str) -> None:
    assert found(kind, name).no_weaker()


@pytest.mark.parametrize(
    ("kind", "name", "sham"),
    [
        ("transformed-inputs", "", True),
        ("limited-answers", "", True),
        ("sham", "an offset of each record's own", True),
        ("adversarial-training", "pgd", False),
        ("adversarial-training", "trades", False),
        ("dp-sgd", "", False),
        ("public-distillation", "", False),
    ],
)
def test_a_sham_only_looks_like_a_win_and_what_helps_is_none(kind: str, name: str, sham: bool) -> None:
    assert found(kind, name).only_looks_like_a_win() is sham
