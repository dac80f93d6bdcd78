"""The release set: a planted leak that no version shows alone, a null, and sets that follow from the plan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy import special, stats

from crushproof.attacks.inference.joint import joint
from crushproof.attacks.inference.release_set import TOGETHER, alone, chosen, sets_of, singles, together
from crushproof.attacks.membership.population import masks
from crushproof.attacks.membership.scoring.bavaria import shrinkage
from crushproof.attacks.preparation import Scope
from crushproof.attacks.statistics.ranking import auc
from crushproof.targets.data.data import Data

N, K, NAMES = 600, 16, ("int8", "int4", "prune80")


def versions(seed: int, gap: float, common: float = 0.4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Margins of a target [1, 3, n] and of shadows [k, 3, n]: the same gap in each version, noise mostly its own."""
    stream = np.random.default_rng(seed)
    inside, is_member, hard = masks(N, K, seed), np.arange(N) < N // 2, stream.normal(2, 3, N)

    def margins(side: np.ndarray) -> np.ndarray:
        noise = common * stream.normal(size=(len(side), 1, N)) + stream.normal(size=(len(side), 3, N))
        return (hard + gap * side[:, None] + noise).astype(np.float32)

    return margins(is_member[None]).astype(float), margins(inside), inside, is_member


def test_versions_held_together_give_away_more_than_any_alone_and_nothing_where_there_is_nothing() -> None:
    phi, shadows, inside, is_member = versions(0, 1.0)
    keep = np.ones((1, K), dtype=bool)
    found = {**together(phi, shadows, inside, keep), **alone(phi, shadows, inside, keep, NAMES)}
    told = chosen(shadows, inside, NAMES)
    areas = {name: auc(score[0], is_member).estimate for name, score in found.items()}
    assert told["headline"] in TOGETHER
    assert areas[told["headline"]] > max(areas[name] for name in singles(NAMES)) + 0.03
    assert auc(found["joint"][0], is_member).low > 0.6
    gain = told["figures"][told["headline"]]["auc_mean"] - told["figures"][told["largest"]]["auc_mean"]
    assert gain > 0.03
    phi, shadows, inside, is_member = versions(1, 0.0)
    null = together(phi, shadows, inside, keep)
    assert all(auc(score[0], is_member).low <= 0.5 <= auc(score[0], is_member).high for score in null.values())


def test_of_one_version_the_joint_score_is_a_loop_over_records_and_of_equal_ones_nearly() -> None:
    phi, shadows, inside, _ = versions(2, 1.0)
    keep = np.ones((1, K), dtype=bool)
    one = joint(phi[:, :1], shadows[:, :1], inside, keep)
    expected = np.zeros(N)
    for sign, side in ((1, inside), (-1, ~inside)):
        samples = [shadows[side[:, j], 0, j].astype(float) for j in range(N)]
        freedom = np.array([len(some) - 1.0 for some in samples])
        squares = freedom * np.array([some.var(ddof=1) for some in samples])
        every = np.zeros((1, N)), np.ones((1, N), dtype=bool)
        d0, s0 = (float(prior[0, 0]) for prior in shrinkage(squares[None], freedom[None], *every))
        scale = np.sqrt((squares + d0 * s0) / (freedom + d0) * (1 + 1 / (freedom + 1)))
        expected += sign * stats.t.logpdf(phi[0, 0], freedom + d0, [some.mean() for some in samples], scale)
    assert one[0] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    twice = joint(np.repeat(phi[:, :1], 2, 1), np.repeat(shadows[:, :1], 2, 1), inside, keep)
    assert np.corrcoef(special.expit(one[0]), special.expit(twice[0]))[0, 1] > 0.98


def test_a_set_is_what_one_parent_would_release(digits: Data) -> None:
    dense, other = SimpleNamespace(name="dense", hardened=None), SimpleNamespace(name="dense-dp", hardened=object())

    def model(name: str, parent: object) -> SimpleNamespace:
        return SimpleNamespace(name=name, parent=parent, recipe=None)

    models = {one.name: one for one in (model("a", dense), model("b", other), model("c", dense), model("d", dense))}
    scope = Scope("release-set", digits, 0, 8, 8, cast(Any, models), released=("a", "b", "c"))
    assert sets_of(scope) == {"dense": ("a", "c")}
    few = Scope("release-set", digits, 0, 2, 2, cast(Any, models), released=("a", "b", "c"))
    assert sets_of(few) == {}
