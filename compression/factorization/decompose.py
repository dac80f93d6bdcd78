"""How one layer becomes two or three thinner ones of a chosen rank, and what each rank keeps and costs.

All in float64 on the CPU: the same ranks and factors wherever the model lives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d
Factorable = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding
Method = Literal["tucker", "spatial", "channel"]

HOOI_STEPS = 5  # of higher-order orthogonal iteration; it starts near its fixed point


class Decomposition(ABC):
    """A layer's ranks (one per mode that is cut, 1 up to `full`), what they cost, keep, and build.

    Attributes:
        full: the largest useful rank of each mode.
        dense: weights of the layer as it is (its bias not counted).
    """

    full: tuple[int, ...]
    dense: int

    @abstractmethod
    def cost(self, ranks: tuple[int, ...]) -> int:
        """Weights of the thinner layers."""

    @abstractmethod
    def energy(self, ranks: tuple[int, ...]) -> float:
        """Share of the layer's squared weights that is kept; of two modes a lower bound, which may be negative."""

    @abstractmethod
    def build(self, ranks: tuple[int, ...]) -> nn.Module:
        """The thinner layers, in evaluation mode on the layer's device."""

    def worthwhile(self, ranks: tuple[int, ...]) -> bool:
        return self.cost(ranks) < self.dense


def decomposition(layer: Factorable, method: Method) -> Decomposition:
    """How `layer`, not a grouped convolution, is factorised.

    Args:
        method: of convolutions. A 1 x 1 convolution is a matrix, and has a truncated SVD by any method; a Conv1d has
            one axis, so that `spatial` is `channel` for it.
    """
    if isinstance(layer, nn.Linear | nn.Embedding):
        return MatrixSvd(layer)
    if method == "tucker" and layer.weight[0, 0].numel() > 1:
        return Tucker2(layer)
    if method == "spatial" and isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1:
        return SpatialSvd(layer)
    return ChannelSvd(layer)


def float64(layer: Factorable) -> Tensor:
    return layer.weight.detach().double().cpu()


class TruncatedSvd(Decomposition):
    """A layer as a matrix, cut after its largest singular values (Eckart & Young 1936)."""

    def __init__(self, layer: Factorable, matrix: Tensor) -> None:
        self.layer, self.shape, self.dense = layer, matrix.shape, matrix.numel()
        self.left, self.values, self.right = torch.linalg.svd(matrix, full_matrices=False)
        self.full = (len(self.values),)
        self._kept = kept_energy(self.values.square())

    def cost(self, ranks: tuple[int, ...]) -> int:
        return ranks[0] * sum(self.shape)

    def energy(self, ranks: tuple[int, ...]) -> float:
        return self._kept[ranks[0] - 1]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """float64 [rows, rank] and [rank, columns], of equal norms, whose product comes closest to the matrix."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


class MatrixSvd(TruncatedSvd):
    """Linear [out, in] as in -> rank -> out; Embedding [words, features] as words -> rank -> features."""

    layer: nn.Linear | nn.Embedding

    def __init__(self, layer: nn.Linear | nn.Embedding) -> None:
        super().__init__(layer, float64(layer))

    def build(self, ranks: tuple[int, ...]) -> nn.Sequential:
        left, right = self.factors(ranks[0])
        if isinstance(self.layer, nn.Embedding):
            thin = nn.Embedding(self.layer.num_embeddings, ranks[0], self.layer.padding_idx)
            return sequence(
                self.layer, (thin, left), (nn.Linear(ranks[0], self.layer.embedding_dim, bias=False), right.T)
            )
        narrow = nn.Linear(self.layer.in_features, ranks[0], bias=False)
        wide = nn.Linear(ranks[0], self.layer.out_features, bias=self.layer.bias is not None)
        return sequence(self.layer, (narrow, right), (wide, left))


class ChannelSvd(TruncatedSvd):
    """A convolution, seen as [out, in * kernel], as a convolution to `rank` channels and a 1 x 1 convolution.

    Denton et al. 2014 (arXiv:1404.0736); Zhang et al. 2016 (arXiv:1505.06798).
    """

    layer: Convolution

    def __init__(self, layer: Convolution) -> None:
        super().__init__(layer, float64(layer).flatten(1))

    def build(self, ranks: tuple[int, ...]) -> nn.Sequential:
        left, right = self.factors(ranks[0])
        narrow = like(self.layer, self.layer.in_channels, ranks[0])
        return sequence(self.layer, (narrow, right), (pointwise(self.layer, ranks[0], last=True), left))


class SpatialSvd(TruncatedSvd):
    """A k x k convolution as k x 1 to `rank` channels, then 1 x k (Jaderberg et al. 2014, arXiv:1405.3866)."""

    layer: nn.Conv2d

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer, float64(layer).permute(1, 2, 0, 3).flatten(2).flatten(0, 1))  # [in * high, out * wide]

    def build(self, ranks: tuple[int, ...]) -> nn.Sequential:
        left, right = self.factors(ranks[0])
        layer, (high, wide) = self.layer, self.layer.kernel_size
        vertical = self._axis(layer.in_channels, ranks[0], 0, bias=False)
        horizontal = self._axis(ranks[0], layer.out_channels, 1, bias=layer.bias is not None)
        return sequence(
            layer,
            (vertical, left.view(layer.in_channels, high, ranks[0]).permute(2, 0, 1)),
            (horizontal, right.view(ranks[0], layer.out_channels, wide).transpose(0, 1)),
        )

    def _axis(self, inputs: int, outputs: int, axis: int, bias: bool) -> nn.Conv2d:
        """A convolution along one axis with the layer's own settings there."""

        def only(value: tuple[int, ...], otherwise: int) -> tuple[int, int]:
            return (value[0], otherwise) if axis == 0 else (otherwise, value[1])

        layer = self.layer
        padding = layer.padding if isinstance(layer.padding, str) else only(layer.padding, 0)
        return nn.Conv2d(
            inputs,
            outputs,
            only(layer.kernel_size, 1),
            only(layer.stride, 1),
            padding,
            only(layer.dilation, 1),
            bias=bias,
            padding_mode=layer.padding_mode,
        )


