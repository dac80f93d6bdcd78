"""Low-rank factorisation: a layer becomes two thinner ones, by singular value decomposition."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..targets.data import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.model import TorchTarget
from ..targets.seeds import derive, generator
from ..training.loop import Training, train
from .layers import called_layers, noise, replace_layers, working_copy
from .recipe import RECIPES, Recipe, fine_tuned

ENERGIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)  # what cross-validation chooses from


@RECIPES.register
class Factorize(Recipe):
    """Truncated SVD of linear and convolutional layers (Denton et al. 2014, arXiv:1404.0736).

    A linear layer [out, in] of rank r becomes in -> r -> out; a convolution, seen as [out, in * kernel], becomes a
    convolution to r channels and a 1 x 1 convolution to out channels. A layer is replaced only where that saves
    weights.
    """

    kind: Literal["factorize"] = "factorize"
    rank_choice: Literal["energy", "cross-validation"] = Field(
        "energy",
        description="energy: each layer's rank is the smallest that retains `energy`; cross-validation: so with the "
        "smallest energy of a grid (.5 to .99) that is accurate enough on the model's own training records",
    )
    energy: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of a layer's squared singular values that is kept; unused by cross-validation",
    )
    folds: int = Field(5, ge=2, le=20, description="of cross-validation")
    validation_records: int = Field(
        256, ge=20, description="training records, drawn by the seed, that are cut into folds"
    )
    tolerance: float = Field(
        0.01,
        ge=0,
        le=1,
        description="accuracy (share of records) below the best mean over folds that cross-validation accepts; one "
        "standard error of the best mean is accepted in any case",
    )
    fine_tune: Training | None = Field(
        None, description="training after factorisation, on the model's own training records. None: none"
    )

    @property
    def touches_records(self) -> bool:
        return self.rank_choice == "cross-validation" or self.fine_tune is not None

    @property
    def trains(self) -> bool:
        return self.fine_tune is not None

    @property
    def words(self) -> str:
        how = f"{100 * self.energy:g} % of the energy" if self.rank_choice == "energy" else "cross-validated rank"
        return f"low rank, {how}{fine_tuned(self.fine_tune)}"

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        example = noise(module, records, bounds, 2, seed)
        if self.rank_choice == "energy":
            factorized = truncate(module, example, self.energy)
        else:
            factorized = self._cross_validated(module, example, records, seed)
        if factorized is None:
            raise NotApplicable(
                "No layer has a rank low enough for two thinner layers to hold fewer weights; retain less energy."
            )
        if self.fine_tune is None:
            return factorized
        return train(factorized, records, self.fine_tune, seed=derive(seed, "fine-tune"))

    def _cross_validated(self, module: nn.Module, example: Tensor, records: Records, seed: int) -> nn.Module | None:
        """The smallest energy within the tolerance, or within one standard error, of the best mean accuracy over folds.

        An SVD is computed from the weights alone: there is nothing to refit on the other folds, and the records were
        trained on. What the folds measure is how far the mean would move with other records (the one-standard-error
        rule of Breiman et al. 1984), not the accuracy to expect on new ones.
        """
        order = torch.randperm(len(records), generator=generator(seed, "folds"))[: self.validation_records]
        held_out = records.take(order.to(records.y.device))
        choices = [found for energy in ENERGIES if (found := truncate(module, example, energy)) is not None]
        if not choices:
            return None
        means, errors = [], []
        for choice in choices:
            right = (TorchTarget(choice).logits(held_out.x).argmax(1) == held_out.y).double()
            per_fold = torch.stack([fold.mean() for fold in right.tensor_split(self.folds)])
            means.append(float(per_fold.mean()))
            errors.append(float(per_fold.std()) / self.folds**0.5)
        best = max(range(len(choices)), key=means.__getitem__)
        enough = means[best] - max(self.tolerance, errors[best])
        return next(choice for choice, mean in zip(choices, means, strict=True) if mean >= enough)


def truncate(module: nn.Module, example: Tensor, energy: float) -> nn.Module | None:
    """A copy in evaluation mode, its layers truncated to the share `energy` of their squared singular values.

    Args:
        example: float32 [n, *shape], on the module's device; finds the layers that are called.

    Returns:
        None when no layer gains by it.
    """
    truncated = working_copy(module)
    pairs: dict[nn.Module, nn.Module] = {}
    for layer in called_layers(truncated, example):
        pair = factors(layer, energy)
        if pair is not None:
            pairs[layer] = pair
    return replace_layers(truncated, pairs).eval() if pairs else None


def rank_for(singular_values: Tensor, energy: float) -> int:
    """The smallest rank, at least 1, whose squared singular values sum to `energy` of the total."""
    shares = singular_values.square().cumsum(0) / singular_values.square().sum().clamp_min(1e-30)
    return min(int((shares < energy - 1e-12).sum()) + 1, len(singular_values))


def factors(layer: nn.Linear | nn.Conv1d | nn.Conv2d, energy: float) -> nn.Sequential | None:
    """Two layers for one, in evaluation mode on its device; None where they would hold as many weights or more."""
    if not isinstance(layer, nn.Linear) and layer.groups != 1:
        return None
    matrix = layer.weight.detach().flatten(1)
    # On the CPU and in float64: the same ranks and factors wherever the model lives.
    left, values, right = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
    rank = rank_for(values, energy)
    out, inputs = matrix.shape
    if rank * (out + inputs) >= out * inputs:
        return None
    root = values[:rank].sqrt()
    first, second = root[:, None] * right[:rank], left[:, :rank] * root
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        pair: tuple[nn.Linear | nn.Conv1d | nn.Conv2d, nn.Linear | nn.Conv1d | nn.Conv2d] = (
            nn.Linear(inputs, rank, bias=False),
            nn.Linear(rank, out, bias=bias),
        )
    else:
        convolution = type(layer)
        narrow = convolution(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]  # a Conv1d's own one-tuple, or a Conv2d's pair
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
        )
        pair = (narrow, convolution(rank, out, 1, bias=bias))
    sequence = nn.Sequential(*pair).to(layer.weight.device, layer.weight.dtype)
    pair[0].weight.data.copy_(first.view(pair[0].weight.shape))
    pair[1].weight.data.copy_(second.view(pair[1].weight.shape))
    if layer.bias is not None and pair[1].bias is not None:
        pair[1].bias.data.copy_(layer.bias.detach())
    return sequence.eval()
