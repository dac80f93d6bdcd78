"""Narrower networks of the same architecture, by scaling the sizes of layers; their weights start anew.

Removing channels from a trained network (`channels.remove_channels`) needs the graph of what depends on what, and
recurrent layers, attention and norms of groups of channels are opaque to it. A student that learns from scratch keeps
no weights: every size but those of a record and of the logits can simply shrink in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable, user_error
from ...targets.model import device_of
from ...targets.plain import tie
from ...targets.seeds import global_seed
from ..deployment.structure import resized
from ..layers.attention import Attention, unfold_attention
from ..layers.edit import replace_layers, working_copy

LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)  # over the last dimension
CHANNEL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d)
FOLLOWING = (*LAST_NORMS, *CHANNEL_NORMS, nn.GroupNorm, nn.PReLU)  # as wide as what comes before
SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU, nn.RNN, nn.Embedding, Attention, *FOLLOWING)

OPAQUE = (nn.RNNBase, nn.MultiheadAttention, Attention, nn.GroupNorm)  # to `channels.remove_channels`

Scale = Callable[[int], int]


def narrower(module: nn.Module, example: Tensor, width: float) -> nn.Module | None:
    """A module like a network with recurrent layers, attention or group norm with the share `width` of its features.

    Hidden sizes, embeddings, feed-forward layers and the features of each head shrink; the number of layers and heads
    stays, and so do the sizes of a record (of what no weight has touched yet) and of the logits. Groups of channels
    become fewer where they no longer divide them.

    Args:
        example: float32 [n, *shape], on the module's device.
        width: above 0, below 1. A size becomes round(width * size), at least 1; where such sizes do not fit together
            (a concatenation), it becomes a multiple of the same fraction of their greatest common divisor.

    Returns:
        The module in evaluation mode, its weights untrained; None if it has none of those layers.

    Raises:
        NotApplicable: the smaller layers do not fit together, or none is smaller.
    """
    if not any(isinstance(layer, OPAQUE) for layer in module.modules()):
        return None
    opened = unfold_attention(working_copy(module))
    sizes, shape = scalable_sizes(opened, example)
    measure = math.gcd(*(size for own in sizes.values() for size in own.values()))
    unit = max(1, round(measure * width))
    reason = "no size is large enough"
    scales: tuple[Scale, ...] = (lambda size: max(1, round(size * width)), lambda size: size // measure * unit)
    for scale in scales:
        smaller = {name: {key: scale(size) for key, size in own.items()} for name, own in sizes.items()}
        if smaller == sizes:
            continue
        try:
            candidate = _resized(opened, smaller)
            with torch.no_grad():
                if candidate(example).shape == shape:
                    return candidate
            reason = "the outputs would have another shape"
        except Exception as error:  # the user's own forward pass, on layers of sizes it was not written for
            reason = user_error(error)
    raise NotApplicable(f"The model's layers cannot be made narrower by a factor of {width:g}: {reason}.")


def scalable_sizes(module: nn.Module, example: Tensor) -> tuple[dict[str, dict[str, int]], torch.Size]:
    """By layer's name the constructor's arguments that are sizes of inner features, and the shape of the output.

    A tensor that no parameter has touched is the record's: it carries no gradient while all parameters do.
    """
    names = {layer: name for name, layer in module.named_modules()}
    raw: dict[nn.Module, bool] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raw[layer] = raw.get(layer, False) or not inputs[0].requires_grad

    inside = {part for layer in names if isinstance(layer, Attention) for part in layer.children()}
    candidates = [layer for layer in names if isinstance(layer, SCALED) and layer not in inside]
    handles = [layer.register_forward_pre_hook(note) for layer in candidates]
    try:
        with torch.enable_grad():
            shape = module(example.detach()).shape
    finally:
        for handle in handles:
            handle.remove()
    last = [layer for layer in raw if not isinstance(layer, (nn.Embedding, *FOLLOWING))][-1:]
    sizes = {names[layer]: _sizes(layer, untouched, layer in last) for layer, untouched in raw.items()}
    return {name: own for name, own in sizes.items() if own}, shape


def _sizes(layer: nn.Module, raw: bool, last: bool) -> dict[str, int]:
    """The sizes of a layer that follow the network's width: not those of a record's features, nor the logits'."""
    if isinstance(layer, Attention):
        outer = {} if raw else {"embed_dim": layer.embed_dim, "kdim": layer.kdim, "vdim": layer.vdim}
        return {**outer, "head_dim": layer.head_dim}
    if isinstance(layer, nn.Embedding):
        return {"embedding_dim": layer.embedding_dim}
    if isinstance(layer, LAST_NORMS):
        return {} if raw or len(layer.normalized_shape) > 1 else {"normalized_shape": layer.normalized_shape[0]}
    if isinstance(layer, CHANNEL_NORMS):
        return {} if raw else {"num_features": layer.num_features}
    if isinstance(layer, nn.GroupNorm):
        return {} if raw else {"num_channels": layer.num_channels}
    if isinstance(layer, nn.PReLU):
        return {} if raw or layer.num_parameters == 1 else {"num_parameters": layer.num_parameters}
    names = ("input_size", "hidden_size") if isinstance(layer, nn.RNNBase) else ("in_features", "out_features")
    names = ("in_channels", "out_channels") if isinstance(layer, nn.Conv1d | nn.Conv2d) else names
    return {name: getattr(layer, name) for name, stays in zip(names, (raw, last), strict=True) if not stays}


def _fitting(layer: nn.Module, sizes: dict[str, int]) -> dict[str, int]:
    """With as many groups of channels as divide them."""
    if not isinstance(layer, nn.GroupNorm):
        return sizes
    return {**sizes, "num_groups": math.gcd(layer.num_groups, sizes["num_channels"])}


def _resized(module: nn.Module, sizes: dict[str, dict[str, int]]) -> nn.Module:
    smaller = working_copy(module)
    with global_seed(0, "narrower"):  # values mean nothing, but must not move anybody's generator
        layers: dict[nn.Module, nn.Module] = {
            layer: resized(layer, **_fitting(layer, sizes[name]))
            for name, layer in smaller.named_modules()
            if name in sizes
        }
    resized_module = replace_layers(smaller, layers).to(device_of(module)).eval()
    tie(resized_module, module)
    return resized_module
