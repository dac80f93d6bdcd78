"""Looks at growing data: the boundaries of the literature, and the error they promise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crushproof.attacks.statistics.rates import paired_change
from crushproof.attacks.statistics.sequential import boundaries, level_at, looks


def test_boundaries_are_the_published_ones() -> None:
    """Five equal looks, two-sided .05, Pocock-type spending: as the package ldbounds prints them."""
    assert boundaries((1, 2, 3, 4, 5)) == pytest.approx((2.4380, 2.4268, 2.4101, 2.3966, 2.3859), abs=2e-4)
    assert boundaries((7,)) == pytest.approx((1.95996,), abs=1e-4)


def test_all_looks_together_err_as_often_as_promised() -> None:
    counts = (200, 400, 800, 1600)
    stream = np.random.default_rng(0)
    steps = np.diff((0, *counts))
    scores = np.cumsum(stream.normal(size=(40_000, 4)) * np.sqrt(steps), axis=1) / np.sqrt(counts)
    beyond = (np.abs(scores) > boundaries(counts)).any(axis=1).mean()
    assert beyond == pytest.approx(0.05, abs=0.004)
    assert (np.abs(scores) > 1.96).any(axis=1).mean() > 0.1  # what looking without a price would do


def test_intervals_of_a_paired_change_hold_over_all_looks() -> None:
    counts = looks(600)
    levels = [level_at(counts, look) for look in range(len(counts))]
    stream = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        parent = stream.random(600) < 0.5
        candidate = np.where(stream.random(600) < 0.12, stream.random(600) < 0.25, parent)  # 3 points worse
        intervals = [
            paired_change(candidate[:count], parent[:count], level) for count, level in zip(counts, levels, strict=True)
        ]
        missed += any(not one.low <= -0.03 <= one.high for one in intervals)
    assert missed / 300 <= 0.05 + 0.025


@given(st.integers(1, 20_000))
def test_looks_double_and_end_with_all(most: int) -> None:
    counts = looks(most)
    assert counts[-1] == most
    assert all(b >= 1.5 * a for a, b in pairwise(counts))
    assert all(count == 200 * 2**position for position, count in enumerate(counts[:-1]))


def test_looks_must_ascend() -> None:
    for counts in ((), (0, 1), (2, 2)):
        with pytest.raises(ValueError, match="ascending"):
            boundaries(counts)
