"""Scores of membership from margins: each against a loop over records, and what is planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from crushproof.attacks.membership.case import ShadowSignals, related
from crushproof.attacks.membership.population import masks
from crushproof.attacks.membership.scoring.bavaria import log_ratio, shrinkage, trigamma_inverse
from crushproof.attacks.membership.scoring.pseudo_targets import choose, more_shadows, pseudo_targets, tpr_by_half
from crushproof.attacks.membership.scoring.quantile import quantile
from crushproof.attacks.membership.scoring.scores import WITH_SHADOWS, bavaria, lira, loss, rmia, towards_one
from crushproof.attacks.statistics.ranking import auc
from crushproof.targets.data.records import Records


def normal_signals(k: int, n: int, gap: float, seed: int) -> tuple[np.ndarray, np.ndarray, ShadowSignals]:
    """A target and shadows whose margins are Normal(difficulty + gap * inside, 1): phi [1, n], is_member [n]."""
    rng = np.random.default_rng(seed)
    inside, is_member = masks(n, k, seed), np.arange(n) < n // 2
    difficulty = rng.normal(2, 3, n)
    phi = (difficulty + gap * inside + rng.normal(size=(k, n))).astype(np.float32)
    target = (difficulty + gap * is_member + rng.normal(size=n)).astype(np.float32)
    return target[None], is_member, ShadowSignals(inside, phi)


@pytest.mark.parametrize("name", ["lira", "lira-offline", "calibrated"])
def test_a_score_equals_a_loop_over_records(name: str) -> None:
    phi, _, population = normal_signals(12, 40, 1.0, 0)
    keep = np.ones((1, 12), dtype=bool)
    keep[0, [2, 3]] = False
    fast = WITH_SHADOWS[name](phi, population, keep)[0]
    fixed, samples = {}, {}
    for side in (True, False):
        own = [population.phi[keep[0] & (population.inside[:, j] == side), j].astype(float) for j in range(40)]
        fixed[side] = sum(((one - one.mean()) ** 2).sum() for one in own) / sum(len(one) - 1 for one in own)
        samples[side] = own
    for j in range(40):
        normal = {side: stats.norm(samples[side][j].mean(), math.sqrt(fixed[side])) for side in (True, False)}
        x, out = float(phi[0, j]), samples[False][j]
        expected = {
            "lira": normal[True].logpdf(x) - normal[False].logpdf(x),
            "lira-offline": stats.norm.ppf(normal[False].cdf(x)) if abs(x - out.mean()) < 5 else fast[j],
            "calibrated": math.log(1 / (1 + math.exp(-x))) - np.log(1 / (1 + np.exp(-out))).mean(),
        }
        assert fast[j] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


def test_the_log_ratio_equals_a_loop_over_records() -> None:
    """Record by record, with scipy's distributions; the priors by numpy's polynomials and a root finder."""
    phi, _, population = normal_signals(12, 60, 1.0, 0)
    found = {}
    for side in (True, False):
        own = [population.phi[population.inside[:, j] == side, j].astype(float) for j in range(60)]
        found[side] = np.array([one.mean() for one in own]), np.array([one.var(ddof=1) for one in own])
    variance, df = {}, {}
    for side, (_, sample) in found.items():
        x = np.clip(stats.zscore(found[not side][0]), -3, 3)
        log = np.log(sample) - (digamma(2.5) - np.log(2.5))
        line = np.polyval(np.polyfit(x, log, 1), x)
        off = (log - line) ** 2
        excess = off.sum() / 58 - polygamma(1, 2.5) - 2 * off.std() / math.sqrt(60)
        d0 = min(2 * brentq(lambda d, e=excess: polygamma(1, d) - max(e, 1e-3), 1e-3, 1e4), 1e3)
        prior = np.exp(line + digamma(d0 / 2) - np.log(d0 / 2))
        df[side], variance[side] = 5 + d0, (5 * sample + d0 * prior) / (5 + d0)
    (inside, _), (outside, _) = found[True], found[False]
    precise = {side: 6 / variance[side] for side in (True, False)}
    total = precise[True] + precise[False]
    average, gap = (precise[True] * inside + precise[False] * outside) / total, inside - outside
    z = np.clip(stats.zscore(average), -3, 3)
    curve = np.stack([np.ones(60), z, z**2, 1 / (1 + np.exp(average))], axis=1)
    expected = curve @ np.linalg.lstsq(curve, gap)[0]
    chance = 1 / precise[True] + 1 / precise[False]
    usual = stats.f.ppf(0.5, 1, min(df.values()))
    between = max(np.median((gap - expected) ** 2 / chance) / usual - 1 - 2 * 2.3 / math.sqrt(60), 0)
    share = (between / (1 + between)) ** 2
    posterior = expected + share * (gap - expected)
    for j, score in enumerate(log_ratio(phi, population)[0]):
        likelihood = {}
        for side, part in ((True, precise[False] / total), (False, -precise[True] / total)):
            scale2 = variance[side][j] + 1 / total[j] + part[j] ** 2 * share * chance[j]
            location = average[j] + part[j] * posterior[j]
            likelihood[side] = stats.t.logpdf(float(phi[0, j]), df[side], location, math.sqrt(scale2))
        assert score == pytest.approx(likelihood[True] - likelihood[False], rel=1e-3, abs=1e-4)


def test_shrinkage_recovers_the_prior() -> None:
    rng = np.random.default_rng(0)
    x, every = rng.normal(size=(1, 5000)), np.ones((1, 5000), dtype=bool)
    true_variance = 3.0 * np.exp(0.5 * x) * 8 / rng.chisquare(8, size=5000)  # scaled inverse chi-square
    sample, freedom = true_variance * rng.chisquare(15, size=5000), np.full((1, 5000), 15.0)
    d0, s0 = shrinkage(sample, freedom, x, every)
    assert d0[0, 0] == pytest.approx(8, rel=0.2)
    assert s0[0] == pytest.approx(3 * np.exp(0.5 * x[0].clip(-3, 3)), rel=0.1)
    d0, _ = shrinkage(2.0 * rng.chisquare(15, size=(1, 5000)), freedom, x, every)
    assert d0[0, 0] > 200, "one common variance is pooled"
    x = np.array([[1e-3, 0.1, 1.0, 50.0]])
    assert np.allclose(polygamma(1, trigamma_inverse(x)), x, rtol=1e-6)


def test_bavaria_finds_a_planted_leak_nearly_as_well_as_the_optimum_and_better_with_few_shadows() -> None:
    areas, optimal, blind, null, few = [], stats.norm.cdf(1.0 / math.sqrt(2)), [], [], []
    for seed in range(3):
        phi, is_member, population = normal_signals(64, 1200, 1.0, seed)
        areas.append(auc(bavaria(phi, population)[0], is_member).estimate)
        blind.append(auc(loss(phi)[0], is_member).estimate)
        small = ShadowSignals(population.inside[:4], population.phi[:4])
        few.append([auc(score(phi, small)[0], is_member).estimate for score in (bavaria, lira, rmia)])
        phi, is_member, population = normal_signals(8, 1200, 0.0, seed)
        null.append(auc(bavaria(phi, population)[0], is_member).estimate)
    assert optimal - 0.02 < np.mean(areas) < optimal + 0.01
    assert np.mean(blind) < np.mean(areas) - 0.1, "the difficulty of a record hides its membership from LOSS"
    assert abs(np.mean(null) - 0.5) < 0.02
    ours, *others = np.mean(few, axis=0)
    assert ours > max(others) + 0.01


def test_bavarias_odds_are_what_the_shadows_bear_out() -> None:
    """Margins with far tails, which make a normal model too sure of itself: how sure it may be is learnt on shadows."""
    told: dict[str, list[np.ndarray]] = {"bavaria": [], "rmia": [], "alone": []}
    for seed in range(6):
        rng, inside, is_member = np.random.default_rng(seed), masks(600, 16, seed), np.arange(600) < 300
        hard = rng.normal(2, 3, 600)
        phi = (hard + 0.6 * inside + rng.standard_t(3, (16, 600))).astype(np.float32)
        target = (hard + 0.6 * is_member + rng.standard_t(3, 600)).astype(np.float32)[None]
        for name, score in (("bavaria", bavaria), ("rmia", rmia), ("alone", log_ratio)):
            told[name].append(score(target, ShadowSignals(inside, phi))[0])
        few = ShadowSignals(inside[:2], phi[:2])
        for name, score in (("few", bavaria), ("rmia of few", rmia), ("few alone", log_ratio)):
            told.setdefault(name, []).append(score(target, few)[0])
    truth, found = np.tile(is_member, 6), {name: np.concatenate(some) for name, some in told.items()}

    def slope(odds: np.ndarray) -> float:
        """Of a logistic regression on log odds: 1 where they come true, below it where they are too sure."""
        return float(brentq(lambda b: (odds * (truth - 1 / (1 + np.exp(-b * odds)))).sum(), 0.01, 10))

    assert slope(found["alone"]) < 0.5
    assert slope(found["bavaria"]) > 0.7
    areas = {name: auc(some, truth).estimate for name, some in found.items()}
    assert areas["bavaria"] > max(areas["rmia"], areas["alone"]) - 0.003
    assert areas["few"] > max(areas["rmia of few"], areas["few alone"]) - 0.003, "two shadows leave no pseudo-target"


@pytest.mark.parametrize("tails", ["normal", "far"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_headline_of_two_or_three_shadows_is_nearer_to_the_better_of_its_parts(count: int, tails: str) -> None:
    """Where a record's gap shows, RMIA's one number is far behind; where it is noise, the gap is."""
    areas: dict[str, list[float]] = {"headline": [], "rmia": [], "log ratio": [], "null": []}
    for seed in range(4):
        rng, inside, is_member = np.random.default_rng(seed), masks(1500, 4, seed)[:count], np.arange(1500) < 750
        noise = rng.standard_normal if tails == "normal" else (lambda size, draw=rng: draw.standard_t(2.5, size))
        hard, gap = rng.normal(1, 2, 1500), rng.choice([0.0, 3.0] if tails == "normal" else [0.6], 1500)
        signals = ShadowSignals(inside, (hard + gap * inside + noise((count, 1500))).astype(np.float32))
        target = (hard + gap * is_member + noise((1, 1500))).astype(np.float32)
        name = choose(pseudo_targets({"own": signals}), "tpr_mean", shadows=count)
        assert name == "bavaria/own"
        for told, score in (("headline", bavaria), ("rmia", rmia), ("log ratio", log_ratio)):
            areas[told].append(auc(score(target, signals)[0], is_member).estimate)
        areas["null"].append(auc(bavaria(target, signals)[0], rng.permutation(is_member)).estimate)
    mean = {name: float(np.mean(some)) for name, some in areas.items()}
    middle = (mean["rmia"] + mean["log ratio"]) / 2
    assert mean["headline"] > (middle if tails == "normal" else mean["rmia"])
    assert abs(mean["null"] - 0.5) < 0.02


def test_numbers_of_shadows_with_and_without_a_record_tell_nothing() -> None:
    """Of three shadows a record is in one or two. A loop over records takes the mean of both sorts' means."""
    phi, _, population = normal_signals(4, 60, 1.0, 1)
    odd = ShadowSignals(population.inside[:3], population.phi[:3])
    chance = 1 / (1 + np.exp(-odd.phi.astype(float)))
    for j, score in enumerate(rmia(phi, odd)[0]):
        sides = [chance[odd.inside[:, j] == side, j].mean() for side in (True, False)]
        expected = -math.log(1 + math.exp(-float(phi[0, j]))) - math.log(np.mean(sides))
        assert score == pytest.approx(expected, abs=1e-5)


