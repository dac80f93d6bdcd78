"""Nearest adversarial inputs, against what can be computed for a linear net of two classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion import evade as module_of_evade
from crushproof.attacks.evasion.ascent.gradients import Gradients
from crushproof.attacks.evasion.call.attackable import attackable
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.nearest.fewer import fewer
from crushproof.attacks.evasion.nearest.fmn import onto_l1, project
from crushproof.attacks.evasion.nearest.found import Distance, Nearest, norms
from crushproof.attacks.evasion.nearest.linear import beyond

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
        torch.stack([norms(rival - center, distance) for rival in rivals]) < norms(found - center, distance) - 1e-3
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
