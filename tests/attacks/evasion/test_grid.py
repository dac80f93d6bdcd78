"""Inputs on a grid: against what can be computed for a linear net, and against a model that errs between its points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from evasion_cases import case_of
from torch import Tensor, nn

from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.call.attackable import attackable
from crushproof.attacks.evasion.call.grid import Grid
from crushproof.attacks.evasion.categories import nothing_to_change, seen_step
from crushproof.attacks.evasion.compare import below_step
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.nearest.found import Distance, norms
from crushproof.targets.data.data import Data
from crushproof.targets.data.declared import Declared
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure, resolved
from crushproof.targets.errors import InputError
from crushproof.training.ball import Norm

N, FEATURES, STEP = 30, 12, 1 / 15
QUICK: dict[str, Any] = {"budget": "quick", "grid": STEP}


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    net, x = nn.Linear(FEATURES, 2), torch.randint(0, 16, (N, FEATURES)).float() / 15
    return net, x, net(x).argmax(1)


def flips(net: nn.Linear, x: Tensor, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Whether any input within the limits has another class: a linear margin is least in a corner."""
    ahead = net.weight.detach()[y] - net.weight.detach()[1 - y]
    bias = net.bias.detach()[y] - net.bias.detach()[1 - y]
    return (torch.where(ahead > 0, low, high) * ahead).sum(1) + bias < 0


def on_grid(x: Tensor) -> bool:
    return torch.equal(x, (15 * x).round() / 15)


@pytest.mark.parametrize(("last", "step", "low"), [(255, 1 / 255, 0.0), (255, 2 / 255, -1.0), (15, 1 / 15, 0.0)])
def test_points_are_the_floats_that_pixels_become(last: int, step: float, low: float) -> None:
    places = torch.arange(last + 1)
    values = (places.double() * 2 / 255 - 1).float() if low else places.float() / last
    grid = Grid(step, low)
    assert torch.equal(grid.values(places), values)
    assert torch.equal(grid.places(values), places.double())
    assert torch.equal(grid.onto(values + step / 3), values)


@pytest.mark.parametrize(("epsilon", "steps"), [(0.1, 1), (0.2, 3)])
def test_of_a_linear_net_all_is_found_that_lies_on_the_grid(
    linear: tuple[nn.Linear, Tensor, Tensor], epsilon: float, steps: int
) -> None:
    net, x, y = linear
    found = evade(net, x, y, epsilon=epsilon, **QUICK)
    reach = steps / 15
    assert torch.equal(found.success, flips(net, x, y, (x - reach).clamp_min(0), (x + reach).clamp_max(1)))
    assert on_grid(found.adversarial)
    assert (found.distance[found.success] <= reach + 1e-9).all()
    blind = evade(attackable(net, (FEATURES,)).deployed, x, y, epsilon=epsilon, grid=STEP, parts=(Square(queries=30),))
    assert on_grid(blind.adversarial)
    assert not (blind.success & ~found.success).any()


def test_the_nearest_is_a_whole_number_of_steps_away(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    found = evade(net, x, y, **QUICK)
    exact = torch.full((N,), torch.inf)
    for steps in range(15, 0, -1):
        reach = steps / 15
        exact[flips(net, x, y, (x - reach).clamp_min(0), (x + reach).clamp_max(1))] = steps
    assert torch.equal(found.success, exact.isfinite())
    places = (found.distance * 15)[found.success]
    assert torch.allclose(places, places.round())
    assert (places.round() >= exact[found.success]).all()
    assert (places.round() == exact[found.success]).double().mean() > 0.8


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 0.5), ("l1", 0.8), ("l0", 2.0)])
def test_other_distances_count_in_steps_too(
    linear: tuple[nn.Linear, Tensor, Tensor], norm: Distance, epsilon: float
) -> None:
    net, x, y = linear
    nearest, within = (evade(net, x, y, norm=norm, epsilon=limit, **QUICK) for limit in (None, epsilon))
    assert on_grid(nearest.adversarial)
    some = nearest.success
    change = ((nearest.adversarial - x).double() * 15).round() / (1 if norm == "l0" else 15)
    torch.testing.assert_close(nearest.distance[some], norms(change, norm)[some])
    assert torch.equal(within.success, nearest.distance <= epsilon + 1e-6)
    assert 0 < within.success.sum() < some.sum()