def test_of_one_shadow_the_other_sort_is_that_of_equal_rank() -> None:
    phi, is_member, population = normal_signals(2, 1200, 2.0, 2)
    one = ShadowSignals(population.inside[:1], population.phi[:1])
    chance, inside = 1 / (1 + np.exp(-one.phi[0].astype(float))), one.inside[0]
    ranked = {side: np.sort(chance[inside == side]) for side in (True, False)}
    found, ratio = rmia(phi, one)[0], np.log(1 / (1 + np.exp(-phi[0].astype(float)))) - np.log(chance)
    for j in range(0, 1200, 37):
        place = int((ranked[bool(inside[j])] < chance[j]).sum())
        other = np.quantile(ranked[not inside[j]], (place + 0.5) / 600)
        expected = math.log(1 / (1 + math.exp(-float(phi[0, j])))) - math.log((chance[j] + other) / 2)
        assert found[j] == pytest.approx(expected, abs=1e-4)
    assert auc(found, is_member).estimate > auc(ratio, is_member).estimate + 0.02, "that it was in the shadow hides it"
    assert abs(auc(found, inside).estimate - 0.5) < abs(auc(ratio, inside).estimate - 0.5), "of which it tells less"
    unseen = np.random.default_rng(0).permutation(is_member)
    assert abs(auc(found, unseen).estimate - 0.5) < 0.05
    assert np.isfinite(rmia(phi[:, :1], ShadowSignals(inside[None, :1], one.phi[:, :1]))).all(), "a record alone"
    assert choose({}, "auc_mean", shadows=1) == "rmia/own"


