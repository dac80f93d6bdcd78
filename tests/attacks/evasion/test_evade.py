"""The call: against what can be computed for a linear net, and against itself in other batches and as a file."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import crushproof
from crushproof.attacks.access import Ledger
from crushproof.attacks.evasion import evade as module_of_evade
from crushproof.attacks.evasion.ascent import gradients
from crushproof.attacks.evasion.ball import Box
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.blocks import seek
from crushproof.attacks.evasion.call import attackable as module_of_attackable
from crushproof.attacks.evasion.call import within
from crushproof.attacks.evasion.call.attackable import attackable, case_of
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.diversified import Diversified
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.records import Records
from crushproof.targets.errors import InputError
from crushproof.targets.twin.logits import logits_of
from crushproof.training.networks import Mlp

N, FEATURES = 40, 12


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_a_box_is_kept_to_the_bit(seed: int, n: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    low = torch.randn(n, 3, 2, generator=stream)
    high = low + torch.rand(n, 3, 2, generator=stream) * (torch.rand(n, 3, 2, generator=stream) < 0.7)
    box, x = Box(low, high, (low + high) / 2), 3 * torch.randn(n, 3, 2, generator=stream)
    for inside in (box.project(x), box.random_start(torch.rand(n, 3, 2, generator=stream)), box.step(low, x, 0.3)):
        assert ((low <= inside) & (inside <= high)).all()
        assert box.contains(inside).all()
    assert torch.equal(box.project(box.project(x)), box.project(x))
    above = torch.where(torch.arange(6).reshape(3, 2) == 4, high.nextafter(torch.tensor(torch.inf)), high)
    assert not box.contains(above).any()
    taken = box.take(torch.tensor([n - 1]))
    assert torch.equal(taken.high, high[n - 1 :])


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net, x = nn.Linear(FEATURES, 2), torch.rand(N, FEATURES)
    return net, x, net(x).argmax(1)


def exact(net: nn.Module, x: Tensor, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Whether any input of each record's box has another class: a linear margin is least in a corner."""
    ahead = net.weight.detach()[y] - net.weight.detach()[1 - y]
    bias = net.bias.detach()[y] - net.bias.detach()[1 - y]
    return (torch.where(ahead > 0, low, high) * ahead).sum(1) + bias < 0


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.1, 0.3])
def test_of_a_linear_net_all_is_found_that_exists(linear: tuple[nn.Module, Tensor, Tensor], epsilon: float) -> None:
    net, x, y = linear
    found = evade(net, x, y, epsilon=epsilon, lower=-1, upper=2, budget="quick")
    assert torch.equal(found.success, exact(net, x, y, x - epsilon, x + epsilon))
    assert torch.equal(net(found.adversarial).argmax(1) != y, found.success)
    assert (found.distance[found.success] <= epsilon).all()
    assert found.distance[~found.success].isinf().all()
    reached = evade(net, x, y, epsilon=epsilon, lower=-1, upper=2, budget="quick", target_class=1 - y)
    assert torch.equal(reached.success, found.success), "of two classes the other one is the target"


