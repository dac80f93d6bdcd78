"""Weight sharing: weights take only a few values, found by k-means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..targets.data.records import Bounds, Records
from ..targets.seeds import derive
from ..training.lessons import Lesson, Work
from ..training.loop import Training
from .layers.edit import weights, working_copy
from .recipe import RECIPES, Promise, TrainingRecipe, fine_tuned

LLOYD_STEPS = 300  # at most; in one dimension Lloyd's algorithm stops long before


@RECIPES.register
class Share(TrainingRecipe):
    """k-means weight sharing (Han et al. 2016, Deep Compression, arXiv:1510.00149).

    A weight that is exactly zero (pruned) stays zero and belongs to no cluster. What sharing saves shows in the
    payload, where each tensor holds its code book and Huffman-coded indices (`payload`).
    """

    family: ClassVar[str] = "Weight sharing"
    keeps_activations: ClassVar[bool] = True
    kind: Literal["share"] = "share"
    clusters: int = Field(
        16,
        ge=2,
        le=256,
        description="values per code book at most, beside the zero of pruned weights; biases are not shared",
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="a code book for each layer's weights, or one for all layers"
    )
    fine_tune: Training | None = Field(
        None,
        description="training of the shared values (and of biases and norms) on the model's own training records; "
        "weights that share a value go on sharing it. None: none",
    )

    @property
    def touches_records(self) -> bool:
        return self.fine_tune is not None

    @property
    def trains(self) -> bool:
        return self.fine_tune is not None

    @property
    def promise(self) -> Promise:
        return "shapes"

    @property
    def phrase(self) -> str:
        each = "per layer" if self.scope == "layer" else "for all layers"
        return f"{self.clusters} shared values {each}{fine_tuned(self.fine_tune)}"

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        shared = working_copy(module)
        found = weights(shared, "weight sharing")
        books = [list(found)] if self.scope == "global" else [[name] for name in found]
        clusters: list[tuple[list[str], Tensor]] = []
        for names in books:
            values = _side_by_side([found[name].detach().unsqueeze(0) for name in names])[0]
            centroids, assignment = share_values(values, self.clusters)
            _put_back(centroids[assignment].unsqueeze(0), [found[name].data.unsqueeze(0) for name in names])
            clusters.append((names, assignment))
        if self.fine_tune is None:
            return shared

        def tie(parameters: Mapping[str, Tensor]) -> None:
            """Every weight takes its cluster's mean: the step of its shared value is the mean of its members' steps."""
            for names, assignment in clusters:
                members = [parameters[name] for name in names]
                _put_back(_cluster_means(_side_by_side(members), assignment), members)

        return (yield Lesson(shared, records, self.fine_tune, derive(seed, "fine-tune"), after_step=tie))


def share_values(values: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """k-means in one dimension by Lloyd's algorithm from linearly spaced centroids; deterministic.

    Works on the sorted values, where a cluster is an interval: means come from prefix sums in float64.

    Args:
        values: float32 [n].

    Returns:
        values of the clusters float32 [k + 1], the first of which is 0 for the weights that are exactly 0, and
        int64 [n]: which of them each weight takes. k <= clusters; no cluster is empty.
    """
    every = values.double().cpu().numpy()  # numpy: a step is a few tiny operations, which cost torch five times as much
    positions = np.flatnonzero(every)
    positions = positions[every[positions].argsort()]
    ordered, assignment = every[positions], np.zeros(len(values), np.int64)
    centroids = ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]
    if len(centroids) > clusters:
        centroids = np.linspace(ordered[0], ordered[-1], clusters)
        sums, edges = np.concatenate([[0.0], ordered.cumsum()]), np.zeros(clusters + 1, np.int64)
        edges[-1] = len(ordered)
        for _ in range(LLOYD_STEPS):
            inner = ordered.searchsorted((centroids[1:] + centroids[:-1]) / 2)
            if (inner == edges[1:-1]).all():
                break
            edges[1:-1] = inner
            ends, counts = sums[edges], edges[1:] - edges[:-1]
            np.divide(ends[1:] - ends[:-1], counts, out=centroids, where=counts > 0)
            centroids.sort()
        centroids = centroids[np.diff(edges) > 0]
    assignment[positions] = 1 + np.searchsorted((centroids[1:] + centroids[:-1]) / 2, ordered, side="right")
    table = torch.from_numpy(np.concatenate([[0.0], centroids])).to(values)
    return table, torch.from_numpy(assignment).to(values.device)


def _side_by_side(parameters: Sequence[Tensor]) -> Tensor:
    """float32 [k, n]: the weights of one code book, of parameters [k, *shape]."""
    return torch.cat([parameter.flatten(1) for parameter in parameters], 1)


def _put_back(values: Tensor, parameters: Sequence[Tensor]) -> None:
    """Writes values [k, n] into the parameters they came from, in place."""
    parts = values.split([parameter[0].numel() for parameter in parameters], 1)
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))


def _cluster_means(rows: Tensor, assignment: Tensor) -> Tensor:
    """[k, n]: each weight's cluster mean, for weights [k, n] and clusters int64 [n]; cluster 0 is zero."""
    exact = rows.double()
    counts = assignment.bincount()
    sums = exact.new_zeros(len(rows), len(counts)).index_add_(1, assignment, exact)
    means = sums / counts.clamp_min(1)
    means[:, 0] = 0
    return means[:, assignment].to(rows.dtype)
