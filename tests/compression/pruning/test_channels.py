"""Channels and heads: what is cut is really gone, and what stays computes as if the rest were zero."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pruning_cases import UNIT, Encoder, Knotted, Recurrent, flops, fresh, kernels, same_state, size
from torch import Tensor, nn

from crushproof.compression.layers.attention import Attention, unfold_attention
from crushproof.compression.pruning.channels import remove_channels
from crushproof.compression.pruning.prune import Prune
from crushproof.targets.data.records import Records
from crushproof.targets.errors import NotApplicable
from crushproof.training.architecture import Architecture
from crushproof.training.networks import Mlp, digits_cnn

# -- channels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["magnitude", "taylor", "random"])
def test_removed_channels_are_as_if_they_were_zero(kind: Any, few: Records) -> None:
    module = fresh(lambda: Mlp(64, 10, (32, 24)))
    thinned = Prune(structure="channels", importance=kind).apply(module, few, UNIT, seed=0)
    before, after = kernels(module), kernels(thinned)
    assert [tuple(weight.shape) for weight in after] == [(16, 64), (12, 16), (10, 12)]
    masked = copy.deepcopy(module)
    layers = [layer for layer in masked.modules() if isinstance(layer, nn.Linear)]
    # Which hidden units are left: those of the first layer by their rows, those of the second by their columns below.
    kept = [int((before[0] == row).all(1).nonzero()) for row in after[0]]
    columns = before[1][:, kept]
    kept_second = [int((columns == row).all(1).nonzero()) for row in after[1]]
    for layer, alive in zip(layers[1:], (kept, kept_second), strict=True):
        gone = [unit for unit in range(layer.in_features) if unit not in alive]
        layer.weight.data[:, gone] = 0
    torch.testing.assert_close(thinned(few.x), masked(few.x))


@pytest.mark.parametrize("kind", ["magnitude", "taylor"])
def test_a_channels_score_is_the_sum_over_all_its_weights(kind: Any, few: Records) -> None:
    """By hand: the units with the largest sums of w^2 or (w dL/dw)^2 over incoming and outgoing weights stay."""
    module: Any = fresh(lambda: Mlp(64, 10, (20,)))
    one_batch = few.take(torch.arange(32))
    first, last = module.layers[1], module.layers[3]
    nn.functional.cross_entropy(module(one_batch.x), one_batch.y).backward()
    score = np.zeros(20)
    for weight, axis in ((first.weight, 1), (last.weight, 0)):
        factor = weight.grad.numpy().astype(np.float64) if kind == "taylor" else 1.0
        score += ((weight.detach().numpy().astype(np.float64) * factor) ** 2).sum(axis)
    module.zero_grad()
    thinned: Any = Prune(structure="channels", sparsity=0.7, importance=kind).apply(module, one_batch, UNIT, seed=0)
    best = np.sort(np.argsort(score)[-6:])
    np.testing.assert_array_equal(thinned.layers[1].weight.detach().numpy(), first.weight.detach().numpy()[best])


def test_channels_go_through_residual_adds(dense: nn.Module, few: Records) -> None:
    pruned = Prune(structure="channels").apply(dense, few, UNIT, seed=0)
    shapes = [tuple(weight.shape[:2]) for weight in kernels(pruned)]
    assert shapes == [(8, 1), (8, 8), (8, 8), (8, 8), (8, 8), (10, 32)]


@pytest.mark.parametrize(("build", "structure"), [(digits_cnn, "channels"), (Knotted, "channels"), (Encoder, "heads")])
def test_what_is_cut_is_smaller_and_cheaper_and_scattered_zeros_are_not(
    build: Any, structure: Any, few: Records
) -> None:
    module = fresh(build)
    cut = Prune(structure=structure).apply(module, few, UNIT, seed=0)
    scattered = Prune(sparsity=0.5).apply(module, few, UNIT, seed=0)
    assert size(cut) < 0.85 * size(module) == 0.85 * size(scattered)
    x = few.x[:2]
    assert flops(cut, x) < 0.85 * flops(unfold_attention(copy.deepcopy(module)), x)
    assert flops(scattered, x) == flops(module, x)


def test_grouped_channels_keep_their_groups(few: Records) -> None:
    pruned: Any = Prune(structure="channels", sparsity=0.6).apply(fresh(Knotted), few, UNIT, seed=0)
    assert (pruned.norm.num_groups, pruned.norm.num_channels) == (4, 8)  # 6.4 rounded up to a multiple of 4
    assert pruned.depthwise.groups == pruned.depthwise.out_channels == 8
    assert (pruned.grouped.groups, pruned.grouped.out_channels) == (2, 10)
    assert pruned.side.out_channels == 2


def test_a_flattened_concatenation_keeps_its_width_and_the_rest_is_thinned(few: Records) -> None:
    """torch-pruning 1.6.1 ties the wrong channels there, and the cut model could not run."""
    pruned: Any = Prune(structure="channels").apply(fresh(lambda: Knotted(flatten=True)), few, UNIT, seed=0)
    assert (pruned.grouped.out_channels, pruned.side.out_channels, pruned.head.in_features) == (24, 4, 448)
    assert (pruned.stem.out_channels, pruned.point.out_channels) == (8, 12)
    assert pruned(few.x).shape == (96, 10)


@pytest.mark.parametrize(("round_to", "width"), [(1, 5), (4, 8), (8, 8), (3, 6)])
def test_channel_counts_are_multiples_for_hardware(round_to: int, width: int, few: Records) -> None:
    pruned: Any = Prune(structure="channels", sparsity=0.7, round_to=round_to).apply(
        fresh(digits_cnn), few, UNIT, seed=0
    )
    assert pruned.stem.out_channels == pruned.block1.conv1.out_channels == width
    assert pruned.head.out_features == 10


def test_one_channel_always_stays(few: Records) -> None:
    module: Any = fresh(lambda: Mlp(64, 10, (3, 1, 2)))
    pruned = Prune(structure="channels", sparsity=0.99).apply(module, few, UNIT, seed=0)
    assert [tuple(weight.shape) for weight in kernels(pruned)] == [(1, 64), (1, 1), (1, 1), (10, 1)]
    assert torch.isfinite(pruned(few.x)).all()


def test_attention_and_recurrence_keep_their_width_when_channels_go(few: Records) -> None:
    encoder: Any = Prune(structure="channels").apply(fresh(Encoder), few, UNIT, seed=0)
    for layer in encoder.encoder.layers:
        assert (layer.self_attn.q_proj.out_features, layer.linear1.out_features) == (16, 16)
    recurrent: Any = Prune(structure="channels").apply(fresh(Recurrent), few, UNIT, seed=0)
    assert (recurrent.lstm.hidden_size, recurrent.middle.out_features) == (16, 12)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.middle, self.head = nn.Linear(64, 32), nn.Linear(16, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.gates(x.flatten(1)).chunk(2, 1)
        logits: Tensor = self.head(torch.relu(self.middle(value * torch.sigmoid(gate))))
        return logits


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(8, 12), nn.Linear(8, 12)
        self.layer = nn.TransformerDecoderLayer(12, 3, 20, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.squeeze(1)
        logits: Tensor = self.head(self.layer(self.query(rows[:, :2]), self.embed(rows)).mean(1))
        return logits


@pytest.mark.parametrize("build", [Gated, Decoder, Knotted, Recurrent])
def test_the_shapes_depend_on_no_weight(build: Any, few: Records) -> None:
    """Shadow models have other weights and must become the same architecture as the audited one."""
    seen = set()
    for seed in range(4):
        module = Architecture("test", build).fresh(seed).eval()
        for kind in ("magnitude", "random"):
            pruned = Prune(structure="channels", sparsity=0.6, importance=kind).apply(module, few, UNIT, seed=seed)
            seen.add(tuple(tuple(value.shape) for value in pruned.parameters()))
            assert size(pruned) < size(module)
    assert len(seen) == 1


def test_what_feeds_attention_keeps_its_width(few: Records) -> None:
    pruned: Any = Prune(structure="channels").apply(fresh(Decoder), few, UNIT, seed=0)
    assert (pruned.embed.out_features, pruned.layer.linear1.out_features) == (12, 10)
    assert pruned.layer.multihead_attn.kdim == pruned.layer.multihead_attn.k_proj.in_features == 12


def test_a_student_is_thinned_by_the_same_function(dense: nn.Module, members: Records) -> None:
    thinned = remove_channels(dense, members.x[:2], 0.5)
    again = Prune(structure="channels").apply(dense, members, UNIT, seed=0)
    assert same_state(thinned, again)


# -- heads -------------------------------------------------------------------------------------------------------------


def test_removed_heads_are_as_if_they_gave_nothing(few: Records) -> None:
    """The heads with the smallest weights go; the rest computes what the whole does with those heads' outputs cut."""
    module: Any = fresh(Encoder)
    small = [(1, 3), (0, 1)]
    with torch.no_grad():
        for layer, heads in zip(module.encoder.layers, small, strict=True):
            for head in heads:
                rows = slice(4 * head, 4 * head + 4)
                layer.self_attn.in_proj_weight.view(3, 16, 16)[:, rows] *= 0.1
                layer.self_attn.out_proj.weight[:, rows] *= 0.1
    pruned = Prune(structure="heads").apply(module, few, UNIT, seed=0)
    left = [layer for layer in pruned.modules() if isinstance(layer, Attention)]
    assert [(layer.num_heads, layer.q_proj.out_features, layer.out_proj.in_features) for layer in left] == [
        (2, 8, 8)
    ] * 2
    masked: Any = unfold_attention(copy.deepcopy(module))
    for layer, heads in zip(masked.encoder.layers, small, strict=True):
        for head in heads:
            layer.self_attn.out_proj.weight.data[:, 4 * head : 4 * head + 4] = 0
    torch.testing.assert_close(pruned(few.x), masked(few.x), rtol=1e-4, atol=1e-5)


