"""The audit of a private training: true claims stand, and every way to break one is found."""

from __future__ import annotations

import doctest
import math
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from crushproof import GradientCanaries, audit_dp
from crushproof.attacks.dp_audit.accounting import pld_epsilon
from crushproof.attacks.dp_audit.bounds import (
    gaussian_epsilon,
    gaussian_mu,
    guesses_epsilon,
    guesses_gaussian_epsilon,
    mu_of_pairs,
    threshold_epsilon,
)
from crushproof.attacks.dp_audit.subsampled import best_share, epsilon_of_share, subsampled_epsilon
from crushproof.attacks.dp_audit.worlds import Step
from crushproof.defenses.dp_sgd import gradient_step
from crushproof.targets.errors import InputError

DELTA = 1e-5


def private(sigma: float, rate: float = 1.0, flaw: str = "") -> Step:
    """DP-SGD's step on gradients [..., n, d], clipped to 1; or one of its known mistakes."""
    kept = list[Tensor]()

    def step(gradients: Tensor, draws: torch.Generator) -> Tensor:
        drawn = torch.rand(gradients.shape[:-1], generator=draws) < rate
        if flaw != "does not sample":
            gradients = gradients * drawn[..., None]
        if flaw == "clips number by number":
            gradients = gradients.clamp(-1, 1)
        elif flaw != "clips the batch" and flaw != "does not clip":
            gradients = gradients / gradients.norm(dim=-1, keepdim=True).clamp_min(1)
        total = gradients.sum(-2)
        if flaw == "clips the batch":
            total = total / total.norm(dim=-1, keepdim=True).clamp_min(1)
        if flaw == "noise of one seed":
            draws = torch.Generator().manual_seed(0)
        noise = torch.randn(total.shape, generator=draws)
        if flaw == "noise comes back":
            kept.append(noise if len(kept) % 2 == 0 else kept[-1])
            noise = kept[-1]
        elif flaw == "noise of some numbers":
            noise[..., 5] = 0
        elif flaw == "one noise for all numbers":
            noise = noise[..., :1]
        scale = {"forgets noise": 0.0, "noise over the batch": sigma / gradients.shape[-2]}.get(flaw, sigma)
        return total + scale * noise

    return step


@pytest.mark.parametrize(("epsilon", "share"), [(2.0, 0.7), (4.0, 0.8), (10.0, 0.8)])
def test_a_true_claim_stands_and_the_bound_is_near_it(epsilon: float, share: float) -> None:
    found = audit_dp(private(1 / gaussian_mu(epsilon, DELTA)), epsilon=epsilon, stacked=True)
    assert share * epsilon <= found.epsilon_low <= epsilon
    assert not found.above_claim
    assert 0 <= found.bounds["any mechanism"] <= epsilon


FLAWS = (
    *("forgets noise", "noise over the batch", "clips the batch", "clips number by number"),
    *("does not clip", "noise of one seed", "noise comes back", "noise of some numbers", "one noise for all numbers"),
)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_every_mistake_is_found_and_the_right_step_is_not(rate: float) -> None:
    sigma, steps, worlds = 3.0, 8, 1000 if rate == 1 else 4000
    claim: dict[str, Any] = {
        "epsilon": subsampled_epsilon(sigma, DELTA, rate, steps),
        "sampling_rate": rate,
        "steps": steps,
    }
    found = {
        flaw: audit_dp(private(sigma, rate, flaw), **claim, worlds=worlds, stacked=True).above_claim
        for flaw in ("", *(FLAWS if rate == 1 else ("does not sample", "forgets noise", "clips the batch")))
    }
    assert found == {flaw: flaw != "" for flaw in found}


def test_our_own_step_is_audited_as_it_trains() -> None:
    sigma = 1 / gaussian_mu(8, DELTA)
    own = gradient_step(noise_multiplier=sigma, max_gradient_norm=0.7, sampling_rate=1.0)
    found = audit_dp(own, epsilon=8, worlds=100, confidence=0.99)
    assert 0.3 * 8 <= found.epsilon_low <= 8
    gradients = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    silent = gradient_step(noise_multiplier=0.0, max_gradient_norm=0.7, sampling_rate=1.0)
    lengths = gradients.norm(dim=1, keepdim=True)
    expected = (gradients * (0.7 / lengths).clamp_max(1)).mean(0)
    torch.testing.assert_close(silent(gradients, torch.Generator()), expected)


def test_one_training_bounds_epsilon_from_below() -> None:
    sigma, steps = math.sqrt(20) / gaussian_mu(8, DELTA), 20
    for flaw in ("", "forgets noise", "noise of one seed"):
        canaries = GradientCanaries(1000, 400)
        watched, draws = canaries.watch(private(sigma, flaw=flaw)), torch.Generator().manual_seed(3)
        for _ in range(steps):
            seen = watched(torch.randn(20, 1000, generator=draws), draws)
        assert seen.shape == (1000,)
        found = canaries.audit(epsilon=8, steps=steps)
        assert found.above_claim if flaw else 0.2 * 8 <= found.epsilon_low <= 8
        assert found.bounds["any mechanism"] < found.bounds["Gaussian, any dependence"]


