"""Attention out of plain layers computes what torch computes, and every weight of it is found."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_cases import CPU, SHAPE, difference, drawn, made
from torch import Tensor, nn

from crushproof.compression.deployment.structure import load_module, save_module
from crushproof.compression.layers.attention import Attention, unfold_attention
from crushproof.compression.layers.edit import called_layers, weights
from crushproof.targets.data.records import Records
from crushproof.targets.errors import NotApplicable
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_in_a_stack(dropout: float) -> None:
    """Opened attention is stackable; with dropout it must not be stacked, since its draws would be others."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(8, 2, 4, 8, 8, dropout=dropout)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = x.squeeze(1)
            logits: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
            return logits

    records = Records(torch.rand((24, *SHAPE), generator=generator(0, "x")), torch.arange(24) % 10)
    architecture, training = Architecture.like(Small(), "small"), Training(epochs=2, batch_size=4)
    halves = [torch.arange(12), torch.arange(12, 24)]
    both = train_many(TrainingJob(architecture, records, halves, [1, 2], CPU), training)
    second = train_many(TrainingJob(architecture, records, halves[1:], [2], CPU), training)[0]
    assert difference(both[1](records.x), second(records.x)) < 1e-5


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@settings(max_examples=60)
@given(
    heads=st.sampled_from([1, 2, 3]),
    batch_first=st.booleans(),
    bias=st.booleans(),
    other=st.booleans(),
    mask=st.sampled_from(["none", "causal", "bool", "float", "per head"]),
    padding=st.sampled_from(["none", "bool", "float"]),
    average=st.booleans(),
    unbatched=st.booleans(),
)
def test_attention_is_torchs(
    heads: int, batch_first: bool, bias: bool, other: bool, mask: str, padding: str, average: bool, unbatched: bool
) -> None:
    """Output and attention weights of nn.MultiheadAttention, whatever it is asked."""
    n, length, features, source = 3, 4, 6, 5 if other else 4
    widths = {"kdim": 5, "vdim": 7} if other else {}
    theirs = made(lambda: nn.MultiheadAttention(features, heads, bias=bias, batch_first=batch_first, **widths))
    ours = unfold_attention(copy.deepcopy(theirs))
    assert isinstance(ours, Attention)
    query = drawn(n, length, features, seed=1)
    key = drawn(n, source, 5, seed=2) if other else query
    value = drawn(n, source, 7, seed=3) if other else query
    allowed = torch.eye(length, source, dtype=torch.bool) | (drawn(length, source, seed=4) > 0)
    asked: dict[str, Any] = {
        "none": {},
        "causal": {"attn_mask": torch.triu(torch.full((length, source), -torch.inf), 1), "is_causal": True},
        "bool": {"attn_mask": ~allowed},
        "float": {"attn_mask": drawn(length, source, seed=5)},
        "per head": {"attn_mask": drawn(n * heads, length, source, seed=6)},
    }[mask]
    ignored = torch.zeros(n, source, dtype=torch.bool)
    ignored[:, -1] = mask != "bool"  # there, a row might have nothing left
    if padding != "none":
        asked["key_padding_mask"] = ignored if padding == "bool" else ignored * drawn(n, source, seed=7)
    inputs = [query, key, value]
    if unbatched:
        inputs = [each[0] for each in inputs]
        asked = {name: each[0] if name == "key_padding_mask" else each for name, each in asked.items()}
        if mask == "per head":
            asked["attn_mask"] = asked["attn_mask"][:heads]
    elif not batch_first:
        inputs = [each.transpose(0, 1) for each in inputs]
    with torch.no_grad():
        wanted, shares = theirs(*inputs, **asked, average_attn_weights=average)
        given_, given_shares = ours(*inputs, **asked, average_attn_weights=average)
        assert ours(*inputs, **asked, need_weights=False)[1] is None
    assert difference(given_, wanted) < 2e-6
    assert given_shares is not None
    assert given_shares.shape == shares.shape
    assert difference(given_shares, shares) < 2e-6


