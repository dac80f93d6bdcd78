"""Nearest adversarial inputs, against what can be computed for a linear net of two classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.evasion import evade as module_of_evade
from crushproof.attacks.evasion.ascent.gradients import Gradients
from crushproof.attacks.evasion.call.attackable import attackable
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.minimal_norm import CarliniWagner, Fab, Fmn
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.nearest.fewer import fewer
from crushproof.attacks.evasion.nearest.fmn import onto_l1, project
from crushproof.attacks.evasion.nearest.found import Distance, Nearest, norms
from crushproof.attacks.evasion.nearest.linear import beyond
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget
from crushproof.training.ball import Norm

N, FEATURES = 30, 12


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    net, x = nn.Linear(FEATURES, 2), torch.rand(N, FEATURES)
    return net, x, net(x).argmax(1)


def margin_and_slope(net: nn.Linear, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    slope = net.weight.detach()[y] - net.weight.detach()[1 - y]
    return (slope * x).sum(1) + net.bias.detach()[y] - net.bias.detach()[1 - y], slope


@pytest.mark.parametrize(("distance", "order"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_the_nearest_is_at_the_margin_over_the_dual_norm(
    linear: tuple[nn.Linear, Tensor, Tensor], distance: Distance, order: float
) -> None:
    net, x, y = linear
    margin, slope = margin_and_slope(net, x, y)
    exact = margin / torch.linalg.vector_norm(slope, ord=order, dim=1)
    found = evade(net, x, y, norm=distance, lower=-5, upper=6, budget="standard")
    assert found.success.all()
    assert (net(found.adversarial).argmax(1) != y).all()
    assert (found.distance >= exact * (1 - 1e-4)).all()
    assert (found.distance <= exact * 1.1 + 1e-4).all()
    assert found.distance.median() <= exact.median() * 1.02
    assert found.parts["nearest"].dtype == torch.bool
    reached = evade(net, x, y, norm=distance, lower=-5, upper=6, target_class=1 - y, budget="quick")
    assert reached.success.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_as_parts_of_an_attack_they_find_what_is_near_enough(norm: Norm, kind: str) -> None:
    """Of a linear net of two classes, by the dual norm in units of each column's range; limits are kept to the bit."""
    torch.manual_seed(0)
    net, n, mixed = nn.Linear(FEATURES, 2), 16, kind == "mixed"
    width = torch.ones(FEATURES)
    width[:4], width[4:6] = (255.0, 1000.0) if mixed else (1.0, 1.0)
    x = (0.3 + 0.4 * torch.rand(n, FEATURES)) * width
    held = torch.arange(FEATURES) >= 10 if mixed else None
    whole = torch.arange(FEATURES) < 4 if mixed else None
    x = x if whole is None else torch.where(whole, x.round(), x)
    net.weight.data = net.weight.detach() / width
    y = net(x).argmax(1)
    margin, slope = margin_and_slope(net, x, y)
    slope = slope * width * ~held if held is not None else slope
    order = 1 if norm == "linf" else 2
    exact = margin / torch.linalg.vector_norm(slope, ord=order, dim=1)
    epsilon = float(exact.quantile(0.5))
    bounds = Bounds(torch.zeros(FEATURES) - width, 2 * width, held, whole)
    exact, epsilon = exact / 3, epsilon / 3  # ranges are three times as wide
    module = net.requires_grad_(False)
    case = Case(
        TorchTarget(module), module, module, None, Records(x, y), np.arange(n), Records(x[:0], y[:0]), bounds, 2
    )
    parts: tuple[Perturber, ...] = (Fab(steps=20), Fmn(steps=50), CarliniWagner(steps=100))
    attack = Evasion(norm=norm, epsilon=epsilon, records=n, parts=parts if norm == "l2" else parts[:2])
    evidence = attack.run(case, seed=0)
    for part in evidence.summary["parts"]:
        fooled = torch.from_numpy(evidence.arrays[f"fooled/{part}/{epsilon!r}"])
        assert not fooled[exact > epsilon * (1 + 1e-4)].any()
        slack = {"fab": 1.02, "fmn": 1.1, "carlini-wagner": 1.15}[part] + 0.2 * mixed  # whole numbers: in coarse steps
        assert fooled[exact * slack < epsilon].all(), part
    stored = torch.from_numpy(evidence.arrays["adversarial"])
    assert held is None or torch.equal(stored[:, 10:], x[:, 10:])
    assert whole is None or torch.equal(stored[:, :4], stored[:, :4].round())
    assert evidence.flags == {}


def test_in_l_inf_the_attack_of_carlini_and_wagner_says_that_it_is_for_l2(
    linear: tuple[nn.Linear, Tensor, Tensor],
) -> None:
    net, x, y = linear
    with pytest.raises(NotApplicable, match="nearest input in L2"):
        evade(net, x, y, epsilon=0.1, parts=(CarliniWagner(),))
    found = evade(net, x, y, epsilon=0.1, parts=(Fab(steps=20), Fmn(steps=40)))
    margin, slope = margin_and_slope(net, x, y)
    low, high = (x - 0.1).clamp_min(0), (x + 0.1).clamp_max(1)
    possible = (slope * torch.where(slope > 0, low - x, high - x)).sum(1) + margin < -1e-5
    assert (found.success | ~possible).all()
    targeted = evade(net, x, y, epsilon=0.1, target_class=1 - y, parts=(Fab(steps=20, restarts=2),))
    assert torch.equal(targeted.success, evade(net, x, y, epsilon=0.1, parts=(Fab(steps=20),)).success)


