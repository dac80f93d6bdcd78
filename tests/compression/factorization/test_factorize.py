"""Low-rank factorisation: ranks, energies and outputs against numpy and against the layers themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.factorization.decompose import Decomposition, Method, decomposition
from crushproof.compression.factorization.factorize import ranks_for_budget, ranks_for_energy
from crushproof.compression.factorization.low_rank_recurrent import LowRankRecurrent, RecurrentSvd
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.networks import digits_cnn, digits_lstm, digits_transformer

METHODS: tuple[Method, ...] = ("tucker", "spatial", "channel")


def factorized(module: nn.Module, digits: Data, **fields: Any) -> nn.Module:
    assert digits.members is not None
    return RECIPES.parse({"kind": "factorize", **fields}).apply(module, digits.members, digits.bounds, seed=0)


def values(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = torch.randn(outputs, inputs, generator=seeded())
    return layer


# -- one layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.3, 0.7, 0.9])
def test_truncation_loses_exactly_the_tail_of_the_spectrum(energy: float) -> None:
    """Eckart-Young: the squared error of the product is the sum of the squared singular values left out."""
    layer = random_linear(64, 32)
    part = decomposition(layer, "tucker")
    (rank,) = ranks_for_energy(part, energy)
    pair: Any = part.build((rank,))
    product = pair[1].weight.detach().double().numpy() @ pair[0].weight.detach().double().numpy()
    weight = layer.weight.detach().double().numpy()
    squares = np.linalg.svd(weight, compute_uv=False) ** 2
    np.testing.assert_allclose(((product - weight) ** 2).sum(), squares[rank:].sum(), rtol=1e-4)
    assert squares[:rank].sum() >= energy * squares.sum() > squares[: rank - 1].sum()
    assert part.cost((rank,)) == rank * (64 + 32) == pair[0].weight.numel() + pair[1].weight.numel()


def test_the_rank_of_a_known_spectrum() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.data = torch.diag(torch.tensor([2.0, 3.0, 1.0]))  # energies 9, 4, 1 of 14
    part = decomposition(layer, "tucker")
    ranks = [ranks_for_energy(part, energy)[0] for energy in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)]
    assert ranks == [1, 1, 2, 2, 3, 3]


CONVOLUTIONS = {
    "stride, padding, dilation": lambda: nn.Conv2d(6, 12, 3, stride=2, padding=2, dilation=2),
    "two sizes": lambda: nn.Conv2d(6, 12, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
    "same": lambda: nn.Conv2d(6, 12, 3, padding="same"),
    "reflect": lambda: nn.Conv2d(6, 12, 3, padding=1, padding_mode="reflect"),
    "pointwise": lambda: nn.Conv2d(6, 12, 1),
    "one axis": lambda: nn.Conv1d(6, 12, 3, stride=2, padding=1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_full_rank_is_reproduced(name: str, method: Method) -> None:
    convolution = CONVOLUTIONS[name]()
    convolution.weight.data = torch.randn(convolution.weight.shape, generator=seeded())
    part = decomposition(convolution, method)
    assert part.energy(part.full) == pytest.approx(1)
    x = torch.randn(2, 6, *[9] * (convolution.weight.dim() - 2), generator=seeded(1))
    torch.testing.assert_close(part.build(part.full)(x), convolution(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", [(2, 3), (5, 2), (12, 2), (4, 6)])
def test_energy_and_cost_are_those_of_the_layers_built(method: Method, ranks: tuple[int, int]) -> None:
    """A convolution is linear: its answers to unit impulses are its weight, whatever layers it is made of."""
    convolution = nn.Conv2d(6, 12, 3, padding=1, bias=False)
    convolution.weight.data = torch.randn(12, 6, 3, 3, generator=seeded())
    part = decomposition(convolution, method)
    chosen = ranks if method == "tucker" else ranks[:1]
    built = part.build(chosen)
    assert values(built) == part.cost(chosen)
    impulses = torch.eye(6)[:, :, None, None] * torch.nn.functional.pad(torch.ones(1, 1), (2, 2, 2, 2))
    wanted = convolution(impulses).detach()
    lost = float((built(impulses).detach() - wanted).square().sum() / wanted.square().sum())
    if method == "tucker":  # the truncated higher-order SVD's bound, which iterating improves on
        assert lost <= 1 - part.energy(chosen) + 1e-5
    else:
        assert lost == pytest.approx(1 - part.energy(chosen), abs=1e-5)


def test_iterated_tucker_finds_low_multilinear_rank() -> None:
    core = torch.randn(3, 2, 3, 3, generator=seeded())
    outer, inner = torch.randn(12, 3, generator=seeded(1)), torch.randn(8, 2, generator=seeded(2))
    convolution = nn.Conv2d(8, 12, 3)
    convolution.weight.data = torch.einsum("rs...,or,is->oi...", core, outer, inner)
    part = decomposition(convolution, "tucker")
    assert ranks_for_energy(part, 1 - 1e-9) == (3, 2)
    x = torch.randn(2, 8, 6, 6, generator=seeded(3))
    built: Any = part.build((3, 2))
    assert [layer.out_channels for layer in built] == [2, 3, 12]
    torch.testing.assert_close(built(x), convolution(x), rtol=1e-3, atol=1e-3)


def test_an_embedding_and_its_padding() -> None:
    embedding = nn.Embedding(20, 8, padding_idx=3)
    part = decomposition(embedding, "tucker")
    tokens = torch.arange(20)
    torch.testing.assert_close(part.build(part.full)(tokens), embedding(tokens), rtol=1e-4, atol=1e-5)
    assert part.build((2,))(torch.tensor([3])).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_recurrent_layers(kind: type[nn.LSTM | nn.GRU], settings: dict[str, Any]) -> None:
    layer = kind(5, 6, batch_first=True, **settings).eval()
    part = RecurrentSvd(layer)
    x = torch.randn(3, 4, 5, generator=seeded())
    outputs, _ = layer(x)
    whole = part.build(part.full)
    torch.testing.assert_close(whole(x)[0], outputs)
    assert not any(whole.ranks)  # nothing would get smaller
    thin = part.build((2,) * len(part.full))
    assert sum(value.numel() for value in thin.matrices.parameters()) == part.cost((2,) * len(part.full))
    for name in thin.matrices:  # each matrix as numpy truncates it
        left, middle, right = np.linalg.svd(layer.get_parameter(name).detach().numpy(), full_matrices=False)
        np.testing.assert_allclose(thin.whole(name).detach().numpy(), (left[:, :2] * middle[:2]) @ right[:2], atol=1e-5)


# -- ranks ------------------------------------------------------------------------------------------------------------


class Table(Decomposition):
    """One mode with given energies; each rank costs the same."""

    def __init__(self, dense: int, each: int, *shares: float) -> None:
        self.dense, self.each, self.kept, self.full = dense, each, np.cumsum(shares), (len(shares),)

    def cost(self, ranks: tuple[int, ...]) -> int:
        return self.each * ranks[0]

    def energy(self, ranks: tuple[int, ...]) -> float:
        return float(self.kept[ranks[0] - 1])

    def build(self, ranks: tuple[int, ...]) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7, 0.9])
def test_a_budget_is_spent_as_trying_everything_would(budget: float) -> None:
    """Energies are concave in the rank and ranks cost the same: taking the best next step is the optimum."""
    parts = {"a": Table(60, 10, 0.5, 0.25, 0.15, 0.06, 0.04), "b": Table(60, 10, 0.3, 0.25, 0.2, 0.15, 0.1)}
    ranks = ranks_for_budget(parts, budget)
    best = max(
        parts["a"].energy((a,)) + parts["b"].energy((b,))
        for a in range(1, 6)
        for b in range(1, 6)
        if 10 * (a + b) <= budget * 120
    )
    assert sum(part.cost(ranks[name]) for name, part in parts.items()) <= budget * 120
    assert sum(part.energy(ranks[name]) for name, part in parts.items()) == pytest.approx(best)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
def test_the_model_stays_within_its_budget(budget: float, method: Method, dense: nn.Module, digits: Data) -> None:
    def kernels(module: nn.Module) -> int:
        return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear))

    small = factorized(dense, digits, rank_choice="budget", budget=budget, convolution=method)
    assert 0.9 * budget < kernels(small) / kernels(dense) <= budget


def test_cross_validation_takes_the_smallest_energy_that_is_good_enough(dense: nn.Module, digits: Data) -> None:
    def chosen(**fields: Any) -> int:
        return values(factorized(dense, digits, rank_choice="cross-validation", **fields))

    least = chosen(tolerance=1.0)
    assert least == values(factorized(dense, digits, energy=0.5))
    assert least < chosen(tolerance=0.2) <= chosen(tolerance=0.0)


def test_fine_tuning_brings_accuracy_back(dense: nn.Module, digits: Data) -> None:
    def right(module: nn.Module) -> float:
        return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)

    half = {"rank_choice": "budget", "budget": 0.5}
    tuned = factorized(dense, digits, **half, fine_tune={"epochs": 2, "learning_rate": 4e-3})
    assert right(tuned) > max(0.93, right(factorized(dense, digits, **half)))


# -- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        *((digits_cnn, {"convolution": method, "energy": 0.6}) for method in METHODS),
        (digits_lstm, {"rank_choice": "budget", "budget": 0.4}),
        (digits_transformer, {"energy": 0.5}),
    ],
)
def test_onnx_runtime_and_the_stored_module_give_the_same(build: Any, fields: dict[str, Any], digits: Data) -> None:
    torch.manual_seed(0)
    module = build().eval()
    small = factorized(module, digits, **fields)
    x = digits.non_members.x[:50]
    logits = TorchTarget(small).logits(x)
    assert values(small) < 0.8 * values(module)
    shipped = to_onnx(small, tuple(x.shape[1:]))
    torch.testing.assert_close(OnnxTarget(shipped).logits(x), logits, rtol=1e-4, atol=1e-5)
    assert len(shipped) < 0.9 * len(to_onnx(module, tuple(x.shape[1:])))
    description, arrays = save_module(small)
    again = load_module(build(), json.loads(json.dumps(description)), arrays)
    assert torch.equal(TorchTarget(again).logits(x), logits)


def test_attention_and_recurrent_layers_are_among_the_layers(digits: Data) -> None:
    transformer = factorized(digits_transformer(), digits, energy=0.5)
    for name in ("q_proj", "out_proj"):
        assert isinstance(transformer.get_submodule(f"encoder.layers.1.self_attn.{name}"), nn.Sequential)
    assert isinstance(transformer.get_submodule("encoder.layers.0.linear1"), nn.Sequential)
    assert isinstance(factorized(digits_lstm(), digits, energy=0.5).get_submodule("lstm"), LowRankRecurrent)


def test_a_weight_of_two_layers_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 12))
    module[2].weight = module[0].weight
    records = Records(torch.rand(20, 16), torch.arange(20) % 12)
    small: Any = RECIPES.parse({"kind": "factorize", "energy": 0.2}).apply(module, records, Bounds.of(0, 1), seed=0)
    assert small[2].weight is small[0].weight
    assert isinstance(small[3], nn.Sequential)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"energy": 1}, "No layer has a rank low enough"),
        ({"rank_choice": "rank", "rank": 10}, "Rank 10 is above the full rank of layer stem, which is 9"),
        ({"rank_choice": "rank", "rank": 11, "layers": ["head"]}, "above the full rank of layer head, which is 10"),
        ({"rank_choice": "rank", "rank": 10, "layers": ["head"]}, "No layer has a rank low enough"),
        ({"rank_choice": "budget", "budget": 0.001}, "more than the budget of 0.1 %"),
        ({"layers": ["stem", "hed"]}, "no layer 'hed' that could be factorised; it has stem, block1.conv1"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, dense: nn.Module, digits: Data) -> None:
    with pytest.raises(NotApplicable, match=message):
        factorized(dense, digits, **fields)


def test_grouped_convolutions_are_no_layer_of_its_kind() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten())
    records = Records(torch.rand(8, 4, 3, 3), torch.arange(8) % 4)
    with pytest.raises(NotApplicable, match="no linear, ungrouped convolutional"):
        RECIPES.parse("factorize").apply(module, records, Bounds.of(0, 1), seed=0)


@pytest.mark.parametrize("fields", [{"rank": 3}, {"rank_choice": "rank"}])
def test_a_rank_and_its_choice_go_together(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="rank goes with"):
        RECIPES.parse({"kind": "factorize", **fields})


def test_regressions_are_cross_validated_by_r_squared() -> None:
    x = torch.rand(200, 12, generator=seeded())
    module = nn.Sequential(random_linear(12, 12), nn.Linear(12, 1)).eval()
    y: Tensor = module(x).detach()
    recipe = RECIPES.parse({"kind": "factorize", "rank_choice": "cross-validation", "tolerance": 1})
    small = recipe.apply(module, Records(x, y), Bounds.of(0, 1), seed=0)
    assert values(small) < values(module)
