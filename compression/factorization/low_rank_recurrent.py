"""LSTM and GRU whose matrices are products of thin ones.

What it saves is storage: a runtime multiplies the factors once, when it loads the file, and then computes as before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.edit import rebuildable
from ..layers.recurrent import SETTINGS, Kind, Recurrent, matrix_names, settings_of
from .decompose import Decomposition, kept_energy


@rebuildable("kind", *SETTINGS, "ranks")
class LowRankRecurrent(Recurrent):
    """An nn.LSTM or nn.GRU of low rank, called as they are: (output, last states).

    Args:
        kind, input_size ... bidirectional: of the layer in torch.
        ranks: of each matrix in torch's order (`matrix_names`); 0: the matrix is whole.
    """

    def __init__(
        self,
        kind: Kind,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        ranks: tuple[int, ...],
    ) -> None:
        super().__init__(kind, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        self.ranks = ranks
        self.matrices = nn.ModuleDict()  # of layers that are never called: so that recipes find their weights
        for (name, (rows, inputs)), rank in zip(self.shapes(), ranks, strict=True):
            self.matrices[name] = (
                nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, rows, bias=False))
                if rank
                else nn.Linear(inputs, rows, bias=False)
            )
            if bias:
                self.register_parameter(name.replace("weight", "bias"), nn.Parameter(torch.empty(rows)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Biases as torch draws them; the matrices are layers of their own."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def whole(self, name: str) -> Tensor:
        part = self.matrices[name]
        if isinstance(part, nn.Sequential):
            return part[1].get_parameter("weight") @ part[0].get_parameter("weight")
        return part.get_parameter("weight")

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.input_size}, {self.hidden_size}, ranks={self.ranks}"


class RecurrentSvd(Decomposition):
    """Every matrix of an LSTM or GRU cut by its own truncated SVD; one that would not get smaller stays whole."""

    def __init__(self, layer: nn.LSTM | nn.GRU) -> None:
        self.layer = layer
        self.names = matrix_names(layer.num_layers, layer.bidirectional)
        weights = [layer.get_parameter(name).detach().double().cpu() for name in self.names]
        self.parts = [torch.linalg.svd(weight, full_matrices=False) for weight in weights]
        self.shapes = [weight.shape for weight in weights]
        self.full = tuple(min(shape) for shape in self.shapes)
        self.dense = sum(weight.numel() for weight in weights)
        self._squares = [float(weight.square().sum()) for weight in weights]
        self._kept = [kept_energy(values.square()) for _, values, _ in self.parts]

    def _thin(self, ranks: tuple[int, ...]) -> list[bool]:
        return [rank * sum(shape) < shape.numel() for rank, shape in zip(ranks, self.shapes, strict=True)]

    def cost(self, ranks: tuple[int, ...]) -> int:
        return sum(min(rank * sum(shape), shape.numel()) for rank, shape in zip(ranks, self.shapes, strict=True))

    def energy(self, ranks: tuple[int, ...]) -> float:
        kept = [
            square * (shares[rank - 1] if thin else 1.0)
            for square, shares, rank, thin in zip(self._squares, self._kept, ranks, self._thin(ranks), strict=True)
        ]
        return sum(kept) / max(sum(self._squares), 1e-300)

    def build(self, ranks: tuple[int, ...]) -> LowRankRecurrent:
        layer = self.layer
        kept = tuple(rank if thin else 0 for rank, thin in zip(ranks, self._thin(ranks), strict=True))
        built = LowRankRecurrent(**settings_of(layer), ranks=kept).to(next(layer.parameters()))
        for name, rank, (left, values, right) in zip(self.names, kept, self.parts, strict=True):
            part = built.matrices[name]
            if isinstance(part, nn.Sequential):
                root = values[:rank].sqrt()
                part[0].get_parameter("weight").data.copy_(root[:, None] * right[:rank])
                part[1].get_parameter("weight").data.copy_(left[:, :rank] * root)
            else:
                part.get_parameter("weight").data.copy_(layer.get_parameter(name).detach())
            if layer.bias:
                bias = name.replace("weight", "bias")
                built.get_parameter(bias).data.copy_(layer.get_parameter(bias).detach())
        return built.eval()
