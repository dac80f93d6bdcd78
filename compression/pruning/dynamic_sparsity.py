"""Dynamic sparsity: each record keeps its own largest activations, and the others are not multiplied.

It saves operations, which the footprint counts; it saves time only where a kernel skips zeros, which no ordinary
runtime does. So it is never claimed as speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.seeds import derive
from ...training.lessons import Work, fine_tuning
from ...training.loop import Training
from ..layers.attention import unfold_attention
from ..layers.edit import called_layers, noise, rebuildable, replace_layers, working_copy
from ..recipe import RECIPES, Promise, TrainingRecipe, fine_tuned

Per = Literal["record", "position"]


@RECIPES.register
class DynamicSparsity(TrainingRecipe):
    """Only the largest activations of each record go into a layer (k-winners-take-all; Ahmad & Scheinkman 2019).

    Which ones is decided anew for every input (arXiv:1903.11257 keeps the largest values, this the largest magnitudes).
    Weights stay as they are.
    """

    counts_activations: ClassVar[bool] = True
    kind: Literal["dynamic-sparsity"] = "dynamic-sparsity"
    keep: float = Field(
        0.5, gt=0, lt=1, description="share of the activations that go into a layer; at least one, exactly so many"
    )
    per: Per = Field(
        "record",
        description="record: the largest of all of a record's activations; position: the largest channels of each "
        "pixel, or features of each token",
    )
    layers: tuple[str, ...] = Field(
        (),
        description="dotted names of the linear and convolutional layers concerned; empty: all but the first, whose "
        "input is the record itself",
    )
    fine_tune: Training | None = Field(
        None, description="training of the sparse model on the model's own training records. None: none"
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
        return f"largest {100 * self.keep:g} % of activations per {self.per}{fine_tuned(self.fine_tune)}"

    def work(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Work:
        opened = unfold_attention(working_copy(module))
        widths = input_widths(opened, noise(module, records, bounds, 2, seed), self.per)
        names = {layer: name for name, layer in opened.named_modules()}
        known = [names[layer] for layer in widths]
        for name in self.layers:
            if name not in known:
                raise NotApplicable(
                    f"The model has no layer {name!r} whose input could be made sparse; it has "
                    f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}."
                )
        chosen = [layer for layer in widths if (names[layer] in self.layers if self.layers else widths[layer].inner)]
        stand_ins: dict[nn.Module, nn.Module] = {}
        for layer in chosen:
            width = widths[layer].width
            kept = max(1, round(self.keep * width))
            if kept < width:
                stand_ins[layer] = SparseInput(kept, width, widths[layer].dimension, layer)
        if not stand_ins:
            raise NotApplicable(
                f"No linear or convolutional layer {'named' if self.layers else 'behind the first'} has so many inputs "
                "that some could be left out."
            )
        sparse = replace_layers(opened, stand_ins).eval()
        if self.fine_tune is None:
            return sparse
        return (yield fine_tuning(sparse, records, self.fine_tune, bounds, derive(seed, "fine-tune")))


@rebuildable("kept", "width", "dimension")
class SparseInput(nn.Module):
    """A layer whose input keeps its `kept` largest magnitudes; the others are zero. Among equals the first are kept.

    Args:
        kept: activations that are kept, 1 to `width`.
        width: activations there are to choose from.
        dimension: along which the largest are taken (1: a pixel's channels, -1: features); None: of the whole record.
        layer: gets the sparse input.
    """

    def __init__(self, kept: int, width: int, dimension: int | None, layer: nn.Module | None = None) -> None:
        super().__init__()
        if not 1 <= kept <= width:
            raise ValueError(f"{kept} of {width} activations cannot be kept")
        self.kept, self.width, self.dimension = kept, width, dimension
        self.layer: nn.Module = nn.Identity() if layer is None else layer

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1) if self.dimension is None else x.transpose(self.dimension, -1)
        sparse = torch.where(largest(rows.detach().abs(), self.kept), rows, torch.zeros_like(rows))
        sparse = sparse.view_as(x) if self.dimension is None else sparse.transpose(self.dimension, -1)
        output: Tensor = self.layer(sparse)
        return output

    def operations(self, inputs: tuple[Tensor, ...], output: Tensor) -> tuple[int, int, int]:
        """The layer's own multiply-accumulates, times the share of activations that are not zero."""
        counted: Callable[..., tuple[int, int, int]] | None = getattr(self.layer, "operations", None)
        if counted is not None:
            macs, weight_bits, activation_bits = counted(inputs, output)
        else:
            macs = output.numel() * self.layer.get_parameter("weight")[0].numel()
            weight_bits = activation_bits = 32
        return round(macs * self.kept / self.width), weight_bits, activation_bits

    def extra_repr(self) -> str:
        return f"kept={self.kept} of {self.width}, dimension={self.dimension}"


def largest(magnitudes: Tensor, kept: int) -> Tensor:
    """bool, like `magnitudes` [..., n]: whether each is among the `kept` largest of its row; of equals, the first.

    Written with what ONNX has: TopK gives the smallest value that is kept, comparisons and a running count the rest.
    """
    threshold = magnitudes.topk(kept, dim=-1).values[..., -1:]
    above, tied = magnitudes > threshold, magnitudes == threshold
    places = kept - above.float().sum(-1, keepdim=True)
    return above | (tied & (tied.float().cumsum(-1) <= places))


class Input(NamedTuple):
    """What goes into a layer: how many activations there are to choose from, along which dimension (`SparseInput`)."""

    width: int
    dimension: int | None
    inner: bool  # whether a layer with weights came before, so that these are activations and not the record


def input_widths(module: nn.Module, example: Tensor, per: Per) -> dict[nn.Module, Input]:
    """The inputs of the plain layers that are called, in order; a layer whose inputs differ in size is left out."""
    layers = called_layers(module, example)
    seen: dict[nn.Module, list[Input]] = {layer: [] for layer in layers}
    weighted: list[nn.Module] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer in seen:
            dimension = None if per == "record" else -1 if isinstance(layer, nn.Linear) else 1
            x: Tensor = inputs[0]
            width = x[0].numel() if dimension is None else x.shape[dimension]
            seen[layer].append(Input(width, dimension, bool(weighted)))
        weighted.append(layer)

    owners = [layer for layer in module.modules() if any(p.dim() > 1 for p in layer.parameters(recurse=False))]
    handles = [layer.register_forward_pre_hook(note) for layer in owners]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: found[0] for layer, found in seen.items() if len({each.width for each in found}) == 1}
