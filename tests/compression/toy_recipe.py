"""A recipe of another package, whole, in one file: linear layers whose weights are -1, 0 or 1 times a scale per row.

The package names the class in its pyproject.toml, under [project.entry-points."crushproof.recipes"].
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.compression.layers.edit import rebuildable, replace_layers, working_copy
from crushproof.compression.recipe import Recipe
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import NotApplicable


@rebuildable("in_features", "out_features")
class ThreeValued(nn.Module):
    """A linear layer; buffers `codes` int8 [out, in] in -1 .. 1, `scale` float32 [out, 1], `bias` float32 [out]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features, 1))
        self.register_buffer("bias", torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes * self.scale, self.bias)


class Three(Recipe):
    """Ternary weight networks (Li & Liu 2016, arXiv:1605.04711) without training."""

    kind: Literal["three-values"] = "three-values"
    threshold: float = Field(0.7, gt=0, description="weights below so many times the mean magnitude become 0")

    is_last: ClassVar[bool] = True
    touches_records: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    phrase: ClassVar[str] = "weights of three values"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        copy = working_copy(module)
        linear = [layer for layer in copy.modules() if type(layer) is nn.Linear and layer.bias is not None]
        if not linear:
            raise NotApplicable("The model has no linear layer with a bias.")
        stand_ins = {layer: self._rounded(layer) for layer in linear}
        return replace_layers(copy, stand_ins)

    def _rounded(self, layer: nn.Linear) -> ThreeValued:
        three, weight = ThreeValued(layer.in_features, layer.out_features), layer.weight.detach()
        kept = weight.abs() > self.threshold * weight.abs().mean(1, keepdim=True)
        three.codes, three.bias = (weight.sign() * kept).to(torch.int8), layer.bias.detach()
        three.scale = (weight.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        return three.eval()
