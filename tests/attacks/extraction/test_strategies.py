"""What is asked by each strategy: records that somebody could send, each once, chosen as the strategy says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.extraction.asking.adaptive import least_certain
from crushproof.attacks.extraction.asking.foreign import composed, noise
from crushproof.attacks.extraction.asking.jacobian import augmented
from crushproof.attacks.extraction.asking.queries import own_order
from crushproof.attacks.extraction.asking.strategies import FIRST, ROUNDS, STRATEGIES, Asked, Strategy, ask, rounds_of
from crushproof.targets.data.records import Records
from crushproof.targets.data.structure import PLAIN, Structure
from crushproof.targets.errors import NotApplicable

TABLE = Structure(one_hot=((2, 3, 4),), codes=(5,), integer=(1,))


def table(count: int, seed: int = 0) -> Records:
    """A fraction, a count, a block of three, a code."""
    stream = torch.Generator().manual_seed(seed)
    block = torch.eye(3)[torch.randint(3, (count,), generator=stream)]
    x = torch.cat(
        [
            torch.rand(count, 1, generator=stream),
            torch.randint(40, (count, 1), generator=stream).float(),
            block,
            torch.randint(4, 9, (count, 1), generator=stream).float(),
        ],
        1,
    )
    return Records(x, torch.zeros(count, dtype=torch.int64))


def slope(x: Tensor) -> Tensor:
    """Two classes, apart at .5 of the first feature."""
    return torch.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], 1)


class Slope(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return slope(x)


class Asking:
    """Answers, counts what it was asked and keeps how many records copies were taught."""

    def __init__(self) -> None:
        self.asked, self.taught = 0, list[int]()

    def answer(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return slope(x)

    def teach(self, x: Tensor, logits: Tensor, number: int) -> nn.Module:
        assert torch.equal(logits, slope(x))
        assert number == len(self.taught)
        self.taught.append(len(x))
        return Slope()

    def by(self, strategy: Strategy, records: Records, budgets: list[int], structure: Structure = PLAIN) -> Asked:
        return ask(strategy, records, budgets, self.answer, self.teach, seed=3, structure=structure)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_query_is_a_record_and_asked_once(strategy: Strategy) -> None:
    asking, own = Asking(), table(140)
    found = asking.by(strategy, own, [30, 60, 260], TABLE)
    assert asking.asked == len(found.x) == len(found.logits)
    assert asking.taught == rounds_of(strategy, 260)
    assert bool(asking.taught) == (strategy in ROUNDS)
    for budget, at in found.of.items():
        assert len(at) == len(at.unique()) == budget
        assert int(at.max()) < len(found.x)
    assert torch.equal(found.logits, slope(found.x))
    assert bool((found.x[:, 2:5].sum(1) == 1).all())
    assert bool(torch.isin(found.x[:, 2:5], torch.tensor([0.0, 1.0])).all())
    assert bool(torch.isin(found.x[:, 5], torch.arange(4.0, 9.0)).all())
    assert bool((found.x[:, 1] % 1 == 0).all())
    assert bool(((found.x >= own.x.amin(0)) & (found.x <= own.x.amax(0))).all())
    if strategy != "representative":
        assert torch.equal(found.x[found.of[30]], asking.__class__().by(strategy, own, [30], TABLE).x)
    again = Asking().by(strategy, own, [30, 60, 260], TABLE)
    assert torch.equal(found.x, again.x)


def test_representatives_of_several_budgets_are_asked_once() -> None:
    asking, own = Asking(), table(140)
    found = asking.by("representative", own, [30, 60], TABLE)
    assert 60 <= asking.asked < 90
    alone = Asking().by("representative", own, [30], TABLE)
    assert torch.equal(found.x[found.of[30]], alone.x[alone.of[30]])
    ids = Structure(tokens=True)
    assert torch.equal(
        Asking().by("representative", own, [30], ids).x[:30].sort(0).values,
        own.x[own_order(own, 3)[:30]].sort(0).values,
    ), "ids have no distances"


def test_the_adaptive_attacker_asks_near_the_boundary() -> None:
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(1))
    found = Asking().by("adaptive", Records(x, torch.zeros(400, dtype=torch.int64)), [2 * FIRST])
    away = (found.x[:, 0] - 0.5).abs()
    assert away[:FIRST].max() > 0.4
    assert away[FIRST:].max() < 0.2, "the nearest of 350 to one of twice as many as are asked"
    assert bool((found.x[:, None] == x).all(2).any(1).all()), "of its own records while there are enough"


def test_the_least_certain_are_unlike_each_other() -> None:
    pool = torch.tensor([[0.5, 0.0]] * 4 + [[0.51, 1.0], [0.9, 0.0], [0.1, 0.0]])
    assert sorted(pool[least_certain(Slope(), pool, 3, seed=0)][:, 1].tolist())[-1] == 1
    tokens = least_certain(Slope(), pool, 3, seed=0, structure=Structure(tokens=True))
    assert tokens.tolist() == [0, 1, 2]


def test_augmented_records_follow_the_gradient_and_back() -> None:
    own, labels = table(50), torch.zeros(50, dtype=torch.int64)
    weights = torch.tensor([[1.0, -2.0, 3.0, 0.5, -1.0, 4.0], [0.0] * 6]) / 100
    module = nn.Linear(6, 2, bias=False)
    module.weight.data = weights
    low, high = own.x.amin(0), own.x.amax(0)
    for number, way in ((0, -1), (1, 1)):
        expected = (own.x + 0.1 * way * (high - low) * weights[0].sign()).clamp(low, high)
        expected[:, 2:] = own.x[:, 2:]
        expected[:, 1] = expected[:, 1].round()
        found = augmented(module, own.x, labels, own.x, number, seed=0, structure=TABLE)
        assert torch.allclose(found.sort(0).values, expected.sort(0).values)
    with pytest.raises(NotApplicable, match="ids or categories"):
        Asking().by("jacobian", own, [200], Structure(tokens=True))


@pytest.mark.parametrize("make", [composed, noise])
def test_foreign_images(make: Callable[..., Tensor]) -> None:
    shades = torch.arange(1, 31).float() / 30
    own = Records(shades.view(30, 1, 1, 1).expand(30, 2, 8, 10), torch.zeros(30, dtype=torch.int64))
    x = make(own, 40, seed=0)
    assert x.shape == (40, 2, 8, 10)
    assert bool(((x >= shades[0]) & (x <= shades[-1])).all())
    if make is composed:
        assert bool((x[:, :, :2, :3] == x[:, :1, :1, :1]).all()), "a tile is of one record, in all channels"
        assert len(x[0].unique()) > 8
    else:
        assert len(x.unique()) > 6000
    line = Records(torch.rand(30, 5), own.y)
    assert bool(torch.isin(composed(line, 40, seed=0)[:, 2], line.x[:, 2]).all())
    ids = Records(torch.randint(50, (30, 6)).float(), own.y)
    spliced = make(ids, 40, seed=0, structure=Structure(tokens=True))
    assert all(bool(torch.isin(spliced[:, at], ids.x[:, at]).all()) for at in range(6))
