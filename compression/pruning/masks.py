"""Masks of single weights: which stay (1) and which become zero (0)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable
from ..layers.edit import TRANSPOSED


def smallest(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Drops the smallest scores over all tensors together: exactly round(sparsity * weights) of them.

    Among equal scores the earlier ones go first.

    Args:
        scores: by name, on the CPU.

    Returns:
        0/1 masks float32 of the scores' shapes.
    """
    everything = torch.cat([score.flatten() for score in scores.values()])
    dropped, keep = round(sparsity * len(everything)), torch.ones(len(everything))
    if dropped:  # what is no number counts as the largest, as for sort
        everything = everything.nan_to_num(torch.inf, torch.inf, -torch.inf)
        edge = everything.kthvalue(dropped).values
        keep[everything < edge] = 0
        equal = (everything == edge).nonzero().flatten()
        keep[equal[: dropped - int((keep == 0).sum())]] = 0
    parts = torch.split(keep, [score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def smallest_per_layer(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """As `smallest`, within each tensor: exactly round(sparsity * its weights) go."""
    return {name: smallest({name: score}, sparsity)[name] for name, score in scores.items()}


def smallest_in_groups(score: Tensor, group_size: int, dropped: int) -> Tensor:
    """Drops the `dropped` smallest of every `group_size` consecutive scores along the last dimension.

    Args:
        score: [..., a multiple of group_size].

    Returns:
        A 0/1 mask float32 of the same shape. Among equal scores the earlier ones go first.
    """
    groups = score.reshape(-1, group_size)
    order = groups.argsort(dim=1, stable=True)
    return torch.ones(groups.shape).scatter(1, order[:, :dropped], 0.0).view(score.shape)


def n_of_m(module: nn.Module, scores: Mapping[str, Tensor], group_size: int, dropped: int) -> dict[str, Tensor]:
    """Drops `dropped` of every `group_size` weights that are neighbours along a layer's inputs (N:M sparsity).

    What sparse tensor cores take (2:4: Mishra et al. 2021, arXiv:2104.08378): in a linear or recurrent layer groups
    lie along a row, in a convolution along the input channels of one kernel position. Layers whose inputs are not a
    multiple of `group_size`, and embeddings, which multiply nothing, are left out.

    Raises:
        NotApplicable: no layer qualifies.
    """
    masks: dict[str, Tensor] = {}
    for name, score in scores.items():
        dimension = input_dimension(module, name)
        if dimension is not None and score.shape[dimension] % group_size == 0:
            grouped = smallest_in_groups(score.movedim(dimension, -1), group_size, dropped)
            masks[name] = grouped.movedim(-1, dimension).contiguous()
    if not masks:
        raise NotApplicable(
            f"{group_size - dropped}:{group_size} pruning needs a layer whose inputs are a multiple of {group_size}, "
            "and the model has none."
        )
    return masks


def input_dimension(module: nn.Module, name: str) -> int | None:
    """The dimension of the weight `name` that runs over its layer's inputs; None for an embedding, which has none."""
    layer = module.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return None
    return 0 if isinstance(layer, TRANSPOSED) else 1
