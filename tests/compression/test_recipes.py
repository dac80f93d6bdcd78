"""The recipes: pure, replayable, and each against an oracle that is not its own code."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from crushproof.compression.quantization.quantized_layer import QuantizedLayer
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError, NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.training.architecture import Architecture

BRIEF = {"epochs": 1, "learning_rate": 2e-3, "batch_size": 64}
NOISE = {"calibration_inputs": "noise", "calibration_records": 64}

FREE: dict[str, Any] = {  # no record decides any value
    "prune": {"kind": "prune", "sparsity": 0.3},
    "prune-channels": {"kind": "prune", "structure": "channels", "sparsity": 0.25},
    "int8-noise": {"kind": "quantize", **NOISE},
    "int8-dynamic": {"kind": "quantize", "activations": "dynamic"},
    "int4-weights": {"kind": "quantize", "weight_bits": 4, "activations": "float"},
    "int4-stochastic": {
        "kind": "quantize",
        "weight_bits": 4,
        "rounding": "stochastic",
        **NOISE,
    },
    "int4-adaptive-noise": {
        "kind": "quantize",
        "weight_bits": 4,
        "rounding": "adaptive",
        "rounding_steps": 5,
        **NOISE,
    },
    "mixed-noise": {"kind": "mixed-precision", "quantize": NOISE},
    "svd": {"kind": "factorize", "energy": 0.8},
    "share": {"kind": "share", "clusters": 8},
    "share-global": {"kind": "share", "clusters": 8, "scope": "global"},
    "sparse-activations": {"kind": "dynamic-sparsity", "keep": 0.4},
    "prune+int4": {
        "kind": "chain",
        "steps": [
            {"kind": "prune", "sparsity": 0.3},
            {"kind": "quantize", "weight_bits": 4, **NOISE},
        ],
    },
}
TOUCHING: dict[str, Any] = {
    "int8": {"kind": "quantize"},
    "int8-entropy": {"kind": "quantize", "calibration": "entropy"},
    "int4-adaptive": {
        "kind": "quantize",
        "weight_bits": 4,
        "rounding": "adaptive",
        "rounding_steps": 5,
        "activations": "float",
    },
    "int2-aware": {"kind": "quantize", "weight_bits": 2, "activations": "dynamic", "fine_tune": BRIEF},
    "mixed": {"kind": "mixed-precision"},
    "svd-cross-validation": {"kind": "factorize", "rank_choice": "cross-validation"},
    "prune-tuned": {"kind": "prune", "sparsity": 0.8, "fine_tune": BRIEF},
    "prune-taylor": {"kind": "prune", "importance": "taylor"},
    "channels-tuned": {"kind": "prune", "structure": "channels", "sparsity": 0.5, "fine_tune": BRIEF},
    "svd-tuned": {"kind": "factorize", "energy": 0.7, "fine_tune": BRIEF},
    "share-tuned": {"kind": "share", "clusters": 4, "fine_tune": BRIEF},
    "distill": {"kind": "distill", "training": BRIEF},
    "distill+int8": {"kind": "chain", "steps": [{"kind": "distill", "training": BRIEF}, "quantize"]},
}


@pytest.fixture(scope="module")
def members(digits: Data) -> Records:
    assert digits.members is not None
    return digits.members


@pytest.fixture(scope="module")
def dense(dense: nn.Module) -> nn.Module:
    return copy.deepcopy(dense).requires_grad_(False)  # as an audit hands it over


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a)


def accuracy_of(module: nn.Module, digits: Data) -> float:
    return accuracy(TorchTarget(module), digits.non_members.x, digits.non_members.y)


@pytest.mark.parametrize("name", [*FREE, *TOUCHING])
def test_replay_gives_the_same_bits(name: str, dense: nn.Module, members: Records, digits: Data) -> None:
    """The module is left alone, and whatever the process drew before."""
    recipe = RECIPES.parse({**FREE, **TOUCHING}[name])
    assert recipe.touches_records == (name in TOUCHING)
    without = ("int8", "int8-entropy", "mixed", "svd-cross-validation", "prune-taylor")
    assert recipe.trains == (name == "int4-adaptive-noise" or (name in TOUCHING and name not in without))
    before = copy.deepcopy(dense)
    state = torch.get_rng_state()
    few = members.take(torch.arange(120))
    first = recipe.apply(dense, few, digits.bounds, seed=7)
    torch.manual_seed(123)  # whatever the process drew before must not matter
    second = recipe.apply(dense, few, digits.bounds, seed=7)
    torch.set_rng_state(state)
    assert same_state(first, second)
    assert same_state(dense, before)
    assert not any(parameter.requires_grad for parameter in dense.parameters())
    assert not any(layer.training for layer in first.modules())
    logits = TorchTarget(first).logits(members.x[:3])
    assert logits.shape == (3, 10)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", [*FREE, *TOUCHING])
def test_a_recipe_survives_json(name: str) -> None:
    recipe = RECIPES.parse({**FREE, **TOUCHING}[name])
    assert RECIPES.parse(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize("kind", ["prune", "quantize", "factorize", "share", "distill", "dynamic-sparsity"])
def test_a_model_without_weights_is_not_applicable(kind: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    records = Records(torch.rand(20, 4), torch.arange(20) % 4)
    fields = {"training": BRIEF} if kind == "distill" else {}
    with pytest.raises(NotApplicable):
        RECIPES.parse({"kind": kind, **fields}).apply(module, records, Bounds.of(0, 1), seed=0)


# -- prune (more in test_prune.py) -------------------------------------------------------------------------------------


def kernels(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


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


# -- users' own modules -----------------------------------------------------------------------------------------------


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
        layers = {path for path, layer in result.named_modules() if isinstance(layer, QuantizedLayer)}
        quantized = {path.removeprefix("inner.") for path in layers}  # of the model whose additions are rounded
        attention = {f"attention.{part}_proj" for part in ("q", "k", "v", "out")}
        assert quantized == {"conv", "tied", "head"} | attention
        assert float((TorchTarget(result).logits(few.x) - TorchTarget(module).logits(few.x)).abs().max()) < 0.05


# -- chain ------------------------------------------------------------------------------------------------------------


def test_quantize_comes_last() -> None:
    with pytest.raises(InputError, match="quantize must be the last step"):
        RECIPES.parse({"kind": "chain", "steps": ["quantize", "prune"]})
    inner = {"kind": "chain", "steps": ["prune", "quantize"]}
    with pytest.raises(InputError, match="quantize must be the last step"):
        RECIPES.parse({"kind": "chain", "steps": [inner, "share"]})
    RECIPES.parse({"kind": "chain", "steps": ["prune", inner]})


def test_dynamic_sparsity_comes_after_what_changes_layers() -> None:
    for steps in (["dynamic-sparsity", "prune"], ["dynamic-sparsity", "share", "distill"]):
        with pytest.raises(InputError, match="cannot follow dynamic-sparsity"):
            RECIPES.parse({"kind": "chain", "steps": steps})
    RECIPES.parse({"kind": "chain", "steps": ["prune", "dynamic-sparsity", "share", "quantize"]})


def test_the_step_that_cannot_do_its_work_is_named(dense: nn.Module, members: Records, digits: Data) -> None:
    before = copy.deepcopy(dense)
    chain = RECIPES.parse({"kind": "chain", "steps": ["share", {"kind": "distill", "depth": 0.9}]})
    with pytest.raises(NotApplicable, match=r"^Step 2 \(distill\): A depth of 0\.9 drops none"):
        chain.apply(dense, members, digits.bounds, seed=0)
    assert same_state(dense, before)


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
    from crushproof.compression.footprint.payload import encode

    tuning = {"epochs": 3, "learning_rate": 4e-3}
    steps = [{"kind": "prune", "sparsity": 0.7, "fine_tune": tuning}, {"kind": "quantize", "weight_bits": 4}]
    small = RECIPES.parse({"kind": "chain", "steps": steps}).apply(dense, members, digits.bounds, seed=0)
    assert len(encode(dense)) / len(encode(small)) >= 8
    assert accuracy_of(small, digits) >= accuracy_of(dense, digits) - 0.02