def test_limits_beside_the_grid_are_kept_to_the_bit(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    low, high = (x - 0.16).clamp_min(0), x + torch.linspace(0, 0.3, FEATURES)
    found = evade(net, x, y, lower=low, upper=high, **QUICK)
    assert ((low <= found.adversarial) & (found.adversarial <= high)).all()
    assert on_grid(found.adversarial)
    reach = (torch.linspace(0, 0.3, FEATURES) * 15 + 1e-3).floor() / 15
    assert torch.equal(found.success, flips(net, x, y, (x - 2 / 15).clamp_min(0), x + reach))
    exact = evade(net, x, y, lower=(x - 2 / 15).clamp_min(0), upper=(x + 2 / 15).clamp_max(1), **QUICK)
    assert torch.equal(exact.success, evade(net, x, y, epsilon=2 / 15, **QUICK).success), "beside a limit by rounding"


class BetweenPoints(nn.Module):
    """Says 1 where any value is far from the grid, else 0; its gradient leads there."""

    def forward(self, x: Tensor) -> Tensor:
        off = (15 * x - (15 * x).detach().round()).abs().amax(1) - 0.25
        return torch.stack([-off, off], 1)


def test_what_is_adversarial_between_points_alone_does_not_count() -> None:
    x = torch.randint(3, 12, (10, FEATURES)).float() / 15
    y = torch.zeros(10, dtype=torch.int64)
    parts = (Pgd(steps=5, loss="margin"),)
    assert evade(BetweenPoints(), x, y, epsilon=0.1, parts=parts).success.all()
    assert not evade(BetweenPoints(), x, y, epsilon=0.1, parts=parts, grid=STEP).success.any()


def test_what_does_not_change_keeps_its_bits(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    beside = x.nextafter(torch.tensor(0.5))
    found = evade(net, beside, y, norm="l0", **QUICK)
    assert ((found.adversarial == beside) | ((found.adversarial - beside).abs() > STEP / 2)).all()
    some = found.success
    assert torch.equal(found.distance[some], (found.adversarial != beside).sum(1).double()[some])


def test_a_radius_below_one_step_is_flagged(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    found = evade(net, x, y, epsilon=0.9 / 15, parts=(Pgd(steps=3),), **QUICK)
    assert not found.success.any()
    assert "below-grid" in found.flags["all"]
    assert "below-grid" not in evade(net, x, y, epsilon=1 / 15, parts=(Pgd(steps=3),), **QUICK).flags.get("all", [])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"grid": 0.0}, "finite number above 0"),
        ({"grid": 1 / 16}, "no whole number of steps"),
        ({"grid": 1 / 15, "lower": -1.01}, "no whole number of steps"),
    ],
)
def test_what_makes_no_sense_is_said(
    linear: tuple[nn.Linear, Tensor, Tensor], given: dict[str, Any], words: str, refused: Callable[..., str]
) -> None:
    net, x, y = linear
    refused(lambda: evade(net, x, y, epsilon=0.2, **given), InputError, words)


class Fractions(nn.Module):
    """Says 1 where any pixel is far from a whole number, else what the mean of the left half says."""

    def forward(self, x: Tensor) -> Tensor:
        off = (x - x.detach().round()).abs().amax((1, 2, 3)) - 0.25
        left = (x[..., :2].mean((1, 2, 3)) - x[..., 2:].mean((1, 2, 3))) / 16
        return torch.stack([torch.zeros_like(left), torch.where(off > 0, 1.0, left)], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_audit_attacks_whole_pixels_as_whole_pixels(norm: Norm) -> None:
    """Declared, pixels stay whole in what is judged and stored, and the search still goes where a fraction would."""
    x = torch.randint(0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    left = x[..., :2].mean((1, 2, 3)) > x[..., 2:].mean((1, 2, 3))
    records = Records(x[~left], torch.zeros(int((~left).sum()), dtype=torch.int64))
    records.y[0] = 1
    epsilon = 0.1 if norm == "linf" else 0.3
    fooled = {}
    for whole in (True, False):
        data = Data("pixels", None, records, Bounds.of(0, 255), ("a", "b"), structure=Structure(whole=whole))
        parts = (Pgd(steps=20, loss="margin"), Square(queries=40))
        attack = Evasion(norm=norm, epsilon=epsilon, records=60, parts=parts)
        case = case_of(data, Fractions(), structure=data.structure)
        evidence = attack.run(case, seed=0)
        stored, clean = torch.from_numpy(evidence.arrays["adversarial"]), case.evaluation.x
        assert torch.equal(stored, stored.round()) == whole
        change = (stored.double() - clean).flatten(1) / 255
        far = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        assert (far <= epsilon * (1 + (1e-7 if whole else 1e-5))).all()
        assert evidence.summary["step"] == 1 / 255
        fooled[whole] = evidence.arrays[f"worst/{epsilon!r}"]
        if norm == "linf" and whole:  # the left half up, the right half down, by whole steps
            low, high = clean[..., 2:] - 25, clean[..., :2] + 25
            possible = high.clamp_max(255).mean((1, 2, 3)) > low.clamp_min(0).mean((1, 2, 3))
            assert (possible | (case.evaluation.y == 1)).tolist() == fooled[True].tolist()
    assert fooled[False].all()
    assert 0.1 < fooled[True].mean() < 0.9


def test_below_half_a_step_of_8_bits_nothing_is_measured() -> None:
    x = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    for scale in (1.0, 255.0):
        bounds = Bounds.of(0, 255 / scale)
        step = seen_step(x / scale, bounds)
        assert step == pytest.approx(1 / 255)
        assert below_step({"step": step}, 0.0019) is not None
        assert below_step({"step": step}, 0.002) is None
    assert seen_step(x / 255 + torch.rand(x.shape) / 255, Bounds.of(0, 2)) is None
    assert seen_step(x.flatten(1), Bounds.of(0, 255)) is None, "a table"
    declared = resolved(Declared(integer=True), (1, 4, 4), (), "x.npz")
    assert declared.whole
    assert declared.whole_in((1, 4, 4)) is not None
    assert resolved(Declared(integer=True), (3,), (), "x.npz").integer == (0, 1, 2)
    with pytest.raises(InputError, match=r"true says that the values are whole numbers, and the test records hold 0"):
        Data("x", None, Records(x / 255, torch.arange(40) % 2), Bounds.of(0, 1), ("a", "b"), structure=declared)
    half = Data("x", None, Records(x, torch.arange(40) % 2), Bounds.of(0, 255), ("a", "b"), structure=declared)
    assert "no value can change" in str(nothing_to_change(0.003, case_of(half, Fractions())))
