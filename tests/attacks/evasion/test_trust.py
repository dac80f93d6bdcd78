"""Trust flags: raised on planted failures of an attack, silent on honest models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from evasion_cases import small_cnn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.access import Access
from crushproof.attacks.case import Case
from crushproof.attacks.evasion import trust
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.preparation import Basis
from crushproof.attacks.statistics.rates import no_better_than_guessing
from crushproof.audit.engine.cells import Result
from crushproof.audit.suite.attack_cells import twin_agrees
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.training.ball import Ball
from crushproof.training.loop import Forward, Training, train


def case_of(data: Data, deployed: nn.Module, twin: nn.Module | None = None, *, agrees: bool = True) -> Case:
    twin = deployed if twin is None else twin
    return Case(
        deployed=TorchTarget(deployed),
        twin=twin,
        native=twin,
        parent=None,
        evaluation=data.evaluation,
        ids=data.evaluation_ids.numpy(),
        attacker=data.attacker,
        bounds=data.bounds,
        classes=data.classes,
        twin_agrees=agrees,
    )


# --- honest models


@pytest.fixture(scope="module")
def hardened(digits: Data) -> nn.Module:
    """The same CNN trained on PGD-3 adversarial records at epsilon .1."""
    assert digits.members is not None

    def objective(
        forward: Forward, x: Tensor, y: Tensor, index: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        ball = Ball("linf", 0.1, x.flatten(0, 1), digits.bounds)
        moved = ball.random_start(torch.rand(ball.center.shape, generator=generators[0]))
        for _ in range(3):
            moved.requires_grad_()
            loss = F.cross_entropy(forward(moved.view_as(x)).flatten(0, 1), y.flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = ball.step(moved.detach(), gradient, 0.05)
        logits = forward(moved.view_as(x))
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)

    training = Training(epochs=10, learning_rate=5e-3)
    return train(small_cnn(), digits.members, training, seed=0, objective=objective)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_honest_models_get_no_flag(digits: Data, dense: nn.Module, hardened: nn.Module, norm: str) -> None:
    grid = {"linf": (0.05, 0.1), "l2": (0.8,)}[norm]
    robust = {}
    for name, module in (("plain", dense), ("hardened", hardened)):
        attack = Evasion.model_validate({"norm": norm, "epsilons": grid, "gate_epsilon": grid[-1], "records": 50})
        evidence = attack.run(case_of(digits, module), seed=0)
        assert evidence.flags == {}
        assert evidence.summary["union_flags"] == []
        robust[name] = 1 - evidence.arrays[f"worst/{grid[-1]!r}"].mean()
    assert robust["hardened"] > robust["plain"] + 0.1  # the positive control: it is a hardened model


# --- planted failures


class Masked(nn.Module):
    """Rounds its input to 8 bits; the gradient it offers instead is that of an unrelated linear map."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.decoy = nn.Linear(64, 10)
        nn.init.normal_(self.decoy.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(torch.round(x * 255) / 255)
        return logits + 1e-6 * self.decoy(x.flatten(1))


def test_a_decoy_gradient_is_seen_through(digits: Data, dense: nn.Module) -> None:
    attack = Evasion(epsilons=(0.1,), records=100, parts=(Pgd(steps=20), Square(queries=100)))
    evidence = attack.run(case_of(digits, Masked(dense)), seed=0)
    assert evidence.flags == {"pgd": ["black-box-wins"]}
    assert evidence.summary["union_flags"] == ["black-box-wins"]


def test_too_few_steps_are_seen(digits: Data, dense: nn.Module) -> None:
    """Steps so small that records fall one after the other until the very end."""
    attack = Evasion(epsilons=(0.15,), gate_epsilon=0.15, records=100, parts=(Pgd(steps=20, step_size=0.005),))
    evidence = attack.run(case_of(digits, dense), seed=0)
    assert "unfinished-optimisation" in evidence.flags["pgd"]
    assert evidence.summary["union_flags"] == evidence.flags["pgd"]


def test_a_good_part_lifts_the_flags_of_a_bad_one(digits: Data, dense: nn.Module) -> None:
    bad = Pgd(steps=20, step_size=0.0005, label="short")
    attack = Evasion(epsilons=(0.1,), records=100, parts=(bad, Apgd(steps=10), Square(queries=100)))
    evidence = attack.run(case_of(digits, dense), seed=0)
    assert evidence.flags == {"short": ["black-box-wins", "unbounded-fails"]}
    assert evidence.summary["union_flags"] == []


def test_a_twin_that_disagrees_is_flagged(digits: Data, dense: nn.Module) -> None:
    attack = Evasion(epsilons=(0.1,), records=50, parts=(Pgd(steps=20), Square(queries=5)))
    evidence = attack.run(case_of(digits, dense, agrees=False), seed=0)
    assert evidence.flags == {"pgd": ["twin-disagrees"]}
    assert "twin-disagrees" in evidence.summary["union_flags"]


@pytest.mark.parametrize(
    ("clean", "other", "agrees"), [(1.0, 1.0, True), (0.99, 1.0, False), (1.0, 0.98, False), (0.995, 1.0, True)]
)
def test_clean_records_count_by_themselves(clean: float, other: float, agrees: bool) -> None:
    """A twin that is off on clean records is not made good by many random inputs on which nothing is decided."""
    kinds = {"clean": {"n": 400, "label_agreement": clean}, "random": {"n": 1600, "label_agreement": other}}
    overall = {"label_agreement": sum(one["n"] * one["label_agreement"] for one in kinds.values()) / 2000}
    made = Result(document={"certificate": {"overall": overall, "kinds": kinds}})
    assert twin_agrees(made) == agrees


class Memory(nn.Module):
    """Sure of whatever is near one of the records that it was shown, to one side of a step; else as `inner` has it."""

    def __init__(self, inner: nn.Module, known: Records) -> None:
        super().__init__()
        self.inner, self.known = inner, known

    def forward(self, x: Tensor) -> Tensor:
        distance, nearest = (x.flatten(1)[:, None] - self.known.x.flatten(1)).abs().amax(2).min(1)
        sure = F.one_hot(self.known.y[nearest], 10)
        logits: Tensor = self.inner(x) + 1e3 * (distance < 0.2)[:, None] * sure
        return logits


def test_memorised_neighbourhoods_are_seen(digits: Data, dense: nn.Module) -> None:
    some = digits.evaluation.take(torch.arange(30))
    attack = Evasion(epsilons=(0.1,), records=30, parts=(Pgd(steps=5),))
    case = replace(case_of(digits, Memory(dense, some)), evaluation=some)
    evidence = attack.run(case, seed=0)
    assert evidence.summary["union_flags"] == ["margin-cliff"]
    basis = Basis(lambda: None, twin_agrees=True)
    assert attack.follows(evidence, basis) == []
    evidence.summary["union_flags"] = []
    assert attack.follows(evidence, basis) == ["the flags of the worst case"]
    again = attack.run(replace(case, deployed=TorchTarget(dense), twin=dense, native=dense), seed=0)
    assert "margin-cliff" not in again.summary["union_flags"]
    assert again.arrays["walk/fall"].shape == (30,)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.last(self.layer(x)[0][:, -1])
        return answers


@pytest.mark.parametrize("kind", ["recurrent", "table", "held", "whole"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_honest_nets_of_other_inputs_get_no_flag(kind: str, norm: str) -> None:
    """Series; tables with yes/no columns, with columns that stay, and with whole numbers in ranges of their own."""
    torch.manual_seed(0)
    module = Recurrent() if kind == "recurrent" else nn.Linear(20, 3)
    x, bounds = torch.rand(40, 6, 8) if kind == "recurrent" else torch.rand(40, 20), Bounds.of(0, 1)
    if kind == "table":
        x[:, 10:] = x[:, 10:].round()
    if kind == "held":
        bounds = replace(bounds, held=torch.arange(20) < 10)
    if kind == "whole":
        width = torch.where(torch.arange(20) < 5, 1000.0, 1.0)
        x, module.weight.data = x * width, module.weight.detach() / width
        x[:, :5] = x[:, :5].round()
        bounds = Bounds(torch.zeros(20), width, whole=torch.arange(20) < 5)
    y = module(x).argmax(1).detach()
    case = Case(
        TorchTarget(module), module, module, None, Records(x, y), np.arange(40), Records(x[:0], y[:0]), bounds, 4
    )
    radius = {"linf": 0.05, "l2": 0.2}[norm]
    parts = (Pgd(steps=20, loss="margin"), Apgd(steps=10))
    attack = Evasion.model_validate({"norm": norm, "epsilons": [radius], "gate_epsilon": radius, "parts": parts})
    evidence = attack.run(case, seed=0)
    assert evidence.flags == {}
    assert evidence.summary["union_flags"] == []
    assert (evidence.arrays["walk/fall"] > trust.CLIFF).mean() < 0.3


def test_black_box_alone_has_no_gradients_to_trust(digits: Data, dense: nn.Module) -> None:
    evidence = Evasion(epsilons=(0.1,), records=30, parts=(Square(queries=5),)).run(case_of(digits, dense), seed=0)
    assert evidence.summary["union_flags"] == ["no-gradient"]
    assert trust.FALLS not in evidence.arrays


# --- the pure rules


def outcomes(*ones: int, n: int = 300) -> np.ndarray:
    """bool [n], true at the given number of leading records or at given positions."""
    array = np.zeros(n, dtype=bool)
    array[list(range(ones[0])) if len(ones) == 1 else list(ones)] = True
    return array


@given(st.integers(0, 40), st.integers(0, 40), st.integers(60, 2000))
def test_beats_is_the_exact_mcnemar_test(gained: int, lost: int, n: int) -> None:
    stronger, weaker = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    stronger[:gained] = True
    weaker[n - lost :] = lost > 0
    if gained + lost > n:
        return
    total = gained + lost
    tail = sum(comb(total, k) for k in range(max(gained, lost), total + 1)) / 2**total
    p_value = min(1.0, 2 * tail)
    expected = gained - lost >= max(1, 0.01 * n) and p_value < 0.01
    assert trust.beats(stronger, weaker) == expected


def test_union_flags() -> None:
    white, scores = Access.WHITE_BOX, Access.SCORES
    access = {"pgd": white, "native": white, "square": scores}
    fooled = {"pgd": outcomes(150), "native": outcomes(5), "square": outcomes(120)}
    flags = {"native": ["no-gradient"]}
    assert trust.union_flags(access, {}, fooled) == []
    assert trust.union_flags(access, flags, fooled) == []
    # without the part that explains it
    rest = {part: fooled[part] for part in ("native", "square")}
    assert trust.union_flags(access, flags, rest) == ["no-gradient"]
    # an unflagged part that another one beats explains nothing
    beaten = {**fooled, "square": outcomes(200)}
    assert trust.union_flags(access, flags, beaten) == ["no-gradient"]
    # single records more, scattered over several parts, are no sign that gradients failed
    scattered = {**fooled, "square": outcomes(154), "native": np.roll(outcomes(5), 156)}
    assert trust.union_flags(access, flags, scattered) == []
    # a black-box part explains nothing, however strong
    strong = {**fooled, "square": outcomes(290)}
    assert trust.union_flags(access, {"pgd": ["black-box-wins"]} | flags, strong) == [
        "black-box-wins",
        "no-gradient",
    ]
    # two honest parts explain together what neither does alone
    first, second = outcomes(100), np.roll(outcomes(100), 80)
    access = {"a": white, "b": white, "native": white}
    assert trust.union_flags(access, flags, {"a": first, "b": second, "native": outcomes(0)}) == []
    assert trust.union_flags({"square": scores}, {}, {"square": outcomes(150)}) == ["no-gradient"]


def test_parts_that_add_up_to_far_more_than_any_are_flagged() -> None:
    white = dict.fromkeys("abc", Access.WHITE_BOX)
    thirds = {part: np.roll(outcomes(60), 60 * at) for at, part in enumerate("abc")}
    assert trust.whole_flags(white, {}, thirds, None) == ["union-far-below"]
    shared = {part: np.roll(outcomes(150), 8 * at) for at, part in enumerate("abc")}
    assert trust.whole_flags(white, {}, shared, None) == [], "16 of 300 more"
    few = {part: outcome[:30] for part, outcome in {"a": outcomes(0), "b": outcomes(4)}.items()}
    assert trust.whole_flags(white, {}, {**few, "c": outcomes(0)[:30]}, None) == []


def test_unfinished() -> None:
    steady = np.linspace(0.02, 1, 100, dtype=np.float32)
    early = np.concatenate([np.full(90, 0.3), np.full(10, 0.9)]).astype(np.float32)
    assert trust.unfinished(steady, 300)
    assert not trust.unfinished(early, 300)
    assert not trust.unfinished(np.full(300, np.nan, dtype=np.float32), 300)
    assert not trust.unfinished(np.full(3, 0.9, dtype=np.float32), 300)  # three records are no evidence


def test_chance() -> None:
    labels = np.array([0] * 30 + [1] * 70)
    assert trust.chance(labels) == 0.7
    assert trust.unbounded_fails(outcomes(20, n=100), labels)
    assert not trust.unbounded_fails(outcomes(26, n=100), labels)


def test_at_chance_is_judged_by_balanced_accuracy() -> None:
    stream = np.random.default_rng(0)
    labels = (stream.random(600) < 0.758).astype(np.int64)  # uneven, as census income is
    majority = labels == 1
    assert no_better_than_guessing(majority, labels)  # right on 75.8 %, and knows nothing
    skilled = np.where(labels == 1, stream.random(600) < 0.92, stream.random(600) < 0.58)  # 83.5 % in all
    assert not no_better_than_guessing(skilled, labels)
    balanced = stream.random(600) < 0.72  # below the majority guess, and far from guessing
    assert not no_better_than_guessing(balanced, labels)
    ten = stream.integers(0, 10, 600)
    assert no_better_than_guessing(stream.random(600) < 0.11, ten)
    assert not no_better_than_guessing(stream.random(600) < 0.2, ten)
    assert no_better_than_guessing(np.ones(4, dtype=bool), np.zeros(4, dtype=np.int64))  # one class: nothing to know
    # a guesser is called one in about 97.5 of 100 data sets
    called = [no_better_than_guessing(stream.random(300) < 0.5, stream.integers(0, 2, 300)) for _ in range(300)]
    assert np.mean(called) > 0.93


def test_gradients_missing() -> None:
    assert not trust.gradients_missing(0, 300)
    assert not trust.gradients_missing(2, 300)
    assert trust.gradients_missing(3, 300)
    assert trust.gradients_missing(1, 30)
