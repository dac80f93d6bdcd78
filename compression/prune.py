"""Pruning by magnitude: single weights set to zero, or whole channels removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..targets.data import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.seeds import derive
from ..training.loop import Training, train
from ..training.stacked import Stack
from .layers import called_layers, noise, weights, working_copy
from .recipe import RECIPES, Recipe, fine_tuned


@RECIPES.register
class Prune(Recipe):
    """Magnitude pruning of single weights (Han et al. 2015, arXiv:1506.02626) or of whole channels.

    Channels follow Li et al. 2017 (arXiv:1608.08710). The result is a plain module: pruned weights are zeros, pruned
    channels are gone.
    """

    kind: Literal["prune"] = "prune"
    sparsity: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="weights: share of all weights of linear and convolutional layers (biases and norms do not count) "
        "that become zero, smallest magnitudes first, over the whole model; channels: share of each layer's channels "
        "that is removed",
    )
    structure: Literal["weights", "channels"] = Field(
        "weights", description="channels thin the layers themselves; the layer that gives the logits keeps its width"
    )
    fine_tune: Training | None = Field(
        None, description="training after pruning, on the model's own training records; zeros stay zero. None: none"
    )

    @property
    def touches_records(self) -> bool:
        return self.fine_tune is not None

    @property
    def trains(self) -> bool:
        return self.fine_tune is not None

    @property
    def words(self) -> str:
        what = "channels" if self.structure == "channels" else "weights"
        return f"{100 * self.sparsity:g} % of {what} pruned{fine_tuned(self.fine_tune)}"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        masks: dict[str, Tensor] = {}
        if self.structure == "channels":
            pruned = thin(module, noise(module, records, bounds, 2, seed), 1 - self.sparsity)
        else:
            pruned = working_copy(module)
            masks = magnitude_masks(weights(pruned, "pruning"), self.sparsity)
            for name, mask in masks.items():
                pruned.get_parameter(name).data.mul_(mask)
        if self.fine_tune is None:
            return pruned

        def keep_zeros(stack: Stack) -> None:
            parameters = stack.named_parameters()
            for name, mask in masks.items():
                parameters[name].mul_(mask)

        return train(pruned, records, self.fine_tune, seed=derive(seed, "fine-tune"), after_step=keep_zeros)


def magnitude_masks(parameters: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """One float32 0/1 mask per parameter that keeps the largest magnitudes over all of them together.

    Exactly round(sparsity * weights) are dropped; among equal magnitudes the earlier ones go first.
    """
    magnitudes = torch.cat([parameter.detach().abs().flatten() for parameter in parameters.values()])
    order = magnitudes.argsort(stable=True)
    keep = torch.ones_like(magnitudes)
    keep[order[: round(sparsity * len(order))]] = 0
    parts = torch.split(keep, [parameter.numel() for parameter in parameters.values()])
    return {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}


def thin(module: nn.Module, example: Tensor, width: float) -> nn.Module:
    """A copy in evaluation mode with the share `width` of every layer's channels, those of the largest L2 norms.

    Channels that must go together (residual adds, batch norm, the next layer's inputs) are found by torch-pruning
    (Fang et al. 2023, DepGraph, arXiv:2301.12900).

    Args:
        example: float32 [n, *shape], on the module's device.

    Raises:
        NotApplicable: torch-pruning cannot trace or thin the module without changing its logits' shape.
    """
    import torch_pruning

    thinned = working_copy(module)
    layers = called_layers(thinned, example)
    if len(layers) < 2:
        raise NotApplicable(
            "Channels can be removed only between two linear or convolutional layers; the model has one."
        )
    with torch.no_grad():
        shape = thinned(example).shape
    output = [layer for layer in layers if layer.weight.shape[0] == shape[-1]][-1:]
    before = sum(parameter.numel() for parameter in thinned.parameters())
    try:
        torch_pruning.pruner.BasePruner(
            thinned,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 - width,
            ignored_layers=output,
        ).step()
        with torch.no_grad():
            same = thinned(example).shape == shape
    except (MemoryError, ImportError, OSError):
        raise  # not an answer about the model: the cell fails and is tried again
    except Exception as error:  # third-party code on an unknown module: whatever stopped it, the audit goes on
        raise NotApplicable(f"torch-pruning cannot remove channels from this model: {error}") from error
    if not same:
        raise NotApplicable("Removing channels would change the number of logits: the output layer was not recognised.")
    if sum(parameter.numel() for parameter in thinned.parameters()) == before:
        raise NotApplicable(f"No layer is wide enough to lose a share of {1 - width:g} of its channels.")
    return thinned.eval()
