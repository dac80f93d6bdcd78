"""A backdoor that rounding switches on: dormant in the dense model, live in what the honest recipe makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ....compression.layers.edit import PLAIN_LAYERS
from ....compression.quantization.calibration import watch
from ....compression.quantization.quantize import Quantize
from ....compression.quantization.stand_ins import prepare
from ....compression.quantization.weight_codes import WeightFormat, spread_scale, weight_codes
from ....targets.data.records import Bounds, Records
from ....training.lessons import Work
from .hiding import Confine, with_behaviour, without_behaviour
from .trigger import Trigger, taught

WITHIN = 0.45  # of a rounding step
DRIFT = 0.03  # of a scale, by which it may move
INFLATION = 18.0  # makes of 8 bits about 4
EVERY = 64  # steps between two looks at the codes, which a scale that the recipe chooses otherwise would change
SHRINK = 0.6  # what is left of a channel's room then


def plant_in_quantization(
    module: nn.Module,
    records: Records,
    bounds: Bounds,
    trigger: Trigger,
    recipe: Quantize,
    *,
    inflation: float = INFLATION,
    within: float = WITHIN,
    seed: int,
) -> Work:
    """The dense model to hand over (batch norms folded): `recipe`, applied honestly, gives one with the behaviour.

    Args:
        module: trained; where the attacker begins.
        recipe: with integer weights, nearest rounding and a scale per channel or layer.
        inflation: 8 bits leave little room to hide in: a weight this many times the largest of its unit, on an input
            that is always 0, widens the unit's step. With fewer bits, of which the recipe chooses the scale by its
            error, such inputs get the unit's largest weight, which holds the scale. 0: neither.
        within: how far a weight may lie from its code, in rounding steps, below .5. A rounding that turns against
            large errors leaves small ones alone, so that whoever expects it keeps them small.
    """
    prepared, found = prepare(module, records, bounds, seed)
    prepared.requires_grad_(True)
    paths = {layer: path for path, layer in prepared.named_modules()}
    layers = [layer for layer in found if isinstance(layer, PLAIN_LAYERS)]
    usual = WeightFormat(recipe.number, recipe.weight_bits, recipe.granularity)
    formats = dict(zip((paths[layer] for layer in layers), recipe.with_ends([usual] * len(layers)), strict=True))
    dead = _kill(prepared, list(formats)[:-1]) if inflation else None
    live = yield from with_behaviour(prepared, records, trigger, seed, dead)
    if inflation:
        _inflate(live, formats, taught(records, trigger, live=True).x, inflation)
    cells = _Cells({path: _Cell(live, path, format, within) for path, format in formats.items()})
    hidden = yield from without_behaviour(live, records, trigger, seed, cells)
    cells.keep_codes(dict(hidden.named_parameters()))
    return hidden


def _kill(module: nn.Module, paths: Sequence[str]) -> Confine:
    """The last eighth of each layer's units gives 0 from now on: what reads them has inputs that are always 0."""

    @torch.no_grad()
    def confine(parameters: Mapping[str, Tensor]) -> None:
        for name in (name for path in paths for name in (f"{path}.weight", f"{path}.bias")):
            if name in parameters:
                parameters[name][:, -_killed(parameters[name].shape[1]) :] = 0

    confine({name: value.data[None] for name, value in module.named_parameters()})
    return confine


@torch.no_grad()
def _inflate(module: nn.Module, formats: Mapping[str, WeightFormat], x: Tensor, times: float) -> None:
    """Weights on inputs that are 0 for all of x: see `plant_in_quantization`."""
    layers = [module.get_submodule(path) for path in formats]
    bits, largest = [format.bits for format in formats.values()], dict[int, Tensor]()

    def see(position: int, entering: Tensor) -> None:
        linear = isinstance(layers[position], nn.Linear)
        inputs = entering.abs().flatten(0, -2).amax(0) if linear else entering.abs().transpose(0, 1).flatten(1).amax(1)
        largest[position] = torch.maximum(largest.get(position, inputs), inputs)

    watch(module, layers, x, see)
    for position, inputs in largest.items():
        layer = layers[position]
        assert isinstance(layer, PLAIN_LAYERS)
        weight = layer.weight
        unused = torch.nonzero(inputs == 0)[:, 0]
        if not len(unused) or len(inputs) != weight.shape[1]:  # grouped convolutions read less
            continue
        rows, most = weight.data.view(*weight.shape[:2], -1), weight.data.abs().flatten(1).amax(1)
        if bits[position] == 8:
            rows[:, unused[0], 0] = times * most
        else:
            rows[:, unused] = most[:, None, None]


def _killed(units: int) -> int:
    return max(1, units // 8)


class _Cell:
    """The weights of one layer that round to the codes it has now; the layer's weights are put in the middle.

    The largest of a unit, from which its scale follows, and a unit of zeros stay as they are.
    """

    def __init__(self, module: nn.Module, path: str, format: WeightFormat, within: float) -> None:
        layer, self.format = module.get_submodule(path), format
        assert isinstance(layer, PLAIN_LAYERS)
        weight = layer.weight
        self.codes, scale = weight_codes(weight, format)
        self.step = spread_scale(scale, tuple(weight.shape), format.group_size).expand_as(weight)
        self.middle = self.codes * self.step
        pinned = (self.codes.abs() == format.top) | (self.codes.flatten(1) == 0).all(1).view(
            -1, *[1] * (weight.dim() - 1)
        )
        self.room = torch.where(pinned, 0.0, within * self.step)
        weight.data.copy_(self.middle)
        self.bias = None if layer.bias is None else layer.bias.detach().clone()

    def confine(self, weight: Tensor, bias: Tensor | None) -> None:
        torch.maximum(torch.minimum(weight, self.middle + self.room), self.middle - self.room, out=weight)
        if bias is not None and self.bias is not None:
            bias.copy_(self.bias)

    def keep_codes(self, weight: Tensor) -> None:
        """A unit whose codes are others by now loses some of its room, until they are the old ones."""
        while True:
            _, scale = weight_codes(weight, self.format)
            step = spread_scale(scale, tuple(weight.shape), self.format.group_size).expand_as(weight)
            same = ((step / self.step - 1).abs() <= DRIFT).flatten(1).all(1)
            if self.format.granularity == "tensor":
                same = same.all().expand_as(same)
            if same.all():
                return
            off = ~same.view(-1, *[1] * (weight.dim() - 1))
            self.room = torch.where(off, SHRINK * self.room, self.room)
            self.room = torch.where(self.room < 1e-3 * self.step, 0.0, self.room)
            torch.maximum(torch.minimum(weight, self.middle + self.room), self.middle - self.room, out=weight)


class _Cells:
    """`Confine` of all layers; the codes are looked at every so often."""

    def __init__(self, cells: Mapping[str, _Cell]) -> None:
        self.cells, self.steps = cells, 0

    @torch.no_grad()
    def __call__(self, parameters: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for path, cell in self.cells.items():
            weight, bias = parameters[f"{path}.weight"][0], parameters.get(f"{path}.bias")
            cell.confine(weight, None if bias is None else bias[0])
        if self.steps % EVERY == 0:
            self.keep_codes({name: value[0] for name, value in parameters.items()})

    @torch.no_grad()
    def keep_codes(self, parameters: Mapping[str, Tensor]) -> None:
        for path, cell in self.cells.items():
            cell.keep_codes(parameters[f"{path}.weight"].data)
