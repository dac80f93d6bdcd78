"""Attribute inference: what a model remembers of a hidden column shows on members alone, what it knows does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn

from crushproof.attacks.attributes.attributes import Attributes, Hidden
from crushproof.attacks.attributes.imputation import Imputed, attacked, columns, impute, records_of
from crushproof.attacks.measurement import Mean
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import check_arrays

N = 600


def table(seed: int) -> Records:
    """Four numbers, a category that they do not tell, one that they do, and a label that nothing tells."""
    rng = np.random.default_rng(seed)
    numbers = rng.random((N, 4)).astype(np.float32)
    secret, plain = rng.integers(0, 3, N), (numbers[:, 0] * 3).astype(int)
    x = np.concatenate([numbers, np.eye(3, dtype=np.float32)[secret], np.eye(3, dtype=np.float32)[plain]], 1)
    return Records(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 2, N)))


@pytest.fixture(scope="module")
def data() -> Data:
    structure = Structure(one_hot=((4, 5, 6), (7, 8, 9)))
    return Data("table", table(0), table(1), Bounds.of(0, 1), ("a", "b"), structure=structure)


class Remembers(nn.Module):
    """Sure of the label where the whole record is one it has seen; undecided elsewhere."""

    def __init__(self, seen: Records) -> None:
        super().__init__()
        self.x, self.y = seen.x, seen.y

    def forward(self, x: Tensor) -> Tensor:
        near, which = torch.cdist(x, self.x).min(1)
        sure = torch.where(near < 1e-3, 4.0, 0.0)
        return nn.functional.one_hot(self.y[which], 2) * sure[:, None]


@pytest.fixture(scope="module")
def hidden(data: Data) -> Hidden:
    scope: Any = type("Scope", (), {"data": data, "seed": 0})
    inputs: Any = type("Inputs", (), {"scope": scope})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crushproof.attacks.attributes.imputation.ROUNDS", 15)
        made = Imputed(100).compute(inputs)
    layout = Imputed(100).form(scope).arrays
    assert not callable(layout)
    check_arrays(made.arrays, layout or {})
    inside, others = (one.numpy() for one in attacked(data, 100, 0))
    return Hidden(inside, others, records_of(data, 100, 0), columns(data), made.arrays)


def found(data: Data, hidden: Hidden, module: nn.Module) -> tuple[Any, Any]:
    attack, case = Attributes(records=100), case_of(data, module, prepared=hidden)
    evidence = attack.run(case, seed=0)
    model: Any = type("Model", (), {"name": "m", "baselines": ("m",)})
    scope: Any = type("Scope", (), {"data": data, "seed": 0})
    form = attack.form(model, scope)
    assert form.holds is not None
    assert not callable(form.arrays)
    check_arrays(evidence.arrays, form.arrays or {})
    form.holds(None, evidence.arrays, {})
    results: Any = type("Results", (), {"model": model, "scope": scope, "evidence": lambda self, ran: evidence})()
    gain, more = attack.measure(results)
    assert isinstance(gain.outcome, Mean)
    assert isinstance(more.outcome, Mean)
    assert float(gain.comparisons[0].own.values.mean()) == gain.outcome.values.mean()  # type: ignore[union-attr]  # means
    return gain, more


def test_what_is_remembered_is_told_of_members_alone(data: Data, hidden: Hidden) -> None:
    assert data.members is not None
    gain, more = found(data, hidden, Remembers(data.members))
    secret, plain = gain.groups.values()
    assert secret.values.mean() > 0.35, "a third is right by chance"
    assert plain.values.mean() < 0.15, "imputers know that one"
    assert more.outcome.values.mean() > 0.15


def test_a_model_that_says_nothing_gains_nothing(data: Data, hidden: Hidden) -> None:
    gain, more = found(data, hidden, Remembers(data.members.take(torch.arange(1))))  # type: ignore[union-attr]  # it has
    for outcome in (gain.outcome, more.outcome):
        error = outcome.values.std() / np.sqrt(len(outcome.values))
        assert abs(outcome.values.mean()) <= 3 * error + 0.02


def test_imputers_use_what_is_public(data: Data) -> None:
    secret, plain = columns(data)
    guessed = [impute(one, data.attacker, data.evaluation, False, 0).argmax(1) for one in (secret, plain)]
    right = [(own == one.categories(data.evaluation.x)).mean() for own, one in zip(guessed, columns(data), strict=True)]
    assert right[0] < 0.5 < 0.8 < right[1]
    filled = secret.filled(data.evaluation.x, 2)
    assert set(secret.categories(filled)) == {2}


def test_where_there_is_nothing_to_guess(data: Data) -> None:
    numbers = Records(data.non_members.x[:, :4], data.non_members.y)
    scope: Any = type("Scope", (), {"data": Data("numbers", None, numbers, data.bounds, ("a", "b")), "seed": 0})
    assert Attributes().unfit(scope) is not None
    assert (Attributes().usual(scope.data), Attributes().usual(data)) == (False, True)
    with pytest.raises(NotApplicable, match="no hidden column"):
        Attributes().run(case_of(data, Remembers(data.non_members)), seed=0)