def test_rmia_ranks_as_its_definition_and_keeps_its_digits() -> None:
    phi, _, population = normal_signals(8, 60, 1.0, 1)
    fast = rmia(phi, population)[0]
    p = 1 / (1 + np.exp(-phi[0].astype(np.longdouble)))
    share = towards_one(population)
    reference = share + (1 - share) * (1 / (1 + np.exp(-population.phi.astype(np.longdouble)))).mean(0)
    assert fast == pytest.approx(np.log(p / reference).astype(float), rel=1e-6, abs=1e-12)
    ratio, z_ratio = np.exp(fast), np.exp(rmia(phi[:, ::-1] * 0.9, population)[0])
    score = (ratio[:, None] / z_ratio[None, :] > 1.1).mean(1)  # Zarifzadeh et al. 2024, equation 2
    assert (np.diff(score[np.argsort(ratio)]) >= 0).all()
    easy = ShadowSignals(population.inside, np.full((8, 60), 60, np.float32))  # p = 1 - 1e-26
    lead = rmia(np.full((1, 60), 80, np.float32), easy)
    assert lead == pytest.approx(math.exp(-60) - math.exp(-80), rel=1e-9)
    hard = ShadowSignals(population.inside, np.full((8, 60), -300, np.float32))
    assert rmia(np.full((1, 60), -290, np.float32), hard) == pytest.approx(10)


