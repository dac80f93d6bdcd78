"""Which layers of a model have a quantised stand-in, and what it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import copied
from ..layers.attention import unfold_attention
from ..layers.edit import called, noise
from ..layers.fold_batch_norm import fold_batch_norm
from .quantized_layer import Activations, QuantizedLayer, can_quantize, quantize_layer
from .quantized_recurrent import QuantizedRecurrent, quantize_recurrent
from .weight_codes import Rounding, WeightFormat

RECURRENT = (nn.LSTM, nn.GRU)


def prepare(module: nn.Module, records: Records, bounds: Bounds, seed: int) -> tuple[nn.Module, list[nn.Module]]:
    """A copy with attention opened and batch norms folded, and its layers to quantise, in the order of first calls.

    Raises:
        NotApplicable: there is none.
    """
    example = noise(module, records, bounds, 2, seed)
    prepared = fold_batch_norm(unfold_attention(copied(module)), example)
    layers = called(prepared, example, quantizable)
    if not layers:
        raise NotApplicable(
            "The model calls no plain Linear, Conv1d, Conv2d, Embedding, LSTM or GRU layer, so there is nothing to "
            "quantize."
        )
    return prepared, layers


def quantizable(layer: nn.Module) -> bool:
    """Whether a layer has a quantised stand-in; a recurrent one with projected states has none."""
    return can_quantize(layer) or (type(layer) in RECURRENT and not layer.proj_size)


def stand_in(
    layer: nn.Module,
    format: WeightFormat,
    rounding: Rounding = "nearest",
    draw: torch.Generator | None = None,
    activations: Activations = None,
    codes: tuple[Tensor, Tensor] | None = None,
) -> QuantizedLayer | QuantizedRecurrent:
    """The quantised stand-in of a `quantizable` layer; a recurrent one knows neither `activations` nor `codes`."""
    if isinstance(layer, nn.LSTM | nn.GRU):
        return quantize_recurrent(layer, format, rounding, draw)
    return quantize_layer(layer, format, rounding=rounding, generator=draw, activations=activations, codes=codes)
