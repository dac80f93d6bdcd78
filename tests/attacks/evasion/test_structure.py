"""Only records that somebody could send: what is held stays to the bit, counts stay whole, ids are not attacked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evasion_cases import LENGTH, WORDS, Pooled, case_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.art_catalogue import Art
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.black_box.transfer import Transfer
from crushproof.attacks.evasion.case import EvasionInputs
from crushproof.attacks.evasion.categories import known_structure, not_pixels
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd, craft
from crushproof.attacks.evasion.radius import choose
from crushproof.attacks.extraction.asking.queries import choose_queries
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.training.ball import Ball, Norm

COLUMNS = Structure(immutable=(0,), one_hot=((3, 4, 5, 6),), codes=(7,), integer=(2,))
HELD = [0, 3, 4, 5, 6, 7]


def small_table(structure: Structure, n: int = 240) -> Data:
    """Two fractions, a count of 0 to 60, a block of four, a code; the class follows from all of them."""
    stream = np.random.default_rng(0)
    x = np.c_[
        stream.random((n, 2)), stream.integers(0, 61, n), np.eye(4)[stream.integers(0, 4, n)], stream.integers(0, 3, n)
    ]
    y = (x[:, 0] + x[:, 1] + x[:, 2] / 60 + x[:, 3] - x[:, 6] > 1.5).astype(np.int64)
    low, high = torch.zeros(8), torch.tensor([1.0, 1, 60, 1, 1, 1, 1, 2])
    records = Records(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y))
    return Data("table", None, records, Bounds(low, high), ("no", "yes"), structure=structure)


def case(structure: Structure) -> Case:
    data = small_table(structure)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        module[0].weight[:, 2] /= 60
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(150):
        loss = nn.functional.cross_entropy(module(data.non_members.x), data.non_members.y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return case_of(data, module.eval().requires_grad_(False), structure=structure)


def invalid(x: Tensor, clean: Tensor, epsilon: float, norm: Norm, bounds: Bounds) -> list[int]:
    """The rows that nobody could send, or that are too far: written out here, apart from `Ball`."""
    scale = (bounds.high - bounds.low).double()
    change = (x.double() - clean.double()) / scale
    far = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    bad = (x[:, HELD] != clean[:, HELD]).any(1) | (x[:, 2] % 1 != 0) | (x[:, 3:7].sum(1) != 1)
    bad |= ~torch.isin(x[:, 3:7], torch.tensor([0.0, 1.0])).all(1) | (far > epsilon + 3e-6)
    bad |= ((x < bounds.low) | (x > bounds.high)).any(1)
    return bad.nonzero().flatten().tolist()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_part_stores_valid_records_only(norm: Norm) -> None:
    table = case(COLUMNS)
    n = 24
    records = table.evaluation.take(torch.arange(n))
    crafted = craft(table.twin or nn.Identity(), records, [0.15], norm, table.bounds, seed=0, steps=8)[0.15]
    assert invalid(crafted, records.x, 0.15, norm, table.bounds) == []
    table = replace(table, parent=nn.Identity(), prepared=EvasionInputs(parent_adversarial={0.15: crafted}))
    hop = Art(name="HopSkipJump", parameters={"max_iter": 2, "max_eval": 50, "init_eval": 10})
    parts = [Pgd(steps=8), Apgd(steps=8), Square(queries=40), Transfer(), hop, Pgd(label="ce", loss="margin", steps=8)]
    found = {}
    for part in parts:
        attack = Evasion(norm=norm, epsilons=(0.15,), gate_epsilon=0.15, records=n, parts=(part,))
        evidence = attack.run(table, seed=0)
        x = torch.as_tensor(evidence.arrays["adversarial"])
        assert invalid(x, records.x, 0.15, norm, table.bounds) == [], part.part
        fooled = evidence.arrays[f"fooled/{part.part}/0.15"]
        wrong = (table.deployed.logits(x).argmax(1) != records.y).numpy()
        assert (wrong >= fooled).all()
        found[part.part] = int((fooled & evidence.arrays["clean_correct"]).sum())
    assert found["pgd"] > 3, "numbers and counts can be changed"
    assert found["pgd"] >= max(found.values()) - 2
    choose(table, norm, seed=0)  # the probe for a radius goes the same way


def test_held_features_alone_are_left_out_of_the_sum() -> None:
    """The same model without the structure falls to more: what is held was worth something to the attacker."""
    attack = Evasion(epsilons=(0.3,), gate_epsilon=0.3, records=80, parts=(Pgd(steps=10),))
    free = case(Structure(one_hot=((3, 4, 5, 6),), codes=(7,)))
    held = case(replace(COLUMNS, immutable=(0, 1)))
    robust = [1 - attack.run(one, seed=0).arrays["worst/0.3"].mean() for one in (free, held)]
    assert robust[0] + 0.05 < robust[1]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 4), st.floats(0.05, 1.3))
def test_whole_numbers_are_rounded_to_the_nearest_inside(seed: int, d: int, epsilon: float) -> None:
    """Beside all points of the grid, counted out: never outside by anything, and at most the nearest but for one."""
    stream = torch.Generator().manual_seed(seed)
    high = torch.randint(3, 7, (d,), generator=stream).float()
    clean = (torch.rand(6, d, generator=stream) * (high + 1)).floor().clamp_max(high)
    far = clean + torch.randn(6, d, generator=stream) * high * 0.7
    x = Ball("l2", epsilon, clean, Bounds(torch.zeros(d), high)).project(far)
    found = Ball("l2", epsilon, clean, Bounds(torch.zeros(d), high, whole=torch.ones(d).bool())).project(far)
    grid = torch.cartesian_prod(*(torch.arange(int(end) + 1) for end in high)).double()
    for center, wanted, got in zip(clean.double(), x.double(), found.double(), strict=True):
        inside = grid[((grid - center) / high).norm(dim=1) <= epsilon * (1 + 1e-7)]
        away = ((inside - wanted) / high).norm(dim=1)
        assert (inside == got).all(1).any()
        mine = ((got - wanted) / high).norm()
        assert int((away < mine - 1e-6).sum()) <= 1
        assert mine <= (((center + (wanted - center).trunc()) - wanted) / high).norm() + 1e-6


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.005, 1.2), st.sampled_from(["linf", "l2"]))
def test_the_ball_holds_and_rounds(seed: int, epsilon: float, norm: Norm) -> None:
    bounds = small_table(COLUMNS).bounds
    clean = small_table(COLUMNS).non_members.x[:20]
    ball = Ball(norm, epsilon, clean, bounds)
    stream = torch.Generator().manual_seed(seed)
    x = clean + torch.randn(clean.shape, generator=stream) * bounds.scale
    gradient = torch.randn(clean.shape, generator=stream)
    made = [ball.project(x), ball.random_start(torch.rand(clean.shape, generator=stream))]
    made += [ball.step(made[1], gradient, epsilon / 4), ball.step(made[0], gradient, torch.full((20, 1), epsilon))]
    for one in made:
        assert invalid(one, clean, epsilon, norm, bounds) == []
        assert bool(ball.contains(one).all())
        assert torch.equal(ball.project(one), one) or norm == "l2"
    if norm == "linf" and epsilon >= 1 / 60:  # a short step moves a count by one, and is not rounded away
        assert bool((ball.step(clean, gradient, 1e-4)[:, 2] != clean[:, 2])[(clean[:, 2] % 60 != 0)].all())
    for column in HELD:
        moved = clean.clone()
        moved[:, column] += 1e-6
        assert not bool(ball.contains(moved)[moved[:, column] != clean[:, column]].any())
    moved = clean.clone()
    moved[:, 2] += 0.5
    assert not bool(ball.contains(moved).any())


def test_undeclared_structure_is_named_with_the_way_to_declare_it() -> None:
    why = not_pixels(case(Structure()))
    assert why is not None
    assert "one_hot: [[3-6]]" in why
    assert not_pixels(case(COLUMNS)) is None
    nothing = not_pixels(case(replace(COLUMNS, immutable=(0, 1, 2))))
    assert nothing is not None
    assert "all 8 features" in nothing
    assert "nothing is left to change" in nothing


def test_declared_tokens_wait_for_another_attack_and_are_spliced_by_extraction() -> None:
    x = torch.as_tensor(np.random.default_rng(0).integers(0, WORDS, (90, LENGTH)), dtype=torch.float32)
    data = Data(
        "ids", None, Records(x, torch.arange(90) % 2), Bounds.of(0, 49), ("a", "b"), structure=Structure(tokens=True)
    )
    ids = case_of(data, Pooled().eval(), structure=data.structure)
    why = not_pixels(ids)
    assert why is not None
    assert "Membership and extraction are measured" in why
    assert known_structure(replace(ids, structure=Structure())).tokens, "undeclared ids are seen"
    queries = choose_queries(ids.attacker, 100, seed=0, structure=data.structure)
    own = {tuple(row) for row in ids.attacker.x.tolist()}
    heads = {row[:6] for row in own}
    tails = {row[-1] for row in own}
    assert all(row[:6] in heads and row[-1] in tails for row in map(tuple, queries.tolist()))
    assert len({tuple(row) for row in queries.tolist()} - own) > 50


def test_mixes_of_a_table_are_records() -> None:
    data = small_table(COLUMNS)
    x = choose_queries(data.attacker, 400, seed=1, structure=COLUMNS)
    assert bool((x[:, 3:7].sum(1) == 1).all())
    assert bool(torch.isin(x[:, 3:], torch.tensor([0.0, 1.0, 2.0])).all())
    assert bool((x[:, 2] % 1 == 0).all())
    assert len(x[:, 0].unique()) > 300
    seen = known_structure(case(Structure()))
    assert seen.one_hot == ((3, 4, 5, 6),)
