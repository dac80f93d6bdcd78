"""What a model hands to its last layer, as a differentiable module: the features that another task starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable
from ...targets.twin.module import Twin

PRODUCTS = ("Gemm", "MatMul", "Conv", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulNBits")


class Features(nn.Module):
    """x float32 [n, *shape] -> float32 [n, features], what enters the last layer that has weights.

    Rounding passes gradients as the module's own does. A copy of it is one of a copy of the module.

    Args:
        module: a torch module, or the twin of a file.
        example: float32 [2, *shape].

    Raises:
        NotApplicable: no layer with weights is called, or what enters it is no tensor of a row per record.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.module = module
        self._path, self._step = _last(module, example)
        found = self(example)
        if found.dim() != 2 or len(found) != len(example) or not found.shape[1]:
            raise NotApplicable("what enters the model's last layer has no row for each record")
        self.width = int(found.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        if self._step >= 0:
            twin = next(one for one in self.module.modules() if isinstance(one, Twin))
            step = twin.steps[self._step]

            def seen(node: Any, *arguments: Any) -> Any:
                kept.append(next(one for one in arguments if isinstance(one, Tensor)))
                return step.function(node, *arguments)

            twin.steps[self._step] = replace(step, function=seen)
            try:
                self.module(x)
            finally:
                twin.steps[self._step] = step
        else:
            layer = self.module.get_submodule(self._path)
            handle = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
            try:
                self.module(x)
            finally:
                handle.remove()
        return torch.cat(kept).flatten(1).float() if self._step >= 0 else kept[-1].flatten(1).float()


def _last(module: nn.Module, example: Tensor) -> tuple[str, int]:
    """The path of the last layer with weights of its own that is called; of a twin without such, the step's place."""
    called: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: called.append(path) if inputs else None)
        for path, layer in module.named_modules()
        if path and _weighted(layer)
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    twin = next((one for one in module.modules() if isinstance(one, Twin)), None)
    products = [] if twin is None else [at for at, one in enumerate(twin.steps) if one.node.operator in PRODUCTS]
    if twin is not None and products and twin.steps[products[-1]].module is None:
        return "", products[-1]
    if not called:
        raise NotApplicable("the model calls no layer with weights, so that it has no features before it")
    return called[-1], -1


def _weighted(layer: nn.Module) -> bool:
    """Whether it holds numbers of two dimensions or more itself, and is no container of such layers."""
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    return any(value.dim() > 1 for value in own) and not isinstance(layer, Twin)
