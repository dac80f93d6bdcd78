"""Intervals and tests: published values, independent oracles, measured coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score

from crushproof.attacks.membership.measure import leak_seen
from crushproof.attacks.statistics import ranking, rates
from crushproof.attacks.statistics.medians import graded_median
from crushproof.attacks.statistics.power import detectable_auc, detectable_drop, detectable_tpr
from crushproof.attacks.statistics.ranking import auc, auc_change, roc, tail_rate_distribution, tpr_at_fpr, tpr_change
from crushproof.attacks.statistics.rates import clopper_pearson, holm, mcnemar, paired_change, tango

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=50)
@given(counts)
def test_rates_agree_with_scipy(kn: tuple[int, int]) -> None:
    k, n = kn
    oracle = stats.binomtest(k, n)
    ours, theirs = clopper_pearson(k, n), oracle.proportion_ci(0.95, method="exact")
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)
    assert ours.low <= ours.estimate <= ours.high


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


def naive_score(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic, its nuisance parameter found by maximising the multinomial likelihood numerically."""

    def minus_likelihood(q: float) -> float:
        cells = [(b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta)]
        return -sum(k * math.log(p) if k else 0.0 for k, p in cells if k == 0 or p > 0) + 1e9 * any(
            k > 0 and p <= 0 for k, p in cells
        )

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (2, 12, 50), (7, 7, 100), (30, 5, 300), (1, 9, 40)])
def test_tango_inverts_the_score_test(b: int, c: int, n: int) -> None:
    interval = tango(b, c, n)
    z = stats.norm.ppf(0.975)
    assert naive_score(b, c, n, interval.low) == pytest.approx(z, abs=2e-3)
    assert naive_score(b, c, n, interval.high) == pytest.approx(-z, abs=2e-3)


def test_tango_published_value() -> None:
    # Fagerland, Lydersen & Laake 2014, airway hyper-responsiveness: 21 children, 1 and 7 discordant
    interval = tango(1, 7, 21)
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)
    assert interval.p_value == pytest.approx(0.0703, abs=1e-4)


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
def test_tango_is_antisymmetric_and_bounded(n: int, b: int, c: int) -> None:
    b, c = min(b, n), min(c, max(0, n - b))
    one, other = tango(b, c, n), tango(c, b, n)
    assert -1 <= one.low <= one.estimate <= one.high <= 1
    assert one.low == pytest.approx(-other.high, abs=1e-7)
    if b == c == 0:  # no disagreement is not certainty; the limit is that of Wilson's interval with z^2 in n + z^2
        assert one.high == pytest.approx(3.8414588 / (n + 3.8414588), abs=1e-6)


def test_paired_change_counts_both_ways() -> None:
    after = np.array([True] * 10 + [False] * 5 + [True] * 5)
    before = np.array([True] * 10 + [True] * 5 + [False] * 3 + [True] * 2)
    assert paired_change(after, before) == tango(3, 5, 20)


def test_holm_published_and_monotone() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(method="holm")
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def drawn(n: int, shift: float, seed: int, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(shift, 1, n), rng.normal(0, 1, n)])
    return (scores.round(1) if rounded else scores), np.arange(2 * n) < n


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(-1, 2), st.booleans())
def test_auc_agrees_with_scikit_learn_and_naive_delong(seed: int, n: int, shift: float, rounded: bool) -> None:
    scores, is_member = drawn(n, shift, seed, rounded)
    interval = auc(scores, is_member)
    assert interval.estimate == pytest.approx(roc_auc_score(is_member, scores))
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    kernel = np.array([[(x > y) + 0.5 * (x == y) for y in scores[n:]] for x in scores[:n]])
    error = math.sqrt(kernel.mean(1).var(ddof=1) / n + kernel.mean(0).var(ddof=1) / n)
    area = interval.estimate
    if 0 < area < 1 and error > 0:
        half = stats.norm.ppf(0.975) * error / (area * (1 - area))
        assert interval.high == pytest.approx(1 / (1 + math.exp(-(math.log(area / (1 - area)) + half))))
    false, true = roc(scores, is_member)
    assert np.trapezoid(true, false) == pytest.approx(interval.estimate)


def test_paired_delong_rejects_a_null_as_often_as_it_says() -> None:
    p_values, covered = [], 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        common, is_member = rng.normal(size=300), np.arange(300) < 150
        one, other = (common + rng.normal(size=300) + 0.5 * is_member for _ in range(2))
        change = auc_change(one, other, is_member)
        p_values.append(change.p_value)
        covered += change.low <= 0 <= change.high
    assert 0.025 < np.mean(np.array(p_values) < 0.05) < 0.085
    assert covered >= 0.92 * 400
    same = auc_change(one, one, is_member)
    assert (same.low, same.high, same.p_value) == (0, 0, 1)