def test_each_element_has_limits_of_its_own(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = linear
    width = torch.linspace(0, 0.3, FEATURES)
    low, high = x - width, x + 2 * width.flip(0)
    found = evade(net, x, y, lower=low, upper=high, budget="quick")
    assert torch.equal(found.success, exact(net, x, y, low, high))
    assert 0 < found.success.sum() < N
    assert ((low <= found.adversarial) & (found.adversarial <= high)).all()
    assert torch.equal(found.adversarial[:, 0].clamp_max(x[:, 0]), x[:, 0])


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(-1)])
def test_what_goes_into_the_last_softmax_is_followed(linear: tuple[nn.Module, Tensor, Tensor], last: nn.Module) -> None:
    """Its answers are all 0 and 1 in float32, and it has no gradient."""
    net, x, y = linear
    steep = nn.Linear(FEATURES, 2)
    steep.load_state_dict({name: 1e4 * value for name, value in net.state_dict().items()})
    found = evade(nn.Sequential(steep, last), x, y, epsilon=0.1, lower=-1, upper=2, budget="quick")
    assert torch.equal(found.success, exact(net, x, y, x - 0.1, x + 0.1))
    assert found.flags == {}


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Softmax(-1), nn.LogSoftmax(1), nn.Sigmoid(), nn.LogSigmoid()])
def test_logits_are_what_comes_before(linear: tuple[nn.Module, Tensor, Tensor], last: nn.Module) -> None:
    net, x, _ = linear
    assert torch.equal(logits_of(nn.Sequential(net, last), x), net(x))
    assert torch.equal(logits_of(nn.Sequential(net, last, Tail()), x), net(x)), "nothing of that changes the order"
    hidden = nn.Sequential(net, last, nn.Linear(2, 2))
    assert torch.equal(logits_of(hidden, x), hidden(x)), "in the middle of a net it is a layer"
    over_records = nn.Sequential(net, nn.Softmax(0))
    assert torch.equal(logits_of(over_records, x), over_records(x))


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    module, x = Mlp(16, 4).eval(), torch.rand(N, 1, 4, 4)
    return module, x, module(x).argmax(1)