def test_epsilon_and_mu_of_a_gaussian_trade_off() -> None:
    for mu in (0.3, 1.0, 2.5):
        epsilon = gaussian_epsilon(mu, DELTA)
        normal = stats.norm.cdf
        delta = normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)
        assert delta == pytest.approx(DELTA, rel=1e-4)
        assert gaussian_mu(epsilon, DELTA) == pytest.approx(mu, rel=1e-4)
    assert gaussian_epsilon(1e-7, DELTA) == 0


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.2, 0.3, 12), (0.8, 0.1, 1), (2.0, 0.999999, 9)])
def test_what_an_auditor_of_pairs_can_reach_equals_simulation(sigma: float, rate: float, steps: int) -> None:
    rng = np.random.default_rng(0)
    losses = []
    for member in (1, 0):
        x = rng.normal(0, sigma, (20_000, steps)) + member * (rng.random((20_000, steps)) < rate)
        losses.append(np.log1p(rate * np.expm1((x - 0.5) / sigma**2)).sum(1))
    assert best_share(sigma, rate, steps) == pytest.approx(float((losses[0] > losses[1]).mean()), abs=0.015)
    many = stats.norm.cdf(
        0.01 * 100 * math.sqrt(math.expm1(1)) / math.sqrt(2)
    )  # central limit theorem (Bu et al. 2020)
    assert best_share(1.0, 0.01, 10_000) == pytest.approx(many, abs=0.01)
    assert best_share(sigma, 1.0, steps) == pytest.approx(best_share(sigma, 1 - 1e-9, steps), abs=1e-4)


def test_the_epsilon_of_a_share_is_that_of_its_noise() -> None:
    expected = pytest.approx(pld_epsilon(1.5, DELTA, 0.3, 5), rel=0.01)
    assert epsilon_of_share(best_share(1.5, 0.3, 5), DELTA, 0.3, 5) == expected
    assert epsilon_of_share(0.5, DELTA, 0.3, 5) == 0 == epsilon_of_share(0.4, DELTA, 1.0, 1)


def test_bounds_hold_as_often_as_they_say() -> None:
    """At a confidence of .9, over 200 repetitions: at most 20 and their spread above the truth."""
    rng, mu = np.random.default_rng(0), 1.5
    epsilon = gaussian_epsilon(mu, DELTA)
    over = {"pairs": 0, "threshold": 0, "one run": 0}
    one_run = lru_cache(guesses_epsilon)
    for _ in range(200):
        inside, outside = rng.normal(mu, 1, 400), rng.normal(0, 1, 400)
        over["pairs"] += mu_of_pairs(int((inside > outside).sum()), 400, 0.1) > mu
        over["threshold"] += threshold_epsilon(inside, outside, DELTA, 0.1) > epsilon
        cut = np.sort(np.concatenate([inside, outside]))[-80]
        right = int((inside >= cut).sum())
        over["one run"] += one_run(800, 80, right, DELTA, 0.1) > epsilon
    assert all(count <= 35 for count in over.values())  # binomial, one in 1,000
    assert over["pairs"] >= 6  # and no wider than it must be


def test_guesses_of_one_training_against_numbers_by_hand() -> None:
    assert guesses_epsilon(100, 50, 25, 0.0, 0.05) == 0
    low = guesses_epsilon(1000, 100, 99, 0.0, 0.05)  # without delta: Clopper-Pearson of the rate, as a logit
    rate = stats.beta.ppf(0.05, 99, 2)
    assert low == pytest.approx(math.log(rate / (1 - rate)), abs=1e-3)
    assert guesses_epsilon(1000, 100, 99, 1e-4, 0.05) < low
    assert (
        0 < guesses_gaussian_epsilon(1000, 100, 95, DELTA, 0.05) < guesses_gaussian_epsilon(1000, 100, 100, DELTA, 0.05)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing is claimed"),
        ({"epsilon": -1.0}, "above 0"),
        ({"epsilon": math.nan}, "above 0"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta"),
        ({"epsilon": 1.0, "sampling_rate": 1.5}, "sampling"),
        ({"epsilon": 1.0, "steps": 0}, "steps"),
        ({"epsilon": 1.0, "worlds": 10}, "worlds"),
        ({"epsilon": 1.0, "confidence": 1.0}, "confidence"),
    ],
)
def test_wrong_numbers_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit_dp(private(1.0), **given)


def test_a_step_that_gives_no_gradient_is_refused() -> None:
    for wrong in (lambda g, d: g, lambda g, d: None, lambda g, d: g.sum(0) * math.nan):
        with pytest.raises(InputError, match="private gradient"):
            audit_dp(wrong, epsilon=1)
    with pytest.raises(InputError, match="canaries"):
        GradientCanaries(10, 10)


def test_the_same_seed_gives_the_same_bound_and_the_docstring_is_true() -> None:
    step = private(1.0)
    first, second = (audit_dp(step, epsilon=8, worlds=200, stacked=True, seed=4) for _ in range(2))
    assert first == second != audit_dp(step, epsilon=8, worlds=200, stacked=True, seed=5)
    assert "within the claim" in str(first)
    module = sys.modules[audit_dp.__module__]
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=2)