def test_tpr_by_hand_and_ties_never_lift_the_false_positive_rate() -> None:
    is_member = np.array([True] * 4 + [False] * 10)
    scores = np.array([9.0, 7, 5, 3, 8.0, 6, 4, 2, 1, 0, 0, 0, 0, 0])
    assert tpr_at_fpr(scores, is_member, 0.1).estimate == 0.25  # threshold 8
    assert tpr_at_fpr(scores, is_member, 0.2).estimate == 0.5  # threshold 6
    assert tpr_at_fpr(scores, is_member, 0.39).estimate == 0.75  # three allowed: threshold 4
    tied = np.array([9.0, 8, 5, 3, 8.0, 8, 4, 2, 1, 0, 0, 0, 0, 0])
    assert tpr_at_fpr(tied, is_member, 0.1).estimate == 0.25  # 8 would let two in: the threshold is above 8
    assert tpr_at_fpr(np.zeros(14), is_member, 0.5).estimate == 0  # a constant score tells nothing


@pytest.mark.parametrize(("fpr", "round_to"), [(0.01, 9), (0.3, 9), (0.3, 0), (0.99, 1)])
def test_tpr_limits_are_quantiles_of_the_mixture_told_by_a_loop_over_thresholds(fpr: float, round_to: int) -> None:
    """The docstring's mixture, beta by beta; with ties, and where nearly all weight is on one count."""
    scores, is_member = drawn(200, 0.5, 1)
    scores = scores.round(round_to)
    members, others = scores[is_member], np.sort(scores[~is_member])[::-1]
    found = tpr_at_fpr(scores, is_member, fpr)
    for limit, probability in ((found.low, 0.025), (found.high, 0.975)):
        reached = 0.0
        for k in range(len(others) + 1):
            above = (members > (others[k - 1] if k else np.inf)).sum()
            at_least = (members >= (others[k] if k < len(others) else -np.inf)).sum()
            betas = [stats.beta.cdf(limit, n + 0.5, len(members) - n + 0.5) for n in (above, at_least)]
            reached += stats.binom.pmf(k, len(others), fpr) * np.mean(betas)
        assert reached == pytest.approx(probability, abs=1e-6) or limit == found.estimate


def test_no_tpr_below_one_over_n() -> None:
    scores, is_member = drawn(99, 0, 0)
    with pytest.raises(ValueError, match="99 non-members; it takes 100"):
        tpr_at_fpr(scores, is_member, 0.01)
    with pytest.raises(ValueError, match="it takes 100"):
        tpr_change(scores, scores, is_member, 0.01, seed=0)
    with pytest.raises(ValueError, match="finite"):
        auc(np.full(198, np.nan), is_member)


@pytest.mark.parametrize(("n", "shift"), [(300, 0.0), (300, 0.7), (600, 0.7)])
def test_intervals_cover_the_truth(n: int, shift: float) -> None:
    """500 seeds without a leak (AUC .5, TPR 1 %) and with a planted one (AUC .69, TPR 5.2 %): at least 94 %."""
    area = stats.norm.cdf(shift / math.sqrt(2))
    rate = stats.norm.sf(stats.norm.isf(0.01) - shift)
    covered = np.zeros(2)
    widths = []
    for seed in range(500):
        scores, is_member = drawn(n, shift, seed)
        of_auc, of_tpr = auc(scores, is_member), tpr_at_fpr(scores, is_member, 0.01)
        covered += [of_auc.low <= area <= of_auc.high, of_tpr.low <= rate <= of_tpr.high]
        widths.append(of_tpr.high - of_tpr.low)
    assert (covered >= 470).all(), covered
    # not by being absurdly wide: within 1.6 times the width of a known threshold and the delta method
    slope = stats.norm.pdf(stats.norm.ppf(rate)) / stats.norm.pdf(stats.norm.ppf(0.01))
    ideal = 2 * 1.96 * math.sqrt(rate * (1 - rate) / n + slope**2 * 0.01 * 0.99 / n)
    assert np.mean(widths) < 1.6 * ideal


def naive_tpr(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
    best = [t for t in [*others, np.inf] if (others >= t).sum() <= math.floor(fpr * len(others) + 1e-9)]
    threshold = min(best)
    return float((members > others.max()).mean() if threshold == np.inf else (members >= threshold).mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.05, 0.1, 0.3]))
