"""Attention out of plain layers: what nn.MultiheadAttention computes, by Linear layers that are really called.

torch's own attention keeps query, key and value projections in one matrix and, in evaluation mode, hands it to a fused
kernel. No layer is called, so none can be quantised, factorised, thinned or counted. `unfold_attention` opens it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable
from .edit import rebuildable, replace_layers


@rebuildable("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "bias", "dropout", "batch_first")
class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, arXiv:1706.03762), called as torch's own.

    Layers: `q_proj` embed_dim -> num_heads * head_dim, `k_proj` from kdim, `v_proj` from vdim, `out_proj` back to
    embed_dim. Any of them may be exchanged for one that takes and gives as many features.

    Args:
        embed_dim, num_heads, kdim, vdim, bias, dropout, batch_first: as in nn.MultiheadAttention.
        head_dim: features per head; there embed_dim / num_heads, here free, so that heads can be removed.
    """

    # nn.TransformerEncoderLayer asks these two before it takes the fused path, and then does not.
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        kdim: int,
        vdim: int,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.kdim, self.vdim, self.bias = kdim, vdim, bias
        self.dropout, self.batch_first = dropout, batch_first
        width = num_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, width, bias=bias)
        self.k_proj = nn.Linear(kdim, width, bias=bias)
        self.v_proj = nn.Linear(vdim, width, bias=bias)
        self.out_proj = nn.Linear(width, embed_dim, bias=bias)
        self._reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention: (output, attention weights or None)."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal only says that attn_mask is the causal mask: pass that mask too.")
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        if attn_mask is not None:
            mask = _additive(attn_mask, scores)
            scores = scores + (mask if mask.dim() == 2 else mask.view_as(scores))
        if key_padding_mask is not None:
            scores = scores + _additive(key_padding_mask, scores)[:, None, None, :]
        shares = scores.softmax(-1)
        mixed = torch.dropout(shares, self.dropout, self.training) @ v
        output: Tensor = self.out_proj(_reshape(mixed.transpose(1, 2), -1))
        if unbatched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        shares = shares.mean(1) if average_attn_weights else shares
        return output, shares.squeeze(0) if unbatched else shares

    def _heads(self, x: Tensor) -> Tensor:
        """[n, length, heads * features] -> [n, heads, length, features]."""
        return _reshape(x, self.num_heads, -1).transpose(1, 2)

    def _reset_parameters(self) -> None:
        """Initial weights as nn.MultiheadAttention draws them: Glorot uniform over the packed matrix, biases 0."""
        layers = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        packed = self.kdim == self.vdim == self.embed_dim
        for layer in layers:
            if type(layer) is not nn.Linear:
                continue
            if layer is not self.out_proj:
                rows = 3 * layer.out_features if packed else layer.out_features
                bound = (6 / (rows + layer.in_features)) ** 0.5
                nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _reshape(x: Tensor, *sizes: int) -> Tensor:
    """x [n, length, ...] as [n, length, *sizes]."""
    if torch.onnx.is_in_onnx_export():  # which spends ten nodes on sizes that are not known before the model runs
        reshaped: Tensor = _Reshape.apply(x, sizes)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return reshaped
    return x.reshape(*x.shape[:2], *sizes)


class _Reshape(torch.autograd.Function):
    """In ONNX a size of 0 means the input's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return x.reshape(*x.shape[:2], *sizes)

    @staticmethod
    def symbolic(g: Any, x: Any, sizes: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor([0, 0, *sizes])))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added to scores: -inf where a boolean one is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask


def unfold_attention(module: nn.Module) -> nn.Module:
    """The module with an `Attention` of the same weights in place of each nn.MultiheadAttention; changed in place.

    Outputs are equal up to float rounding. torch's Transformer layers around it call it (their fused and nested-tensor
    paths are off). Subclasses of nn.MultiheadAttention stay: they may do anything.

    Raises:
        NotApplicable: an attention layer has learned key and value biases or a zero position (`add_bias_kv`,
            `add_zero_attn`).
    """
    found: dict[nn.Module, nn.Module] = {
        layer: _unfold(layer) for layer in module.modules() if type(layer) is nn.MultiheadAttention
    }
    unfolded = replace_layers(module, found)
    forgo_nested_tensors(unfolded)
    return unfolded


def forgo_nested_tensors(module: nn.Module) -> None:
    """Keeps each nn.TransformerEncoder around an `Attention` from packing padded records, which needs fused kernels."""
    for encoder in module.modules():
        if isinstance(encoder, nn.TransformerEncoder) and any(
            isinstance(part, Attention) for part in encoder.modules()
        ):
            encoder.use_nested_tensor = False


def _unfold(layer: nn.MultiheadAttention) -> Attention:
    if layer.bias_k is not None or layer.add_zero_attn:
        raise NotApplicable(
            "An attention layer of the model has learned key and value biases or a zero position (add_bias_kv, "
            "add_zero_attn), which compression does not handle."
        )
    bias = layer.in_proj_bias is not None
    assert layer.kdim is not None
    assert layer.vdim is not None
    attention = Attention(
        layer.embed_dim,
        layer.num_heads,
        layer.head_dim,
        layer.kdim,
        layer.vdim,
        bias,
        layer.dropout,
        layer.batch_first,
    )
    if layer.in_proj_weight is not None:
        projections = layer.in_proj_weight.detach().chunk(3)
    else:
        projections = (layer.q_proj_weight.detach(), layer.k_proj_weight.detach(), layer.v_proj_weight.detach())
    like = layer.out_proj.weight
    attention = attention.to(like.device, like.dtype).train(layer.training)
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    for position, (part, weight) in enumerate(zip(parts, projections, strict=True)):
        part.weight.data.copy_(weight)
        if bias:
            part.bias.data.copy_(layer.in_proj_bias.detach().chunk(3)[position])
    attention.out_proj.weight.data.copy_(like.detach())
    if bias:
        attention.out_proj.bias.data.copy_(layer.out_proj.bias.detach())
    return attention.requires_grad_(like.requires_grad)
