"""Batch norms that directly follow a layer, folded into it: what is then quantised is what a runtime computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...targets.plain import sharing_layers
from .edit import PLAIN_LAYERS, replace_layers

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norm(module: nn.Module, example: Tensor) -> nn.Module:
    """The module, in evaluation mode, each batch norm that directly follows a Conv or Linear folded into it; in place.

    A pair is found by running `example` and seeing the very output of a layer enter a batch norm, both called once.
    That nothing else uses that output is checked by the fold itself: the logits on `example` must stay what they were,
    else the pair is left as it is, and so it is where the layer shares its weight, which would no longer be one
    tensor. A folded batch norm becomes nn.Identity.

    Args:
        example: float32 [n, *shape] on the module's device; two records of noise within the bounds will do.
    """
    folded = module.eval()
    if not any(isinstance(layer, _BATCH_NORMS) for layer in folded.modules()):
        return folded
    before = _output(folded, example)
    tied = sharing_layers(folded)
    for layer, norm in _pairs(folded, example):
        if layer in tied:
            continue
        weight, bias = layer.weight, layer.bias  # restored below if the fold turns out wrong
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            gain = gain * norm.weight.detach()
        shift = -norm.running_mean if bias is None else bias.detach() - norm.running_mean
        offset = torch.zeros_like(gain) if norm.bias is None else norm.bias.detach()
        layer.weight = nn.Parameter(weight.detach() * gain.view(-1, *[1] * (weight.dim() - 1)))
        layer.bias = nn.Parameter(shift * gain + offset)
        identity = nn.Identity().eval()
        replace_layers(folded, {norm: identity})
        if not torch.allclose(_output(folded, example), before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            replace_layers(folded, {identity: norm})
            layer.weight, layer.bias = weight, bias
    return folded


@torch.no_grad()
def _output(module: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = module(x)
    return output


def _pairs(module: nn.Module, example: Tensor) -> list[tuple[Any, Any]]:
    """(layer, batch norm) whose output and input are one tensor; each called exactly once; in the order they ran."""
    outputs: dict[int, list[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}
    norms: list[tuple[nn.Module, Tensor]] = []
    kept: list[Tensor] = []  # alive until the end of the pass, so that no two tensors share an id

    def after_layer(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        outputs.setdefault(id(output), []).append(layer)
        kept.append(output)

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        norms.append((norm, inputs[0]))

    handles = []
    for layer in module.modules():
        if type(layer) in PLAIN_LAYERS:
            handles.append(layer.register_forward_hook(after_layer))
        elif isinstance(layer, _BATCH_NORMS) and layer.running_mean is not None:
            handles.append(layer.register_forward_pre_hook(before_norm))
    try:
        _output(module, example)
    finally:
        for handle in handles:
            handle.remove()
    pairs = []
    for norm, entering in norms:
        before = outputs.get(id(entering), [])
        if len(before) == 1 and calls[before[0]] == calls[norm] == 1:
            layer = before[0]
            channels_last = isinstance(layer, nn.Linear) and entering.dim() != 2
            if not channels_last:
                pairs.append((layer, norm))
    return pairs