@pytest.mark.parametrize(("remembered", "moved"), [(True, True), (False, False)])
def test_rmia_takes_the_coefficient_that_ranks_shadows_best(remembered: bool, moved: bool) -> None:
    """Where members are remembered whole and few others are known, difficulty says little of the ratio; where all are
    known nearly alike, it says all. What the shadows chose is best on targets that had no say, too.
    """
    gains = []
    for seed in range(3):
        rng, n = np.random.default_rng(seed), 400
        inside, is_member, hard = masks(n, 16, seed), np.arange(n) < n // 2, rng.normal(1, 4, n)
        everybody = np.vstack([is_member, inside])
        apart = rng.normal(size=everybody.shape)
        phi = np.where(everybody, 6 + apart, hard + apart) if remembered else hard + 0.4 * everybody + 0.3 * apart
        population = ShadowSignals(inside, phi[1:].astype(np.float32))
        plain = np.log(1 / (1 + np.exp(-phi[0]))) - np.log((1 / (1 + np.exp(-population.phi))).mean(0))
        gains.append(auc(rmia(phi[:1], population)[0], is_member).estimate - auc(plain, is_member).estimate)
        assert (towards_one(population) > 0) == moved
    assert np.mean(gains) > 0.02 if moved else np.allclose(gains, 0)


def test_every_score_stays_a_number_where_probabilities_do_not() -> None:
    """Margins of a network with values of a mask alone go to some thousands."""
    phi, _, signals = normal_signals(6, 40, 1.0, 0)
    wide = ShadowSignals(signals.inside, 400 * signals.phi - 2000)
    for name, score in WITH_SHADOWS.items():
        assert np.isfinite(score(400.0 * phi - 2000, wide)).all(), name


def test_what_more_shadows_find_is_forecast() -> None:
    true = {count: 0.5 - 0.4 / count for count in (8, 14, 32)}  # a line over 1 / number is met exactly
    assert more_shadows(true[8], true[14], 16) == pytest.approx((true[32], 0.5))
    assert more_shadows(0.3, 0.2, 16) == (0.2, 0.2), "fewer shadows that found more, by chance, forecast no fall"
    _, _, population = normal_signals(16, 400, 2.0, 0)
    half = tpr_by_half(population, "bavaria/own")
    assert half is not None
    mean, untold = pseudo_targets({"own": population})["bavaria/own"]["tpr_mean"], population.inside[:6]
    assert mean is not None
    assert 0.05 < half < mean
    assert more_shadows(half, mean, 16)[0] > mean
    assert tpr_by_half(ShadowSignals(untold, population.phi[:6]), "bavaria/own") is None


def test_leaving_the_complement_in_would_leak() -> None:
    """Margins of pure noise, 6 shadows: as pseudo-targets they must look like what they are."""
    areas, naive = [], []
    for seed in range(40):
        _, _, population = normal_signals(6, 400, 0.0, seed)
        kept = ~related(population.inside, population.inside)
        assert (kept.sum(1) == 4).all()
        for row, inside in zip(lira(population.phi, population, kept), population.inside, strict=True):
            areas.append(auc(row, inside).estimate)
        with_complement = kept | (population.inside[:, None] != population.inside[None]).all(2)
        for row, inside in zip(lira(population.phi, population, with_complement), population.inside, strict=True):
            naive.append(auc(row, inside).estimate)
    assert abs(np.mean(areas) - 0.5) < 0.01
    assert abs(np.mean(naive) - 0.5) > 0.02


def test_quantile_regression_takes_out_what_a_record_shows() -> None:
    """Margins that follow from a value of the record, with a spread that follows from another."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 5)).astype(np.float32), rng.integers(0, 3, 900)
    is_member = np.arange(900) < 300
    noise = rng.normal(size=900) + 2.0 * is_member
    phi = 5 * x[:, 0] + y + np.exp(0.7 * x[:, 1]) * noise
    records, rest = Records(torch.from_numpy(x[:600]), torch.from_numpy(y[:600])), slice(600, 900)
    known = Records(torch.from_numpy(x[rest]), torch.from_numpy(y[rest]))
    found = quantile(phi[:600], records, phi[rest], known, seed=0)
    assert np.corrcoef(found, noise[:600])[0, 1] > 0.9
    best = auc(noise[:600], is_member[:600]).estimate
    assert auc(found, is_member[:600]).estimate > best - 0.03 > auc(loss(phi[:600]), is_member[:600]).estimate + 0.1
