"""Dynamic sparsity: exactly the largest activations are kept, in torch and in ONNX Runtime alike."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.footprint.footprint import layer_macs
from crushproof.compression.pruning.dynamic_sparsity import SparseInput, largest
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.networks import digits_cnn


def sparse(module: nn.Module, digits: Data, **fields: Any) -> nn.Module:
    assert digits.members is not None
    recipe = RECIPES.parse({"kind": "dynamic-sparsity", **fields})
    return recipe.apply(module, digits.members, digits.bounds, seed=0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
@settings(max_examples=40)
def test_the_largest_are_kept_and_of_equals_the_first(values: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(values)))
    expected = np.zeros(len(values), dtype=bool)
    expected[np.argsort(-np.array(values), kind="stable")[:kept]] = True
    np.testing.assert_array_equal(largest(torch.tensor([values]).float(), kept)[0].numpy(), expected)


def test_gradients_flow_through_what_is_kept() -> None:
    layer = SparseInput(2, 4, None, nn.Identity())
    x = torch.tensor([[1.0, -3.0, 2.0, 0.5]], requires_grad=True)
    output = layer(x)
    assert output.tolist() == [[0.0, -3.0, 2.0, 0.0]]
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_per_position_keeps_channels_of_each_pixel() -> None:
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    kept = SparseInput(2, 6, 1, nn.Identity())(x)
    assert ((kept != 0).sum(1) == 2).all()
    assert torch.equal(kept.abs().sum(1), x.abs().topk(2, dim=1).values.sum(1))


@pytest.mark.parametrize("per", ["record", "position"])
def test_onnx_runtime_and_the_stored_module_give_the_same(per: str, dense: nn.Module, digits: Data) -> None:
    module = sparse(dense, digits, keep=0.4, per=per)
    x = digits.non_members.x[:200]
    logits = TorchTarget(module).logits(x)
    shipped = to_onnx(module, tuple(x.shape[1:]))
    torch.testing.assert_close(OnnxTarget(shipped).logits(x), logits, rtol=1e-4, atol=1e-4)
    description, arrays = save_module(module)
    again = load_module(digits_cnn(), json.loads(json.dumps(description)), arrays)
    assert torch.equal(TorchTarget(again).logits(x), logits)


def test_operations_are_counted_in_proportion(dense: nn.Module, digits: Data) -> None:
    shape = tuple(digits.non_members.x.shape[1:])
    before, after = layer_macs(dense, shape), layer_macs(sparse(dense, digits, keep=0.25), shape)
    assert [operation[0] for operation in after] == [before[0][0], *(operation[0] // 4 for operation in before[1:])]


def test_half_of_the_activations_cost_little(dense: nn.Module, digits: Data) -> None:
    x, y = digits.non_members.x, digits.non_members.y
    whole = accuracy(TorchTarget(dense), x, y)
    assert accuracy(TorchTarget(sparse(dense, digits, keep=0.5)), x, y) > whole - 0.03
    few = accuracy(TorchTarget(sparse(dense, digits, keep=0.1)), x, y)
    tuned = sparse(dense, digits, keep=0.1, fine_tune={"epochs": 1, "learning_rate": 2e-3})
    assert accuracy(TorchTarget(tuned), x, y) > few


def test_quantisation_may_follow(dense: nn.Module, digits: Data) -> None:
    assert digits.members is not None
    chain = RECIPES.parse({"kind": "chain", "steps": [{"kind": "dynamic-sparsity", "keep": 0.5}, "quantize"]})
    module = chain.apply(dense, digits.members, digits.bounds, seed=0)
    x = digits.non_members.x[:200]
    logits = OnnxTarget(to_onnx(module, tuple(x.shape[1:]))).logits(x)
    assert (logits.argmax(1) == TorchTarget(module).logits(x).argmax(1)).float().mean() >= 0.99
    assert sum(isinstance(layer, SparseInput) for layer in module.modules()) == 5


def test_refusals(dense: nn.Module, digits: Data) -> None:
    with pytest.raises(NotApplicable, match="no layer 'nowhere'"):
        sparse(dense, digits, layers=["nowhere"])
    with pytest.raises(NotApplicable, match="named has so many inputs"):
        sparse(dense, digits, layers=["stem"], per="position")  # one channel
    records = Records(torch.rand(20, 6), torch.arange(20) % 3)
    with pytest.raises(NotApplicable, match="behind the first"):
        RECIPES.parse("dynamic-sparsity").apply(nn.Linear(6, 3), records, Bounds.of(0, 1), seed=0)