def test_results_depend_neither_on_batches_nor_on_when(
    net: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, y = (net[0], *(rows[:20] for rows in net[1:]))
    some = (Pgd(steps=1), Apgd(steps=2), Diversified(steps=2, restarts=12), Square(queries=5))
    first = evade(module, x, y, epsilon=0.15, seed=3, parts=some)
    assert 0 < first.success.sum() < 20
    for batch in (1, 7, 64, 500):
        monkeypatch.setattr(module_of_evade, "records_at_once", lambda *_, size=batch, **__: size)
        again = evade(module, x, y, epsilon=0.15, seed=3, parts=some)
        assert torch.equal(again.success, first.success)
        torch.testing.assert_close(again.adversarial, first.adversarial)
    assert not torch.equal(evade(module, x, y, epsilon=0.15, seed=4, parts=some).adversarial, first.adversarial)


def test_what_fools_the_copy_alone_is_pushed_on(
    linear: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is fooled a little earlier than the model: short steps end between the two boundaries."""
    net, x, y = linear

    class Early(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            answers: Tensor = net(inputs)
            return answers - 0.02 * nn.functional.one_hot(y[torch.cdist(inputs, x).argmin(1)], 2)

    parts = (Pgd(steps=60, step_size=0.002),)
    whole = evade(net, x, y, epsilon=0.2, parts=parts)
    for module in (module_of_attackable, gradients):
        monkeypatch.setattr(module, "laid_out", lambda module, x: Early().eval())
    monkeypatch.setattr(within, "ROUNDING", 0.0)
    lost = evade(net, x, y, epsilon=0.2, parts=parts)
    assert (whole.success & ~lost.success).sum() > 3
    monkeypatch.setattr(within, "ROUNDING", 1.0)
    found = evade(net, x, y, epsilon=0.2, parts=parts)
    assert torch.equal(found.success, whole.success)
    assert (net(found.adversarial[found.success]).argmax(1) != y[found.success]).all()


def test_a_plateau_ends_the_search(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Every start on a linear net ends in the same corner: after ten of them, and a look without gradients, enough."""
    net, x, y = linear
    found = evade(net, x, y, epsilon=0.05, lower=-1, upper=2, budget="thorough")
    assert torch.equal(found.success, exact(net, x, y, x - 0.05, x + 0.05))
    assert list(found.parts) == ["pgd", "diversified", "square-first", "apgd", "apgd-dlr", "apgd-targeted", "square"]
    assert found.queries < 1000 * N
    sought = seek(
        Diversified(steps=5, restarts=200), case_of(attackable(net, (FEATURES,)), Records(x, y)), Records(x, y),
        np.arange(N), Box(x - 0.05, x + 0.05, x), among=~found.success, seed=0, ledger=(spent := Ledger()), batch=64,
    )  # fmt: skip
    far = sought.margin > 0.01
    assert sought.plateau[far & ~found.success].all()
    assert not sought.plateau[found.success].any()
    assert 0 < spent.backwards < 200 * N


def test_a_model_that_draws_random_numbers_is_flagged(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = linear
    assert evade(Noisy(net), x, y, epsilon=0.05, lower=-1, upper=2, budget="quick").flags["all"].count("answers-vary")


class Tail(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ((2 * x.flatten(1) - 1).round(decimals=2) / 3 + 0.1).float().exp()


class Noisy(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.module(x + 0.1 * torch.rand_like(x))
        return answers


def test_a_file_is_attacked_as_the_module_is(net: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    module, x, y = net
    data = to_onnx(module, (1, 4, 4))
    (tmp_path / "net.onnx").write_bytes(data)
    parts = (Pgd(steps=8, loss="margin"), Square(queries=20))
    wanted = evade(module, x, y, epsilon=0.15, parts=parts).success
    opened = attackable(tmp_path / "net.onnx", (1, 4, 4))
    assert torch.equal(evade(opened, x, y, epsilon=0.15, parts=parts).success, wanted)
    assert torch.equal(evade(data, x, y, epsilon=0.15, parts=parts).success, wanted)
    blind = evade(opened.deployed, x, y, epsilon=0.15, parts=parts)
    assert list(blind.parts) == ["square"]
    assert blind.flags["all"] == ["no-white-box"]
    assert not (blind.success & ~wanted).any()


def test_l2_and_the_face_of_the_package(net: tuple[nn.Module, Tensor, Tensor]) -> None:
    module, x, y = net
    found = crushproof.evade(module, x, y, norm="l2", epsilon=0.3, budget="quick")
    assert 0 < found.success.sum() < N
    assert (torch.linalg.vector_norm((found.adversarial - x).flatten(1), dim=1) <= 0.3 + 1e-5).all()
    assert repr(found).startswith(f"<Evaded: {int(found.success.sum())} of {N} records")
    wide = evade(Brighter(module), 255 * x, y, norm="l2", epsilon=0.3 * 255, lower=0, upper=255, budget="quick")
    assert abs(int(wide.success.sum()) - int(found.success.sum())) <= 1


class Brighter(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.module(x / 255)
        return answers


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epsilon": -1.0}, "finite number above 0"),
        ({"epsilon": 0.1, "lower": 0.5, "upper": 1}, "lies outside"),
        ({"epsilon": 0.1, "lower": 2.0, "upper": 1}, "nowhere above"),
        ({"lower": torch.zeros(5), "upper": torch.ones(5)}, "broadcastable"),
        (
            {"epsilon": 0.1, "norm": "l2", "lower": torch.zeros(16).reshape(1, 4, 4), "upper": 1},
            "one number each for lower",
        ),
        ({"epsilon": 0.1, "y": torch.zeros(3)}, "int64"),
        ({"epsilon": 0.1, "x": torch.full((N, 1, 4, 4), 7.0)}, "Give lower and upper"),
        ({"epsilon": 0.1, "x": torch.full((N, 1, 4, 4), torch.nan)}, "not finite"),
    ],
)
def test_what_makes_no_sense_is_said(
    net: tuple[nn.Module, Tensor, Tensor], given: dict[str, Any], words: str, refused: Callable[..., str]
) -> None:
    module, x, y = net
    refused(lambda: evade(module, given.pop("x", x), given.pop("y", y), **given), InputError, words)


def test_the_example_runs() -> None:
    assert doctest.testmod(module_of_evade) == doctest.TestResults(failed=0, attempted=5)