def test_bootstrap_equals_a_loop_over_resamples(seed: int, rounded: bool, fpr: float) -> None:
    scores, is_member = drawn(25, 0.5, seed, rounded)
    members, others = scores[is_member], scores[~is_member]
    rng = np.random.default_rng(seed)
    weights = [ranking._resample(rng, 25, 20) for _ in range(2)]
    fast = ranking._resampled_tpr(members, others, *weights, fpr)
    slow = [
        naive_tpr(np.repeat(members, of_members), np.repeat(others, of_others), fpr)
        for of_members, of_others in zip(*weights, strict=True)
    ]
    assert fast == pytest.approx(slow)


@pytest.mark.parametrize(("after", "before"), [(0.0, 0.0), (0.7, 0.3)])
def test_change_of_tpr_covers_the_truth(after: float, before: float) -> None:
    truth = float(np.diff([stats.norm.sf(stats.norm.isf(0.01) - shift) for shift in (before, after)])[0])
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        is_member = np.arange(600) < 300
        common = rng.normal(size=600)
        one, other = (
            0.9 * common + math.sqrt(0.19) * rng.normal(size=600) + shift * is_member for shift in (after, before)
        )
        change = tpr_change(one, other, is_member, 0.01, seed=seed, resamples=500)
        covered += change.low <= truth <= change.high
    assert covered >= 93


def test_change_of_tpr_follows_from_its_seed() -> None:
    (one, is_member), (other, _) = drawn(200, 1.0, 1), drawn(200, 0.0, 2)
    change = tpr_change(one, other, is_member, seed=5)
    assert change == tpr_change(one, other, is_member, seed=5)
    assert change != tpr_change(one, other, is_member, seed=6)
    same = tpr_change(one, one, is_member, seed=5)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_power_is_what_it_says() -> None:
    drop = detectable_drop(300)
    assert mcnemar(6, 0) < 0.05 <= mcnemar(5, 0)
    assert stats.binom.sf(5, 300, drop) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="cannot show"):
        detectable_drop(5)
    area, rate = detectable_auc(300, 300), detectable_tpr(300, 300)
    seen_auc = seen_tpr = 0
    for seed in range(200):
        scores, is_member = drawn(300, math.sqrt(2) * stats.norm.ppf(area), seed)
        seen_auc += auc(scores, is_member).low > 0.5
        scores, is_member = drawn(300, stats.norm.isf(0.01) - stats.norm.isf(rate), seed)
        seen_tpr += tpr_at_fpr(scores, is_member).low > 0.01
    assert 0.7 < seen_auc / 200 < 0.9
    assert 0.65 < seen_tpr / 200 < 0.95


def test_with_few_records_no_tpr_is_told_from_chance() -> None:
    """Of 200 others, even scores that tell members without an error leave 1 % within the interval."""
    perfect = tail_rate_distribution(np.full(200, 9.0), np.linspace(0, 1, 200), 0.01)
    assert perfect(0.01) > 0.025
    with pytest.raises(ValueError, match="no rate is told from"):
        detectable_tpr(200, 200)
    assert leak_seen(200, 16) is None


def test_graded_median_equals_a_loop_over_resamples_and_covers() -> None:
    """The interval of a percentile bootstrap of the records themselves, up to one grade; the truth inside."""
    shares, covered = np.array([0.1, 0.15, 0.2, 0.25, 0.3]), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        first = rng.choice(5, 60, p=shares)
        median, low, high = graded_median(first, 4, seed=seed)
        assert median == np.sort(first)[29]
        covered += low <= 3 <= high  # the first grade that half of all reach: .1, .25, .45, .7
        if seed < 10:
            drawn_again = np.sort(first[rng.integers(0, 60, (4000, 60))], axis=1)[:, 29]
            slow = np.quantile(drawn_again, (0.025, 0.975), method="inverted_cdf")
            assert np.abs(slow - (low, high)).max() <= 1
    assert covered >= 93
    assert graded_median(np.full(5, 4), 4, seed=0) == (4, 4, 4)
    for wrong in (np.array([], dtype=int), np.array([5])):
        with pytest.raises(ValueError, match="grades"):
            graded_median(wrong, 4, seed=0)


def test_a_few_equal_counts_leave_a_doubt() -> None:
    found = rates.mean(np.array([2.0, 2.0, 2.0]), step=1.0)
    reach = stats.t.ppf(0.975, 2) * 12**-0.5 / 3**0.5
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach))
    assert rates.mean(np.array([1.0, 9.0]), step=1.0) == rates.mean(np.array([1.0, 9.0]))
