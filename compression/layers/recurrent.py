"""What stands in for an LSTM or GRU and makes its matrices in a way of its own, then computes as torch does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...targets.errors import NotApplicable

Kind = Literal["LSTM", "GRU"]
Last = Tensor | tuple[Tensor, Tensor]
"""Last states: h of a GRU, (h, c) of an LSTM, each float32 [layers * directions, n, hidden]."""

State = Last | None
"""Initial states; None: zeros."""

GATES: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # ONNX's order, as positions in torch's
SETTINGS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


def settings_of(layer: nn.LSTM | nn.GRU) -> dict[str, Any]:
    """The arguments `kind` and `SETTINGS` of a stand-in for the layer."""
    return {
        "kind": "LSTM" if isinstance(layer, nn.LSTM) else "GRU",
        **{name: getattr(layer, name) for name in SETTINGS},
    }


class Recurrent(nn.Module):
    """Called as an nn.LSTM or nn.GRU is: (output, last states). A subclass holds the matrices and biases.

    Biases are parameters or buffers float32 [gates * hidden] under torch's names (`bias_ih_l0` ...).

    Args:
        kind, input_size ... bidirectional: of the layer in torch. There is no `proj_size`.
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
    ) -> None:
        super().__init__()
        self.kind, self.input_size, self.hidden_size, self.num_layers = kind, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional

    @abstractmethod
    def whole(self, name: str) -> Tensor:
        """float32 [gates * hidden, in], of the matrix torch calls `name`."""

    @property
    def weight_bits(self) -> int:
        """Of a weight, as a runtime multiplies it."""
        return 32

    def shapes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and shape of every weight matrix, in the order torch's functions take them."""
        rows, directions = len(GATES[self.kind]) * self.hidden_size, 2 if self.bidirectional else 1
        for name in matrix_names(self.num_layers, self.bidirectional):
            first = self.input_size if name.startswith("weight_ih_l0") else self.hidden_size * directions
            yield name, (rows, self.hidden_size if "_hh_" in name else first)

    def flat_weights(self) -> list[Tensor]:
        """Whole matrices and biases in the order torch's functions take them."""
        flat: list[Tensor] = []
        names = matrix_names(self.num_layers, self.bidirectional)
        for pair in zip(names[::2], names[1::2], strict=True):
            flat += [self.whole(name) for name in pair]
            flat += [getattr(self, name.replace("weight", "bias")) for name in pair] if self.bias else []
        return flat

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, Last]:
        if not isinstance(x, Tensor):
            raise NotApplicable(
                f"The model hands packed sequences to its {self.kind}, whose compressed weights work with plain "
                "tensors only; pad the sequences instead."
            )
        flat = self.flat_weights()
        return self.run(x, self.states(x, state), flat)

    def run(self, x: Tensor, states: list[Tensor], flat: list[Tensor]) -> tuple[Tensor, Last]:
        settings = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, self.batch_first)
        # cuDNN's recurrent kernels want all weights in one piece, and have no gradient in evaluation mode.
        with torch.backends.cudnn.flags(enabled=False):
            if self.kind == "LSTM":
                output, h, c = torch.lstm(x, states, flat, *settings)
                return output, (h, c)
            return torch.gru(x, states[0], flat, *settings)

    def states(self, x: Tensor, state: State) -> list[Tensor]:
        """[h] of a GRU, [h, c] of an LSTM: as given, or zeros for the records in x."""
        if isinstance(state, Tensor):
            return [state]
        if state is not None:
            return list(state)
        count = self.num_layers * (2 if self.bidirectional else 1)
        zeros = x.new_zeros(count, x.shape[0 if self.batch_first else 1], self.hidden_size)
        return [zeros, zeros] if self.kind == "LSTM" else [zeros]

    def operations(self, inputs: tuple[Tensor, ...], output: Any) -> tuple[int, int, int]:
        """Each step multiplies every weight of the whole matrices once; activations are float32."""
        steps = inputs[0].shape[1 if self.batch_first else 0]
        return steps * sum(rows * columns for _, (rows, columns) in self.shapes()), self.weight_bits, 32


def matrix_names(num_layers: int, bidirectional: bool) -> list[str]:
    """The weight matrices as torch names and orders them."""
    return [
        f"weight_{kind}_l{layer}{direction}"
        for layer in range(num_layers)
        for direction in (("", "_reverse") if bidirectional else ("",))
        for kind in ("ih", "hh")
    ]
