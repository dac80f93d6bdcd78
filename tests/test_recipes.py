"""The recipes: pure, replayable, and each against an oracle that is not its own code."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from crushproof.compression.distill import soft_labels
from crushproof.compression.factorize import factors, rank_for, truncate
from crushproof.compression.fake_quantize import QuantizedLayer
from crushproof.compression.prune import thin
from crushproof.compression.recipe import RECIPES
from crushproof.compression.share import share_values
from crushproof.targets.data import Bounds, Data, Records, load_digits
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp, digits_cnn

BRIEF = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 64}

FREE: dict[str, Any] = {  # no record decides any value
    "prune": {"kind": "prune", "sparsity": 0.3},
    "prune-channels": {"kind": "prune", "structure": "channels", "sparsity": 0.25},
    "int8-range-free": {"kind": "quantize", "calibration": "range-free"},
    "int4-weights": {"kind": "quantize", "weight_bits": 4, "activation_bits": None},
    "int4-stochastic": {"kind": "quantize", "weight_bits": 4, "rounding": "stochastic", "calibration": "range-free"},
    "svd": {"kind": "factorize", "energy": 0.8},
    "share": {"kind": "share", "clusters": 8},
    "prune+int4": {
        "kind": "chain",
        "steps": [
            {"kind": "prune", "sparsity": 0.3},
            {"kind": "quantize", "weight_bits": 4, "calibration": "range-free"},
        ],
    },
}
TOUCHING: dict[str, Any] = {
    "int8": {"kind": "quantize"},
    "svd-cross-validation": {"kind": "factorize", "rank_choice": "cross-validation"},
    "prune-tuned": {"kind": "prune", "sparsity": 0.8, "fine_tune": BRIEF},
    "channels-tuned": {"kind": "prune", "structure": "channels", "sparsity": 0.5, "fine_tune": BRIEF},
    "svd-tuned": {"kind": "factorize", "energy": 0.7, "fine_tune": BRIEF},
    "share-tuned": {"kind": "share", "clusters": 4, "fine_tune": BRIEF},
    "distill": {"kind": "distill", "training": BRIEF},
    "distill+int8": {"kind": "chain", "steps": [{"kind": "distill", "training": BRIEF}, "quantize"]},
}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_digits(0)


@pytest.fixture(scope="module")
def members(digits: Data) -> Records:
    assert digits.members is not None
    return digits.members


@pytest.fixture(scope="module")
def dense(members: Records) -> nn.Module:
    module = train(Architecture("digits", digits_cnn).fresh(0), members, Training(epochs=5), seed=0)
    return module.requires_grad_(False)  # as an audit hands it over


@pytest.fixture(scope="module")
def mlp(members: Records) -> nn.Module:
    fresh = Architecture("mlp", lambda: Mlp(64, 10, (32, 24))).fresh(0)
    return train(fresh, members, Training(epochs=5), seed=0).requires_grad_(False)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a)


def accuracy_of(module: nn.Module, digits: Data) -> float:
    return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)


@pytest.mark.parametrize("name", [*FREE, *TOUCHING])
def test_replay_gives_the_same_bits_and_leaves_the_module_alone(
    name: str, dense: nn.Module, members: Records, digits: Data
) -> None:
    recipe = RECIPES.parse({**FREE, **TOUCHING}[name])
    before = copy.deepcopy(dense)
    state = torch.get_rng_state()
    first = recipe.apply(dense, members, digits.bounds, seed=7)
    torch.manual_seed(123)  # whatever the process drew before must not matter
    second = recipe.apply(dense, members, digits.bounds, seed=7)
    torch.set_rng_state(state)
    assert same_state(first, second)
    assert same_state(dense, before)
    assert not any(parameter.requires_grad for parameter in dense.parameters())
    assert not any(layer.training for layer in first.modules())
    logits = TorchTarget(first).logits(members.x[:3])
    assert logits.shape == (3, 10)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", [*FREE, *TOUCHING])
def test_touches_records_is_the_truth(name: str, dense: nn.Module, members: Records, digits: Data) -> None:
    """A recipe that says it touches no record gives the same bits with other records; the others do not."""
    recipe = RECIPES.parse({**FREE, **TOUCHING}[name])
    assert recipe.touches_records == (name in TOUCHING)
    assert recipe.trains == (name in TOUCHING and name not in ("int8", "svd-cross-validation"))
    if name == "svd-cross-validation":  # a choice among few: other records may well choose the same
        return
    generator = torch.Generator().manual_seed(1)
    others = Records(torch.rand(members.x[:200].shape, generator=generator) ** 4, members.y[:200].flip(0))
    one = recipe.apply(dense, members, digits.bounds, seed=7)
    other = recipe.apply(dense, others, digits.bounds, seed=7)
    assert same_state(one, other) == (name in FREE)


@pytest.mark.parametrize("name", [*FREE, *TOUCHING])
def test_a_recipe_survives_json(name: str) -> None:
    recipe = RECIPES.parse({**FREE, **TOUCHING}[name])
    assert RECIPES.parse(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize("kind", ["prune", "quantize", "factorize", "share", "distill"])
def test_a_model_without_weights_is_not_applicable(kind: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    records = Records(torch.rand(20, 4), torch.arange(20) % 4)
    fields = {"training": BRIEF} if kind == "distill" else {}
    with pytest.raises(NotApplicable):
        RECIPES.parse({"kind": kind, **fields}).apply(module, records, Bounds.of(0, 1), seed=0)


# -- prune ------------------------------------------------------------------------------------------------------------


def kernels(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_smallest_magnitudes_of_the_whole_model_go(
    sparsity: float, dense: nn.Module, members: Records, digits: Data
) -> None:
    pruned = RECIPES.parse({"kind": "prune", "sparsity": sparsity}).apply(dense, members, digits.bounds, seed=0)
    before = np.concatenate([weight.numpy().ravel() for weight in kernels(dense)])
    after = np.concatenate([weight.detach().numpy().ravel() for weight in kernels(pruned)])
    dropped = round(sparsity * len(before))
    assert (after == 0).sum() == dropped
    kept = after != 0
    np.testing.assert_array_equal(after[kept], before[kept])
    assert np.abs(before[kept]).min() >= np.sort(np.abs(before))[dropped - 1]
    assert not any("mask" in name or "orig" in name for name in pruned.state_dict())


def test_fine_tuning_keeps_zeros_and_brings_accuracy_back(dense: nn.Module, members: Records, digits: Data) -> None:
    plain = RECIPES.parse({"kind": "prune", "sparsity": 0.8}).apply(dense, members, digits.bounds, seed=0)
    recipe = RECIPES.parse({"kind": "prune", "sparsity": 0.8, "fine_tune": {"epochs": 3, "learning_rate": 4e-3}})
    tuned = recipe.apply(dense, members, digits.bounds, seed=0)
    for before, after in zip(kernels(plain), kernels(tuned), strict=True):
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    assert accuracy_of(tuned, digits) > max(0.93, accuracy_of(plain, digits))


def test_removed_channels_are_as_if_they_were_zero(mlp: nn.Module, members: Records) -> None:
    thinned = thin(mlp, members.x[:2], 0.5)
    before, after = kernels(mlp), kernels(thinned)
    assert [tuple(weight.shape) for weight in after] == [(16, 64), (12, 16), (10, 12)]
    masked = copy.deepcopy(mlp)
    layers = [layer for layer in masked.modules() if isinstance(layer, nn.Linear)]
    # Which hidden units are left: those of the first layer by their rows, those of the second by their columns below.
    kept = [int((before[0] == row).all(1).nonzero()) for row in after[0]]
    columns = before[1][:, kept]
    kept_second = [int((columns == row).all(1).nonzero()) for row in after[1]]
    for layer, alive in zip(layers[1:], (kept, kept_second), strict=True):
        gone = [unit for unit in range(layer.in_features) if unit not in alive]
        layer.weight.data[:, gone] = 0
    torch.testing.assert_close(thinned(members.x[:50]), masked(members.x[:50]))


def test_channel_pruning_works_through_residual_adds(dense: nn.Module, members: Records, digits: Data) -> None:
    recipe = RECIPES.parse({"kind": "prune", "structure": "channels", "sparsity": 0.5})
    shapes = [tuple(weight.shape[:2]) for weight in kernels(recipe.apply(dense, members, digits.bounds, seed=0))]
    assert shapes == [(8, 1), (8, 8), (8, 8), (8, 8), (8, 8), (10, 32)]


@pytest.mark.parametrize("kind", ["prune", "share"])
def test_a_weight_shared_by_two_layers_stays_shared(kind: str) -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    records = Records(torch.rand(64, 6), torch.arange(64) % 6)
    recipe = RECIPES.parse({"kind": kind, "fine_tune": BRIEF})
    result: Any = recipe.apply(module.eval(), records, Bounds.of(0, 1), seed=0)
    assert result[2].weight is result[0].weight
    if kind == "prune":
        assert int((result[0].weight == 0).sum()) == 18


def test_one_layer_has_no_channels_to_spare(members: Records, digits: Data) -> None:
    recipe = RECIPES.parse({"kind": "prune", "structure": "channels"})
    with pytest.raises(NotApplicable, match="between two"):
        recipe.apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), members, digits.bounds, seed=0)


# -- quantize ---------------------------------------------------------------------------------------------------------


def test_int8_of_a_perceptron_equals_numpy(mlp: nn.Module, members: Records, digits: Data) -> None:
    """The whole of post-training quantisation, written again in numpy: ranges, codes, biases, integer sums."""
    few = members.take(torch.arange(100))
    recipe = RECIPES.parse({"kind": "quantize", "calibration_records": 100})
    quantized = recipe.apply(mlp, few, digits.bounds, seed=0)
    layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]
    calibration = few.x.flatten(1).numpy()
    x = digits.non_members.x.flatten(1).numpy()
    for position, layer in enumerate(layers):
        weight, bias = layer.weight.numpy(), layer.bias.numpy()
        scale = np.abs(weight).max(1) / np.float32(127)
        codes = np.rint(weight / scale[:, None]).astype(np.int64)
        high = np.float32(1.0 if position == 0 else calibration.max())
        step = np.float32(high / 255)
        bias_codes = np.rint(bias / (step * scale)).astype(np.int64)
        q = np.clip(np.rint(x / step), 0, 255).astype(np.int64)
        x = ((q @ codes.T + bias_codes) * (step * scale)).astype(np.float32)
        calibration = calibration @ weight.T + bias
        if position < len(layers) - 1:
            x, calibration = np.maximum(x, 0), np.maximum(calibration, 0)
    logits = TorchTarget(quantized).logits(digits.non_members.x).numpy()
    off = np.abs(logits - x).max(1)
    # A float sum that ends within rounding of a tie may move one activation by one code; that is rare.
    assert (off < 1e-3).mean() > 0.97
    assert off.max() < 0.2


def test_ends_keep_eight_bits_and_norms_are_folded(dense: nn.Module, members: Records, digits: Data) -> None:
    quantized = RECIPES.parse({"kind": "quantize", "weight_bits": 4}).apply(dense, members, digits.bounds, seed=0)
    layers = [layer for layer in quantized.modules() if isinstance(layer, QuantizedLayer)]
    assert [layer.bits for layer in layers] == [8, 4, 4, 4, 4, 8]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in quantized.modules())
    assert len(list(quantized.parameters())) == 0
    bare = RECIPES.parse({"kind": "quantize", "weight_bits": 2, "keep_ends_8bit": False})
    layers = [
        layer
        for layer in bare.apply(dense, members, digits.bounds, seed=0).modules()
        if isinstance(layer, QuantizedLayer)
    ]
    assert all(layer.bits == 2 and int(layer.codes.abs().max()) == 1 for layer in layers)


def test_the_input_range_follows_from_the_bounds(dense: nn.Module, members: Records) -> None:
    dark = Records(members.x * 0.1, members.y)
    quantized = RECIPES.parse("quantize").apply(dense, dark, Bounds.of(-1, 2), seed=0)
    first = next(layer for layer in quantized.modules() if isinstance(layer, QuantizedLayer))
    assert first.input_scale is not None
    assert float(first.input_scale) == pytest.approx(3 / 255)
    assert first.input_zero_point is not None
    assert int(first.input_zero_point) == 85


@pytest.mark.parametrize("calibration", ["records", "range-free"])
def test_eight_bits_cost_no_accuracy(calibration: str, dense: nn.Module, members: Records, digits: Data) -> None:
    recipe = RECIPES.parse({"kind": "quantize", "calibration": calibration})
    quantized = recipe.apply(dense, members, digits.bounds, seed=0)
    assert abs(accuracy_of(quantized, digits) - accuracy_of(dense, digits)) <= 0.01


def test_a_stored_rounding_seed_fixes_the_draw(dense: nn.Module, members: Records, digits: Data) -> None:
    fields = {"kind": "quantize", "weight_bits": 4, "activation_bits": None, "rounding": "stochastic"}
    fixed = RECIPES.parse({**fields, "rounding_seed": 5})
    free = RECIPES.parse(fields)
    one, two = (fixed.apply(dense, members, digits.bounds, seed=seed) for seed in (1, 2))
    assert same_state(one, two)
    one, two = (free.apply(dense, members, digits.bounds, seed=seed) for seed in (1, 2))
    assert not same_state(one, two)


class Awkward(nn.Module):
    """What user code looks like: scaled input, a tied layer, attention, an unused layer, a weight used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding="same")
        self.norm = nn.GroupNorm(2, 8)
        self.tied = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.by_hand = nn.Linear(8, 8)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv((x - 0.5) / 0.5)))
        x = torch.relu(x + self.tied(torch.relu(self.tied(x))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(nn.functional.linear(tokens.mean(1), self.by_hand.weight))


@pytest.mark.parametrize("name", [*FREE, "int8", "prune-tuned", "share-tuned"])
def test_users_modules_survive(name: str, members: Records, digits: Data) -> None:
    module = Architecture("awkward", Awkward).fresh(0).eval()
    few = members.take(torch.arange(64))
    try:
        result = RECIPES.parse({**FREE, **TOUCHING}[name]).apply(module, few, digits.bounds, seed=0)
    except NotApplicable:
        assert name == "prune-channels"
        return
    assert torch.isfinite(TorchTarget(result).logits(few.x)).all()
    if name == "int8":
        quantized = {path for path, layer in result.named_modules() if isinstance(layer, QuantizedLayer)}
        assert quantized == {"conv", "tied", "head"}
        assert float((TorchTarget(result).logits(few.x) - TorchTarget(module).logits(few.x)).abs().max()) < 0.05


# -- factorize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.3, 0.7, 0.9])
def test_truncation_loses_exactly_the_tail_of_the_spectrum(energy: float, mlp: nn.Module) -> None:
    """Eckart-Young: the squared error of the product is the sum of the squared singular values left out."""
    layer = next(layer for layer in mlp.modules() if isinstance(layer, nn.Linear))
    pair = factors(layer, energy)
    assert pair is not None
    product = pair[1].weight.detach().double().numpy() @ pair[0].weight.detach().double().numpy()
    squares = np.linalg.svd(layer.weight.double().numpy(), compute_uv=False) ** 2
    rank = pair[0].weight.shape[0]
    error = ((product - layer.weight.double().numpy()) ** 2).sum()
    np.testing.assert_allclose(error, squares[rank:].sum(), rtol=1e-4)
    assert squares[:rank].sum() >= energy * squares.sum() > squares[: rank - 1].sum()


def test_the_rank_of_a_known_spectrum() -> None:
    values = torch.tensor([3.0, 2.0, 1.0]).double()  # energies 9, 4, 1 of 14
    assert [rank_for(values, energy) for energy in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_low_rank_is_reproduced(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(6, 12, 3, stride=2, padding=2, dilation=2, bias=bias)
    matrix = torch.randn(12, 2, generator=generator) @ torch.randn(2, 54, generator=generator)
    convolution.weight.data = matrix.view_as(convolution.weight)
    pair = factors(convolution, 0.9999)
    assert pair is not None
    assert pair[0].out_channels == 2
    x = torch.randn(2, 6, 9, 9, generator=generator)
    torch.testing.assert_close(pair(x), convolution(x), rtol=1e-4, atol=1e-4)


def test_layers_that_would_not_shrink_stay(dense: nn.Module, members: Records, digits: Data) -> None:
    assert factors(nn.Linear(8, 8), 1.0) is None
    assert factors(nn.Conv2d(8, 8, 3, groups=8), 0.1) is None
    with pytest.raises(NotApplicable, match="rank"):
        RECIPES.parse({"kind": "factorize", "energy": 1}).apply(dense, members, digits.bounds, seed=0)


def test_cross_validation_takes_the_smallest_energy_that_is_good_enough(
    mlp: nn.Module, members: Records, digits: Data
) -> None:
    def chosen(**fields: Any) -> int:
        recipe = RECIPES.parse({"kind": "factorize", "rank_choice": "cross-validation", **fields})
        module = recipe.apply(mlp, members, digits.bounds, seed=0)
        return sum(parameter.numel() for parameter in module.parameters())

    smallest = truncate(mlp, members.x[:2], 0.5)
    assert smallest is not None
    assert chosen(tolerance=1.0) == sum(parameter.numel() for parameter in smallest.parameters())
    assert chosen(tolerance=1.0) < chosen(tolerance=0.05) <= chosen(tolerance=0.0)


# -- share ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_shared_values_are_those_of_sklearns_k_means(clusters: int) -> None:
    from sklearn.cluster import KMeans

    values = torch.randn(700, generator=torch.Generator().manual_seed(clusters))
    table, assignment = share_values(values, clusters)
    ours = ((table[assignment] - values).double() ** 2).sum()
    start = np.linspace(float(values.min()), float(values.max()), clusters)[:, None]
    peer = KMeans(clusters, init=start, n_init=1, tol=0, max_iter=1000).fit(values.double().numpy()[:, None])
    assert float(ours) == pytest.approx(peer.inertia_, rel=0.01)
    # A fixed point of Lloyd's algorithm: every weight is at its nearest value, every value the mean of its weights.
    distances = (values[:, None] - table[None, 1:]).abs()
    torch.testing.assert_close(distances.min(1).values, (values - table[assignment]).abs())
    for cluster in range(1, len(table)):
        torch.testing.assert_close(values[assignment == cluster].double().mean().float(), table[cluster])


def test_separate_groups_are_split_as_by_trying_every_partition() -> None:
    values = torch.tensor([-1.0, -0.9, -0.95, 0.1, 0.2, 0.15, 0.8, 0.9])
    ordered = values.sort().values.numpy()
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, [i, j]))
        for i in range(1, 7)
        for j in range(i + 1, 8)
    )
    table, assignment = share_values(values, 3)
    assert float(((table[assignment] - values) ** 2).sum()) == pytest.approx(best, rel=1e-4)


def test_zeros_stay_zero_and_few_values_are_kept_exactly() -> None:
    values = torch.tensor([0.0, 0.5, 0.0, -0.25, 0.5])
    table, assignment = share_values(values, 4)
    assert torch.equal(table[assignment], values)
    table, assignment = share_values(torch.zeros(3), 4)
    assert torch.equal(table[assignment], torch.zeros(3))


def test_fine_tuned_weights_go_on_sharing(dense: nn.Module, members: Records, digits: Data) -> None:
    recipe = RECIPES.parse(
        {
            "kind": "chain",
            "steps": [{"kind": "prune", "sparsity": 0.5}, {"kind": "share", "clusters": 4, "fine_tune": BRIEF}],
        }
    )
    before = RECIPES.parse({"kind": "prune", "sparsity": 0.5}).apply(dense, members, digits.bounds, seed=0)
    plain = RECIPES.parse({"kind": "share", "clusters": 4}).apply(before, members, digits.bounds, seed=0)
    tuned = recipe.apply(dense, members, digits.bounds, seed=0)
    for pruned, untrained, trained in zip(kernels(before), kernels(plain), kernels(tuned), strict=True):
        assert torch.equal(pruned == 0, trained == 0)
        assert len(trained.unique()) <= 5
        assert not torch.equal(untrained, trained)
        for value in untrained.unique():
            assert len(trained[untrained == value].unique()) == 1


# -- distill ----------------------------------------------------------------------------------------------------------


def test_the_soft_loss_is_hintons() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(6, 4, generator=generator), torch.randn(1, 3, 4, generator=generator)
    y, index = torch.tensor([[0, 3, 1]]), torch.tensor([[5, 0, 2]])
    losses = soft_labels(teacher, 3.0, 0.7)(lambda x: x, student, y, index, [])

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(teacher.double().numpy()[index[0]] / 3), softmax(student.double().numpy()[0] / 3)
    hard = -np.log(softmax(student.double().numpy()[0])[np.arange(3), y[0].numpy()])
    expected = 0.7 * 9 * (p * np.log(p / q)).sum(-1) + 0.3 * hard
    np.testing.assert_allclose(losses[0].numpy(), expected, rtol=1e-5)


def test_students_are_thinner_fresh_and_learn_from_the_teacher(
    dense: nn.Module, members: Records, digits: Data
) -> None:
    training = {"epochs": 4, "batch_size": 64, "learning_rate": 1e-2}
    wrong = Records(members.x, members.y.roll(1))  # the teacher's outputs alone (alpha 1) must teach the digits
    recipe = RECIPES.parse({"kind": "distill", "alpha": 1, "training": training})
    student = recipe.apply(dense, wrong, digits.bounds, seed=0)
    assert [len(weight) for weight in kernels(student)] == [8, 8, 8, 8, 8, 10]
    assert accuracy_of(student, digits) > 0.75
    same = RECIPES.parse({"kind": "distill", "width": 1, "training": BRIEF}).apply(
        dense, members, digits.bounds, seed=0
    )
    assert [weight.shape for weight in kernels(same)] == [weight.shape for weight in kernels(dense)]
    assert not any(torch.equal(a, b) for a, b in zip(kernels(same), kernels(dense), strict=True))


# -- chain ------------------------------------------------------------------------------------------------------------


def test_quantize_comes_last() -> None:
    with pytest.raises(InputError, match="quantize must be the last step"):
        RECIPES.parse({"kind": "chain", "steps": ["quantize", "prune"]})
    inner = {"kind": "chain", "steps": ["prune", "quantize"]}
    with pytest.raises(InputError, match="quantize must be the last step"):
        RECIPES.parse({"kind": "chain", "steps": [inner, "share"]})
    RECIPES.parse({"kind": "chain", "steps": ["prune", inner]})


def test_a_wrong_step_is_named() -> None:
    with pytest.raises(InputError, match="prunne"):
        RECIPES.parse({"kind": "chain", "steps": ["prunne", "quantize"]})
    with pytest.raises(InputError, match="sparsity"):
        RECIPES.parse({"kind": "chain", "steps": [{"kind": "prune", "sparsity": 2}, "quantize"]})
    with pytest.raises(InputError, match="steps"):
        RECIPES.parse({"kind": "chain", "steps": "prune"})


def test_recipes_are_frozen() -> None:
    recipe = RECIPES.parse("prune")
    with pytest.raises(ValidationError):
        recipe.sparsity = 0.9  # type: ignore[attr-defined]  # the attempt is the test


def test_deep_compression_is_eight_times_smaller_within_two_points(
    dense: nn.Module, members: Records, digits: Data
) -> None:
    from crushproof.compression.payload import encode

    tuning = {"epochs": 3, "learning_rate": 4e-3}
    steps = [{"kind": "prune", "sparsity": 0.7, "fine_tune": tuning}, {"kind": "quantize", "weight_bits": 4}]
    small = RECIPES.parse({"kind": "chain", "steps": steps}).apply(dense, members, digits.bounds, seed=0)
    assert len(encode(dense)) / len(encode(small)) >= 8
    assert accuracy_of(small, digits) >= accuracy_of(dense, digits) - 0.02
