"""Randomised smoothing: certificates against radii known exactly, and what a compressed model takes over."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.smoothing.bounds import carried_share, most_share
from crushproof.attacks.smoothing.smoothing import Smoothing
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.targets.seeds import generator, normal
from crushproof.targets.serving.smoothed import least_share, radii

FEATURES, SIGMA = 6, 0.3
WEIGHT = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.7])


def linear(offset: float = -0.35, weight: Tensor = WEIGHT) -> nn.Module:
    """Class 1 where the weighted sum is above 0: under noise the boundary stays where it is."""
    module = nn.Linear(FEATURES, 2)
    with torch.no_grad():
        module.weight.copy_(torch.stack([torch.zeros(FEATURES), weight]))
        module.bias.copy_(torch.tensor([0.0, offset]))
    return module.eval()


def records(count: int = 60) -> Records:
    x = torch.rand(count, FEATURES, generator=generator(0, "smoothing"))
    return Records(x, linear()(x).argmax(1).detach())


def distances(module: nn.Module, x: Tensor) -> np.ndarray:
    """To the boundary, L2: the radius of the smoothed model, exactly."""
    with torch.no_grad():
        answers = module(x)
        weight = module.weight[1] - module.weight[0]
    return ((answers[:, 1] - answers[:, 0]).abs() / weight.norm()).numpy()


def case_of(module: nn.Module, evaluation: Records, bounds: Bounds | None = None) -> Case:
    ids = np.arange(len(evaluation))
    target = TorchTarget(module)
    return Case(target, module, module, module, evaluation, ids, evaluation, bounds or Bounds.of(0, 1), 2)


def certified(attack: Smoothing, evidence: Evidence) -> np.ndarray:
    return radii(least_share(evidence.arrays["hits"], attack.samples, attack.alpha), attack.sigma)


class Outcome:
    """What `measure` reads, of two models."""

    def __init__(self, evaluation: Records, found: dict[str, Evidence], parent: str | None) -> None:
        data = Data("data", None, evaluation, Bounds.of(-9, 9), ("a", "b"))
        self.scope: Any = type("Scope", (), {"data": data})()
        named = None if parent is None else type("Dense", (), {"name": parent})()
        self.model: Any = type("Model", (), {"name": next(iter(found)), "parent": named, "baselines": ("dense",)})()
        self.model.recipe = None
        self.found = found

    def evidence(self, ran: Any) -> Evidence | None:
        return self.found.get(ran.model)

    def why(self, ran: Any) -> str:
        return "it did not run"

    def flags(self, model: str) -> set[str]:
        return set()


def test_no_certified_radius_exceeds_that_of_a_linear_model_over_seeds() -> None:
    attack = Smoothing(sigma=SIGMA, chosen_by=20, samples=500, compared=50, alpha=1e-5)
    evaluation, module = records(50), linear()
    exact = distances(module, evaluation.x)
    shares = []
    for seed in range(5):
        evidence = attack.run(case_of(module, evaluation), seed=seed)
        right = evidence.arrays["top"] == evaluation.y.numpy()
        found = np.where(right, certified(attack, evidence), -1.0)
        assert (found <= exact).all()
        assert right[certified(attack, evidence) >= 0].all()
        far = exact > SIGMA
        shares.append(found[far].mean() / exact[far].mean())
    assert min(shares) > 0.5, "and it is no empty promise"


def test_noise_counts_in_units_of_the_bounds_and_spares_what_is_held() -> None:
    evaluation, module = records(20), linear()
    attack = Smoothing(sigma=SIGMA, chosen_by=10, samples=200, compared=10)
    plain = attack.run(case_of(module, evaluation), seed=0)
    wide = linear(-0.35 * 255)
    stretched = attack.run(case_of(wide, Records(evaluation.x * 255, evaluation.y), Bounds.of(0, 255)), seed=0)
    assert np.array_equal(plain.arrays["hits"], stretched.arrays["hits"])
    held = Bounds(torch.tensor(0.0), torch.tensor(1.0), held=torch.ones(FEATURES, dtype=torch.bool))
    still = attack.run(case_of(module, evaluation, held), seed=0)
    assert (still.arrays["hits"] == 200).all()


def test_a_constant_model_is_certified_as_far_as_the_draws_reach() -> None:
    attack = Smoothing(sigma=SIGMA, chosen_by=10, samples=100, compared=20, alpha=0.001)
    constant = linear(-100.0)
    evaluation = Records(records(10).x, torch.tensor([0] * 7 + [1] * 3))
    evidence = attack.run(case_of(constant, evaluation), seed=0)
    furthest = SIGMA * NormalDist().inv_cdf(0.001 ** (1 / 100))
    assert np.allclose(certified(attack, evidence), furthest)
    (row,) = attack.measure(Outcome(evaluation, {"dense": evidence}, None))
    assert row.outcome is not None
    assert row.outcome.successes.tolist() == [True] * 7 + [False] * 3
    assert "never a bound for the bare file" in row.notes[0]
    assert not row.gateable


def test_a_record_on_the_boundary_is_abstained_on_and_counts_as_a_failure() -> None:
    module = linear(0.0)
    x = records(12).x
    evaluation = Records(x - (x @ WEIGHT).unsqueeze(1) * WEIGHT / WEIGHT.square().sum(), torch.arange(12) % 2)
    attack = Smoothing(sigma=SIGMA, chosen_by=10, samples=300, compared=10)
    evidence = attack.run(case_of(module, evaluation), seed=1)
    assert (certified(attack, evidence) == -1).all()
    (row,) = attack.measure(Outcome(evaluation, {"dense": evidence}, None))
    line = row.curves["certified"]
    assert [float(rate.successes.mean()) for _, rate in line] == [0.0] * 5
    assert "12 of 12 records were abstained on" in row.notes[1]


def test_evidence_of_a_record_follows_from_its_id_and_longer_runs_begin_like_shorter_ones() -> None:
    evaluation, module = records(30), linear()
    short = Smoothing(sigma=SIGMA, chosen_by=30, samples=150, compared=100, records=12)
    whole = Smoothing(sigma=SIGMA, chosen_by=30, samples=300, compared=100)
    one, other = (attack.run(case_of(module, evaluation), seed=3).arrays for attack in (short, whole))
    assert np.array_equal(one["first"], other["first"][:12])
    assert (one["hits"] <= other["hits"][:12]).all()
    again = short.run(case_of(module, evaluation), seed=3).arrays
    assert all(np.array_equal(one[name], again[name]) for name in one)
    draws = normal(5, np.arange(4), (20_000,))
    assert abs(float(draws.mean())) < 0.02
    assert abs(float(draws.std()) - 1) < 0.02


def test_a_candidate_takes_over_what_the_dense_model_is_certain_of_less_their_disagreement() -> None:
    evaluation, dense = records(40), linear()
    nearly = linear(-0.36, WEIGHT + 0.01)
    attack = Smoothing(sigma=SIGMA, chosen_by=20, samples=1000, compared=200, alpha=1e-4)
    found = {
        name: attack.run(case_of(module, evaluation), seed=0) for name, module in (("int8", nearly), ("dense", dense))
    }
    (row,) = attack.measure(Outcome(evaluation, found, "dense"))
    lines = [row.curves[name] for name in ("certified", "carried from dense")]
    own, carried = (np.mean([rate.successes.mean() for _, rate in line]) for line in lines)
    assert 0.25 < carried <= own
    assert "820 (80 %) saved" in row.notes[-1]
    others = (found["dense"].arrays["first"] != found["int8"].arrays["first"]).sum(1)
    share = carried_share(found["dense"].arrays["hits"], 1000, others, 200, 1e-4)
    assert (radii(share, SIGMA) <= distances(nearly, evaluation.x)).all()
    found["int8"].summary["sigma"] = 2 * SIGMA
    (row,) = attack.measure(Outcome(evaluation, found, "dense"))
    assert row.curves.keys() == {"certified"}, "nothing is carried over from answers under other noise"
    assert not any("whatever the model" in note for note in row.notes)
    found["int8"].summary["sigma"] = 0.1 * SIGMA
    (row,) = attack.measure(Outcome(evaluation, found, "dense"))
    assert any("certify no radius beyond 0.071, whatever the model" in note for note in row.notes)


def test_a_candidate_that_answers_otherwise_takes_over_nothing() -> None:
    evaluation, dense = records(20), linear()
    opposite = linear(0.35, -WEIGHT)
    attack = Smoothing(sigma=SIGMA, chosen_by=20, samples=300, compared=100)
    found = {
        name: attack.run(case_of(module, evaluation), seed=0) for name, module in (("odd", opposite), ("dense", dense))
    }
    (row,) = attack.measure(Outcome(evaluation, found, "dense"))
    assert not any(rate.successes.any() for _, rate in row.curves["carried from dense"])


def test_a_model_that_is_another_contradicts_the_evidence_when_asked_again() -> None:
    evaluation, module = records(20), linear()
    attack = Smoothing(sigma=SIGMA, chosen_by=10, samples=100, compared=50)
    evidence = attack.run(case_of(module, evaluation), seed=4)
    assert attack.asked_again(evidence, case_of(module, evaluation)) == []
    other = attack.asked_again(evidence, case_of(linear(-0.5), evaluation))
    assert "under the same noise" in other[-1]


def test_bounds_of_a_share_hold_as_often_as_they_say() -> None:
    """Against the binomial itself: the bound is above the truth with a probability of at most alpha."""
    alpha, n = 0.05, 40
    for truth in (0.3, 0.6, 0.9, 0.99):
        chances = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
        hits = np.arange(n + 1)
        for bound, wrong in ((least_share, np.greater), (most_share, np.less)):
            missed = wrong(bound(hits, n, alpha), truth)
            assert sum(chance for chance, miss in zip(chances, missed, strict=True) if miss) <= alpha
    assert least_share(np.array([0]), 10, 0.1)[0] == 0
    assert most_share(np.array([10]), 10, 0.1)[0] == 1


def test_tokens_and_answers_that_are_no_numbers_have_no_certificate() -> None:
    evaluation = records(5)
    broken = linear(float("nan"))
    with pytest.raises(NotApplicable, match="NaN"):
        Smoothing(samples=10, compared=5, chosen_by=5).run(case_of(broken, evaluation), seed=0)
    with pytest.raises(ValueError, match="compared"):
        Smoothing(samples=10, compared=50)