def test_attention_has_torchs_gradients() -> None:
    theirs = made(lambda: nn.MultiheadAttention(8, 2, batch_first=True)).requires_grad_(True)
    ours = unfold_attention(copy.deepcopy(theirs))
    assert isinstance(ours, Attention)
    x = [drawn(2, 5, 8).requires_grad_(True) for _ in range(2)]
    for module, each in zip((theirs, ours), x, strict=True):
        module(each, each, each)[0].square().sum().backward()
    assert difference(x[0].grad, x[1].grad) < 1e-5
    parts = [layer.weight.grad for layer in (ours.q_proj, ours.k_proj, ours.v_proj)]
    assert difference(torch.cat(parts), theirs.in_proj_weight.grad) < 1e-4
    assert difference(ours.out_proj.bias.grad, theirs.out_proj.bias.grad) < 1e-4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_calls_every_layer(norm_first: bool) -> None:
    """No fused kernel and no nested tensor, frozen or not; outputs of real positions stay what they were."""
    theirs = made(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first),
            2,
            enable_nested_tensor=not norm_first,
        )
    ).requires_grad_(False)
    ours = unfold_attention(copy.deepcopy(theirs))
    x = drawn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 2e-6
        assert (
            difference(
                ours(x, src_key_padding_mask=padding)[~padding], theirs(x, src_key_padding_mask=padding)[~padding]
            )
            < 2e-6
        )
    assert len(called_layers(ours, x)) == 2 * (4 + 2)
    rebuilt = load_module(copy.deepcopy(theirs), *save_module(ours))  # which began with the nested path on
    called: list[nn.Module] = []
    for layer in rebuilt.modules():
        if isinstance(layer, Attention):
            layer.register_forward_hook(lambda layer, inputs, output: called.append(layer))
    with torch.no_grad():
        assert torch.equal(rebuilt(x, src_key_padding_mask=padding), ours(x, src_key_padding_mask=padding))
    assert len(called) == 2


def test_unfolding_leaves_the_rest() -> None:
    class Own(nn.MultiheadAttention):
        """May do anything."""

    own = nn.Sequential(Own(4, 2), nn.Linear(4, 4))
    unfolded = unfold_attention(copy.deepcopy(own))
    assert type(unfolded[0]) is Own
    assert unfolded[1] is not own[1]
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(NotApplicable, match="add_bias_kv"):
            unfold_attention(nn.MultiheadAttention(4, 2, **options))


def test_fresh_attention_is_drawn_as_torchs() -> None:
    """Glorot uniform over the packed matrix [3 * 64, 64]: within sqrt(6 / 256), nearly reached; no biases."""
    theirs = nn.MultiheadAttention(64, 4, batch_first=True)
    fresh = Architecture.like(unfold_attention(copy.deepcopy(theirs)), "fresh").fresh(3)
    bound = (6 / (64 + 3 * 64)) ** 0.5
    for module in (theirs, fresh):
        values = dict(module.named_parameters())
        inner = [value for name, value in values.items() if name.endswith("weight") and "out" not in name]
        largest = max(float(value.detach().abs().max()) for value in inner)
        assert 0.98 * bound < largest <= bound
        assert all(not value.any() for name, value in values.items() if name.endswith("bias"))


# Weights


def test_weights_of_every_kind() -> None:
    module = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
            "attention": nn.MultiheadAttention(4, 2),
            "other": nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            "table": nn.Embedding(7, 4),
            "norm": nn.LayerNorm(4),
        }
    )
    found = weights(module, "pruning")
    directions = [f"_l{layer}{direction}" for layer in (0, 1) for direction in ("", "_reverse")]
    expected = {f"lstm.weight_{kind}{where}" for kind in ("ih", "hh", "hr") for where in directions}
    expected |= {"attention.in_proj_weight", "attention.out_proj.weight", "other.out_proj.weight", "table.weight"}
    expected |= {f"other.{which}_proj_weight" for which in "qkv"}
    assert set(found) == expected
    assert all(value.dim() == 2 for value in found.values())
    with pytest.raises(NotApplicable, match="no linear"):
        weights(nn.LayerNorm(4), "pruning")