def test_the_fewest_elements(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    margin, slope = margin_and_slope(net, x, y)
    gains = (slope * torch.where(slope > 0, x, x - 1)).sort(dim=1, descending=True).values.cumsum(1)
    exact = (gains <= margin[:, None]).sum(1) + 1
    some = exact <= FEATURES
    found = evade(net, x, y, norm="l0")
    assert torch.equal(found.success, some)
    assert (found.distance[some] >= exact[some]).all()
    assert (found.distance[some] - exact[some]).mean() < 0.3
    assert ((found.adversarial >= 0) & (found.adversarial <= 1)).all()
    within = evade(net, x, y, norm="l0", epsilon=2)
    assert torch.equal(within.success, found.distance <= 2)


def test_without_gradients_there_is_a_way_back(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    first = evade(attackable(net, (FEATURES,)).deployed, x, y, lower=-5, upper=6)
    assert list(first.parts) == ["square", "nearest"]
    assert first.success.all()
    assert (first.distance < 5).all(), "from a corner towards the record"


@pytest.mark.parametrize("distance", ["linf", "l2", "l1", "l0"])
def test_distances_do_not_depend_on_batches(
    linear: tuple[nn.Linear, Tensor, Tensor], distance: Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = linear[0], linear[1][:4], linear[2][:4]
    parts = (Pgd(steps=5),)
    whole = evade(net, x, y, norm=distance, parts=parts, budget="quick")
    assert whole.success.any()
    monkeypatch.setattr(module_of_evade, "records_at_once", lambda *_, **__: 3)
    again = evade(net, x, y, norm=distance, parts=parts, budget="quick")
    # Products in float32 are rounded otherwise in batches of another size, and inputs are float32 themselves.
    torch.testing.assert_close(again.distance, whole.distance, rtol=1e-5, atol=1e-6)


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.floats(0.01, 5))
def test_projections_are_the_nearest_points(seed: int, radius: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    change, other = (torch.randn(4, 3, 2, generator=stream) for _ in range(2))
    limit = torch.full((4,), radius)
    for distance in ("linf", "l2", "l1"):
        inside = project(change, limit, distance)
        assert (norms(inside, distance) <= limit * (1 + 1e-4)).all()
        rival = other * (limit / norms(other, distance)).view(-1, 1, 1)
        assert (norms(inside - change, "l2") <= norms(rival - change, "l2") + 1e-4).all()
        torch.testing.assert_close(project(inside, limit * 1.001, distance), inside)
    assert torch.equal(onto_l1(torch.zeros(2, 3), torch.zeros(2)), torch.zeros(2, 3))


@pytest.mark.parametrize("distance", ["linf", "l2", "l1"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), gain=st.floats(-1, 3))
def test_no_point_beyond_the_linear_boundary_is_nearer(distance: Distance, seed: int, gain: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    center, slope = torch.rand(3, 5, generator=stream), torch.randn(3, 5, generator=stream)
    slope[:, 0] = 0
    x = (center + 0.3 * torch.randn(3, 5, generator=stream)).clamp(0, 1)
    trust = torch.rand(3, 1, generator=stream)
    low, high = (x - trust).clamp_min(0), (x + trust).clamp_max(1)
    found = beyond(center, x, slope, torch.full((3,), gain), low, high, distance)
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()
    most = (slope * (torch.where(slope > 0, high, low) - x)).sum(1)
    reached = (slope * (found - x)).sum(1)
    assert (reached >= torch.minimum(torch.tensor(gain), most) - 1e-3).all()
    rivals = low + torch.rand(2000, 3, 5, generator=stream) * (high - low)
    rivals = torch.cat([rivals, torch.maximum(torch.minimum(center, high), low)[None]])
    better = ((slope * (rivals - x)).sum(2) >= gain) & (
        norms((rivals - center).flatten(0, 1), distance).view(-1, 3) < norms(found - center, distance) - 1e-3
    )
    assert not better.any()


def test_of_a_linear_net_the_fewest_are_found(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    margin, slope = margin_and_slope(net, x, y)
    gains = (slope * torch.where(slope > 0, x, x - 1)).sort(dim=1, descending=True).values.cumsum(1)
    exact = (gains <= margin[:, None]).sum(1) + 1
    some = exact <= FEATURES
    found = evade(net, x[some], y[some], norm="l0", budget="thorough", parts=(Pgd(steps=5),))
    assert torch.equal(found.distance, exact[some].double())
    assert found.parts["nearest"].dtype == torch.bool


def test_elements_are_given_back(linear: tuple[nn.Linear, Tensor, Tensor]) -> None:
    net, x, y = linear
    module, ledger = net.eval().requires_grad_(False), Ledger()

    def reached(inputs: Tensor, rows: Tensor) -> Tensor:
        answers: Tensor = module(inputs).argmax(1) != y[rows]
        return answers

    nearest = Nearest(x, torch.zeros(()), torch.ones(()), "l0", reached)
    slope = margin_and_slope(net, x, y)[1]
    nearest.offer(torch.where(slope > 0, 0.0, 1.0), torch.ones(N, dtype=torch.bool))
    before = nearest.length.clone()
    fewer(Gradients(module, "margin", ledger), y, nearest, 40)
    found = before.isfinite()
    assert (nearest.length <= before).all()
    assert (nearest.length[found] < before[found]).any()
    assert (module(nearest.x[found]).argmax(1) != y[found]).all()
    assert torch.equal(norms(nearest.x - x, "l0")[found], nearest.length[found])
