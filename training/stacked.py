"""A stack of models of one structure, trained side by side as one batched computation: as one wide network where they
are convolutional (`wide`), else by torch.func over vmap.

Small models leave a CPU idle between operations; a stack amortises the overhead. Each model's result is that of
training it alone, up to float rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..targets.plain import tie
from .wide import answers, wide

SMALL = 20_000  # parameters; above it a stack buys nothing on a CPU (measured)
GROUP = 16  # models trained side by side when they are small
STACKABLE = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


def group_size(module: nn.Module, batch_size: int, device: torch.device) -> int:
    """How many models to train side by side. A fixed rule (never a timing), because it is part of the cache key.

    Recurrent layers, torch's attention and embeddings are trained one model at a time; so are graphs that torch.fx
    traced, every copy of which is a class of its own.
    """
    stackable = all(isinstance(layer, STACKABLE) for layer in module.modules() if own_state(layer))
    stackable &= not isinstance(module, torch.fx.GraphModule)
    random = any(draws(layer) for layer in module.modules())
    small = sum(parameter.numel() for parameter in module.parameters()) <= SMALL and batch_size <= 64
    return GROUP if stackable and not random and (small or device.type == "cuda") else 1


def draws(layer: nn.Module) -> bool:
    """Whether the layer draws random numbers in training, which differ between a stack and models trained alone."""
    share = getattr(layer, "dropout", 0.0)  # attention's; a Transformer layer's is a layer of its own
    return isinstance(layer, RANDOM) or (isinstance(share, float) and share > 0)


def own_state(layer: nn.Module) -> bool:
    """Whether the layer itself (not its children) holds parameters or buffers."""
    return any(True for _ in layer.parameters(recurse=False)) or any(True for _ in layer.buffers(recurse=False))


class Stack:
    """Modules of one structure as one: call it on x [k, b, *shape] for logits [k, b, classes].

    A single module is called directly (no vmap), so training one is an ordinary loop.

    Args:
        alike: sums of a model are added up in one order whichever others stand beside it.
    """

    def __init__(self, modules: Sequence[nn.Module], *, alike: bool = False) -> None:
        self.modules, self._alike = list(modules), alike
        for module in self.modules:
            module.train()
        self._alone = len(self.modules) == 1
        if not self._alone:
            self._parameters, self._buffers = stack_module_state(self.modules)
            self._pattern = copy.deepcopy(self.modules[0]).to("meta").train()
            tie(self._pattern, self.modules[0])  # moving to "meta" makes new parameters
            self._wide: nn.Module | None = None
            self._tried = False

    def __call__(self, x: Tensor) -> Tensor:
        if self._alone:
            logits: Tensor = self.modules[0](x[0])
            return logits.unsqueeze(0)
        if not self._tried:
            self._tried, self._wide = True, wide(self._pattern, self._parameters, self._buffers, x)
        if self._wide is not None:
            return answers(self._wide, x, alike=self._alike)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Tensor) -> Tensor:
            output: Tensor = functional_call(self._pattern, (parameters, buffers), (batch,))
            return output

        stacked: Tensor = torch.vmap(one, randomness="different")(self._parameters, self._buffers, x)
        return stacked

    def parameters(self) -> list[Tensor]:
        """What the optimiser steps on; frozen parameters are left out."""
        if self._alone:
            return [parameter for parameter in self.modules[0].parameters() if parameter.requires_grad]
        return [parameter for parameter in self._parameters.values() if parameter.requires_grad]

    def named_parameters(self) -> dict[str, Tensor]:
        """By name, each with a leading dimension of models: float32 [k, *shape]. Views: changed in place."""
        if self._alone:
            return {name: parameter.data.unsqueeze(0) for name, parameter in self.modules[0].named_parameters()}
        return {name: parameter.data for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def write_back(self) -> None:
        """Copies the trained state into the modules."""
        if self._alone:
            return
        for position, module in enumerate(self.modules):
            state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for name, stacked in {**self._parameters, **self._buffers}.items():
                state[name].copy_(stacked[position])