def test_taylor_removes_the_head_that_says_nothing(few: Records) -> None:
    """A head whose values are zero has no effect, however large its other weights are."""
    module: Any = fresh(Encoder)
    for layer in module.encoder.layers:
        attention = layer.self_attn
        with torch.no_grad():
            attention.in_proj_weight[:32].view(2, 4, 4, 16)[:, 2] *= 3  # queries and keys of head 2
            attention.in_proj_weight[32:].view(4, 4, 16)[2] = 0
            attention.in_proj_bias[32:].view(4, 4)[2] = 0
    recipe = Prune(structure="heads", sparsity=0.25, importance="taylor")
    pruned = recipe.apply(module, few, UNIT, seed=0)
    torch.testing.assert_close(pruned(few.x), module(few.x), rtol=1e-4, atol=1e-5)


class ByHand(nn.Module):
    """Calls torch's attention function with the layer's packed weights, which an opened layer does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens, own = x.squeeze(1).transpose(0, 1), self.attention
        mixed = nn.functional.multi_head_attention_forward(
            *(tokens, tokens, tokens, 8, 2, own.in_proj_weight, own.in_proj_bias, None, None, False, 0.0),
            *(own.out_proj.weight, own.out_proj.bias),
        )[0]
        logits: Tensor = self.head(mixed.mean(0))
        return logits


@pytest.mark.parametrize("structure", ["heads", "channels"])
def test_attention_that_cannot_be_opened_is_not_applicable(structure: Any, few: Records) -> None:
    with pytest.raises(NotApplicable, match="does not run with its attention as plain"):
        Prune(structure=structure).apply(fresh(ByHand), few, UNIT, seed=0)


def test_one_head_always_stays(few: Records) -> None:
    pruned = Prune(structure="heads", sparsity=0.99).apply(fresh(Encoder), few, UNIT, seed=0)
    assert [layer.num_heads for layer in pruned.modules() if isinstance(layer, Attention)] == [1, 1]