class Tucker2(Decomposition):
    """A convolution as 1 x 1 to r_in channels, a core of its kernel size to r_out, and 1 x 1.

    Kim et al. 2016 (arXiv:1511.06530), with ranks chosen by energy where the paper has variational Bayes.
    Ranks are (r_out, r_in). A mode of full rank stays as it is: its 1 x 1 layer is left out. Energies are those of the
    truncated higher-order SVD, whose error is at most the sum over modes of what each cuts off (De Lathauwer et al.
    2000); orthogonal iterations then only gain.
    """

    def __init__(self, layer: Convolution) -> None:
        self.layer, self.weight = layer, float64(layer)
        self.out, self.inputs, self.taps = *self.weight.shape[:2], self.weight[0, 0].numel()
        self.dense = self.weight.numel()
        values = [torch.linalg.svdvals(unfold(self.weight, mode)) for mode in (0, 1)]
        self.full = (len(values[0]), len(values[1]))
        self._kept = [kept_energy(mode.square()) for mode in values]

    def _cut(self, ranks: tuple[int, ...]) -> tuple[bool, bool]:
        return ranks[0] < self.out, ranks[1] < self.inputs

    def cost(self, ranks: tuple[int, ...]) -> int:
        after, before = self._cut(ranks)
        core = ranks[0] * ranks[1] * self.taps
        return core + after * ranks[0] * self.out + before * ranks[1] * self.inputs

    def energy(self, ranks: tuple[int, ...]) -> float:
        return 1 - sum(1 - kept[rank - 1] for kept, rank in zip(self._kept, ranks, strict=True))

    def build(self, ranks: tuple[int, ...]) -> nn.Sequential:
        outer, inner = self._bases(ranks)
        core = torch.einsum("oi...,or,is->rs...", self.weight, outer, inner)
        after, before = self._cut(ranks)
        pairs: list[tuple[nn.Module, Tensor]] = []
        if before:
            pairs.append((pointwise(self.layer, ranks[1], last=False), inner.T))
        bias = self.layer.bias is not None and not after
        pairs.append((like(self.layer, ranks[1], ranks[0], bias=bias), core))
        if after:
            pairs.append((pointwise(self.layer, ranks[0], last=True), outer))
        return sequence(self.layer, *pairs)

    def _bases(self, ranks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Orthonormal float64 [out, r_out] and [in, r_in]; the identity where a mode is not cut."""
        after, before = self._cut(ranks)
        outer, inner = torch.eye(self.out).double(), torch.eye(self.inputs).double()
        if before:
            inner = leading(self.weight, 1, ranks[1])
        if after:
            outer = leading(self.weight, 0, ranks[0])
        if before and after:
            for _ in range(HOOI_STEPS):
                outer = leading(torch.einsum("oi...,is->os...", self.weight, inner), 0, ranks[0])
                inner = leading(torch.einsum("oi...,or->ri...", self.weight, outer), 1, ranks[1])
        return outer, inner


def kept_energy(squares: Tensor) -> list[float]:
    """The share of the total that the first 1, 2, ... of `squares` (largest first) hold; 1 where the total is 0."""
    total = float(squares.sum())
    if total == 0:
        return [1.0] * len(squares)
    return [min(1.0, share) for share in (squares.cumsum(0) / total).tolist()]


def unfold(weight: Tensor, mode: int) -> Tensor:
    """The weight as a matrix whose rows are its dimension `mode` (0: out, 1: in)."""
    return weight.transpose(0, mode).flatten(1)


def leading(weight: Tensor, mode: int, rank: int) -> Tensor:
    """The first `rank` left singular vectors of an unfolding, [size of that mode, rank]."""
    left: Tensor = torch.linalg.svd(unfold(weight, mode), full_matrices=False).U
    return left[:, :rank]


def like(layer: Convolution, inputs: int, outputs: int, bias: bool = False) -> Convolution:
    """A convolution with the layer's own kernel size, stride, padding and dilation."""
    same = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    geometry: dict[str, Any] = {name: getattr(layer, name) for name in same}
    return type(layer)(inputs, outputs, bias=bias, **geometry)


def pointwise(layer: Convolution, rank: int, *, last: bool) -> Convolution:
    """The 1 x 1 convolution from the layer's inputs to `rank` channels, or (last) from there to its outputs."""
    if last:
        return type(layer)(rank, layer.out_channels, 1, bias=layer.bias is not None)
    return type(layer)(layer.in_channels, rank, 1, bias=False)


def sequence(layer: Factorable, *parts: tuple[nn.Module, Tensor]) -> nn.Sequential:
    """The parts with their weights (any shape of as many values), the last with the layer's bias, on its device."""
    layers = nn.Sequential(*(part for part, _ in parts)).to(layer.weight.device, layer.weight.dtype)
    for part, values in parts:
        weight = part.get_parameter("weight")
        weight.data.copy_(values.reshape(weight.shape))
    bias = getattr(layer, "bias", None)
    if bias is not None:
        layers[-1].get_parameter("bias").data.copy_(bias.detach())
    return layers.eval()
