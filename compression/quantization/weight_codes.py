"""Weights in few bits: which numbers a format can write, and the codes and scales that come closest to a weight.

Every format but the two 16-bit floats writes a weight as code * scale, with an int8 code and a float32 scale that a
tensor, an output channel or a group of weights shares. A weight of exactly 0 (pruned) stays 0, except in binary, which
has no zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Bits = Literal[2, 3, 4, 8]
Rounding = Literal["nearest", "stochastic"]
Number = Literal["integer", "fixed-point", "binary", "ternary", "float16", "bfloat16"]
Granularity = Literal["tensor", "channel", "group"]

SIXTEEN_BITS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_CLIP_RATIOS = [ratio / 50 for ratio in range(50, 9, -1)]  # 1.00, .98, ... .20 of a unit's largest magnitude
_TOGETHER = 2**17  # numbers that are tried at once: as many as a processor core keeps close by
_FINER = 4  # fixed point below 8 bits may clip: so many fraction lengths are tried
_TERNARY_THRESHOLD = 0.7  # of the mean magnitude: Li & Liu 2016, section 2.2


@dataclass(frozen=True)
class WeightFormat:
    """How a weight is written.

    integer: codes in -(2^(bits-1) - 1) .. 2^(bits-1) - 1 (Jacob et al. 2018, arXiv:1712.05877). fixed-point: the same,
    and the scale is a power of two (Q m.n: n fraction bits, chosen per unit). binary: -1 and 1 times the mean magnitude
    (XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279). ternary: -1, 0, 1 (TWN, Li & Liu 2016, arXiv:1605.04711).
    float16, bfloat16: stored in 16 bits, computed in float32, without scales.

    Attributes:
        bits: of a code; integer and fixed-point only.
        granularity: what shares a scale: the whole weight, an output channel, or a group.
        group_size: weights of a group, along a channel's weights in memory order (the input features of a Linear, the
            input channels times kernel of a convolution); a channel's last group may be shorter.
    """

    number: Number = "integer"
    bits: Bits = 8
    granularity: Granularity = "channel"
    group_size: int = 32

    @property
    def width(self) -> int:
        """Bits that a stored weight takes."""
        widths: dict[str, int] = {"binary": 1, "ternary": 2, "float16": 16, "bfloat16": 16}
        return widths.get(self.number, self.bits)

    @property
    def top(self) -> int:
        """The largest code; codes lie in -top .. top. Not of the 16-bit floats."""
        return 1 if self.number in ("binary", "ternary") else 2 ** (self.bits - 1) - 1

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the scales of a weight of this shape [out, ...]: [1], [out] or [out, groups]."""
        if self.granularity == "group":
            per_channel = int(torch.Size(shape[1:]).numel())
            return shape[0], -(-per_channel // self.group_size)
        return (1,) if self.granularity == "tensor" else (shape[0],)


def weight_codes(
    weight: Tensor, format: WeightFormat, rounding: Rounding = "nearest", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The codes and scales of a weight; each unit (tensor, channel or group) has its own scale.

    integer: at 8 bits the scale covers the unit's largest magnitude; below, it is the one of 41 clipped ranges with the
    smallest (expected) squared error of the rounding. fixed-point: the finest power of two that covers the largest
    magnitude; below 8 bits, the one of it and three finer with the smallest squared error. binary and ternary: see
    `WeightFormat`. A unit of zeros gets the smallest scale of the others (a bias is stored in multiples of it); in
    binary, which cannot write 0, a millionth of it.

    Args:
        weight: float32 [out, ...].
        format: not a 16-bit float (see `half_bits`).
        rounding: "stochastic" rounds up with probability equal to the fraction, so that codes are right on average.
            Integer and fixed-point; the others have one rounding.
        generator: a CPU generator; needed for stochastic rounding only.

    Returns:
        codes int8 like `weight`, in -top .. top, and scale float32 > 0 (`WeightFormat.scale_shape`).
    """
    assert format.number not in SIXTEEN_BITS, "16-bit floats have no codes"
    units, present = _units(weight.detach(), format)
    magnitude = units.abs()
    largest = magnitude.amax(1)
    if format.number == "binary":
        scale = magnitude.sum(1) / present.sum(1)
        codes = torch.where(units < 0, -1.0, 1.0)
    elif format.number == "ternary":
        above = magnitude > _TERNARY_THRESHOLD * (magnitude.sum(1) / present.sum(1))[:, None]
        scale = (magnitude * above).sum(1) / above.sum(1).clamp_min(1)
        codes = units.sign() * above
    else:
        scale = _best_scale(units, largest, format, rounding)
    alive = largest > 0
    least = scale[alive].min() if alive.any() else torch.ones((), device=scale.device)
    scale = torch.where(alive, scale, least * 2.0**-20 if format.number == "binary" else least)
    if format.number in ("integer", "fixed-point"):
        steps = units / scale[:, None]
        if rounding == "stochastic":
            noise = torch.rand(weight.shape, generator=generator).to(steps.device)
            steps = (steps + _units(noise, format)[0]).floor()
        codes = steps.round().clamp(-format.top, format.top)
    return _whole(codes, weight.shape).to(torch.int8), scale.view(format.scale_shape(tuple(weight.shape)))


def spread_scale(scale: Tensor, shape: tuple[int, ...], group_size: int) -> Tensor:
    """The scale of every weight, so that weight = codes * spread: broadcastable to `shape` [out, ...].

    Args:
        scale: [1], [out] or [out, groups] (`WeightFormat.scale_shape`).
    """
    if scale.dim() == 2:
        per_channel = int(torch.Size(shape[1:]).numel())
        return scale.repeat_interleave(group_size, 1)[:, :per_channel].reshape(shape)
    return scale.view(-1, *[1] * (len(shape) - 1))


def half_bits(weight: Tensor, number: Number) -> Tensor:
    """The bit patterns int16, like `weight`, of its nearest float16 or bfloat16 values (saturated; -0 becomes 0)."""
    dtype = SIXTEEN_BITS[number]
    limit = torch.finfo(dtype).max
    values = weight.detach().clamp(-limit, limit).to(dtype)
    return torch.where(values == 0, torch.zeros_like(values), values).view(torch.int16)


def agreed(layers: Sequence[nn.Module], formats: Sequence[WeightFormat]) -> list[WeightFormat]:
    """`formats`, one per layer, with the widest for all layers that share a weight."""
    widest: dict[int, WeightFormat] = {}
    keys = [id(getattr(layer, "weight", layer)) for layer in layers]
    for key, format in zip(keys, formats, strict=True):
        widest[key] = max(widest.get(key, format), format, key=lambda one: one.width)
    return [widest[key] for key in keys]


@torch.no_grad()
def clip_weights(layers: Sequence[nn.Module], deviations: float) -> None:
    """Brings every weight of the layers within so many standard deviations of its own values other than 0; in place."""
    named = (one for layer in layers for one in layer.named_parameters() if one[0].startswith("weight"))
    for weight in {id(value): value for _, value in named}.values():
        alive = weight[weight != 0]
        if len(alive) > 1:
            limit = deviations * float(alive.std())
            weight.clamp_(-limit, limit)


def _best_scale(units: Tensor, largest: Tensor, format: WeightFormat, rounding: Rounding) -> Tensor:
    """[units]: the scale of each row of `units` whose rounding errs least; where a row is zero, any."""
    tiny = torch.finfo(torch.float32).tiny
    covering = (largest / format.top).clamp_min(tiny)
    if format.number == "fixed-point":
        fraction, exponent = torch.frexp(covering)  # covering = fraction * 2^exponent, fraction in [.5, 1)
        covering = torch.ldexp(torch.ones_like(fraction), torch.where(fraction == 0.5, exponent - 1, exponent))
    if format.bits == 8:
        return covering
    if format.number == "fixed-point":
        candidates = torch.stack([covering / 2**finer for finer in range(_FINER)])
    else:
        ratios = torch.tensor(_CLIP_RATIOS, device=largest.device)
        candidates = (largest * ratios[:, None] / format.top).clamp_min(tiny)
    best, least = covering, torch.full_like(largest, torch.inf)
    for scales in candidates.split(max(1, _TOGETHER // max(1, units.numel()))):  # [some, units]
        steps = units / scales[:, :, None]
        if rounding == "stochastic":
            inside = steps.clamp(-format.top, format.top)
            fraction = inside - inside.floor()
            errors = (steps - inside).square() + fraction * (1 - fraction)
        else:
            errors = (steps - steps.round().clamp_(-format.top, format.top)).square_()
        error, place = (errors.sum(2) * scales.square()).nan_to_num(nan=torch.inf, posinf=torch.inf).min(0)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scales.gather(0, place[None])[0], best)
    return best


def _units(weight: Tensor, format: WeightFormat) -> tuple[Tensor, Tensor]:
    """The weights that share a scale, a row each [units, n], zeros where a group is short; and where weights are."""
    rows = weight.reshape(1, -1) if format.granularity == "tensor" else weight.flatten(1)
    present = torch.ones_like(rows, dtype=torch.bool)
    if format.granularity == "group":
        missing = -rows.shape[1] % format.group_size
        rows, present = (torch.nn.functional.pad(values, (0, missing)) for values in (rows, present))
        rows, present = (values.reshape(-1, format.group_size) for values in (rows, present))
    return rows, present


def _whole(units: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_units`, for a weight of this shape."""
    per_channel = shape[1:].numel()
    if units.numel() == shape.numel():
        return units.reshape(shape)
    return units.reshape(shape[0], -1)[:, :per_channel].reshape(shape)
