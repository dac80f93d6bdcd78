"""What every recipe needs of a module: a copy to work on, an input to run it with, its weighted layers, exchanges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import copied, device_of
from ...targets.seeds import generator

PLAIN_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)  # exactly these: a subclass may use its weight in ways of its own
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

L = TypeVar("L", bound=nn.Module)

REBUILDABLE: dict[type[nn.Module], tuple[str, ...]] = {}  # layers of our own, with their constructor's arguments


def rebuildable(*arguments: str) -> Callable[[type[L]], type[L]]:
    """Class decorator for a layer that recipes put in place of others, so that a candidate is stored without a pickle.

    Args:
        arguments: of its constructor, all of them; JSON values (or tuples of them), kept as attributes of those names.

    Such a layer may define:
        `shipped() -> nn.Module`, what stands in for it during export to ONNX (`onnx_export.to_onnx`);
        `operations(inputs, output) -> tuple[int, int, int]`, for a call: multiply-accumulates of one record, bits of a
        weight, bits of an activation (`footprint.layer_macs`);
        `true_gradients() -> None`, which switches its rounding to the zero gradients it really has
        (`quantized_layer.true_gradients`).
    """

    def register(cls: type[L]) -> type[L]:
        REBUILDABLE[cls] = arguments
        return cls

    return register


def working_copy(module: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode whose parameters can all be trained (an audit hands over frozen models)."""
    return copied(module).eval().requires_grad_(True)


def noise(module: nn.Module, records: Records, bounds: Bounds, count: int, seed: int) -> Tensor:
    """Inputs that no record decided: uniform in `bounds`, float32 [count, *record's shape], on the module's device."""
    uniform = torch.rand((count, *records.x.shape[1:]), generator=generator(seed, "noise"))
    low, high = bounds.low.cpu(), bounds.high.cpu()
    return (low + uniform * (high - low)).to(device_of(module))


def weights(module: nn.Module, noun: str) -> dict[str, Tensor]:
    """The weight matrices and kernels of every layer that has some, by parameter name.

    Of linear, convolutional and recurrent layers, attention and embeddings. No biases, no norms.

    Raises:
        NotApplicable: there is none; `noun` says what then cannot be done ("pruning").
    """
    owned = {parameter for layer in module.modules() for parameter in _matrices(layer)}
    # By way of named_parameters, which lists a weight that two layers share once, as the training loop does.
    found: dict[str, Tensor] = {name: value for name, value in module.named_parameters() if value in owned}
    if not found:
        raise NotApplicable(
            "The model has no linear, convolutional, recurrent, attention or embedding layer with a float weight, so "
            f"{noun} has nothing to act on."
        )
    return found


def _matrices(layer: nn.Module) -> list[nn.Parameter]:
    """The layer's own weights, without its children's."""
    own = dict(layer.named_parameters(recurse=False))
    if isinstance(layer, nn.RNNBase):
        return [value for name, value in own.items() if name.startswith("weight_")]
    if isinstance(layer, nn.MultiheadAttention):
        return [value for name, value in own.items() if name.endswith("proj_weight")]
    return [own["weight"]] if isinstance(layer, (*WEIGHTED, nn.Embedding)) and "weight" in own else []


def called_layers(module: nn.Module, x: Tensor) -> list[nn.Linear | nn.Conv1d | nn.Conv2d]:
    """The plain Linear, Conv1d and Conv2d layers among `called`."""
    found = called(module, x, lambda layer: type(layer) in PLAIN_LAYERS)
    return [layer for layer in found if isinstance(layer, PLAIN_LAYERS)]


def called(module: nn.Module, x: Tensor, fits: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The layers that fit and that a pass over `x` calls, each once, in the order of first calls.

    A layer whose weight is used without calling it (see `attention.unfold_attention`) is not among them: exchanging
    such a layer would break the model or change nothing. Nor is one that is only called with keyword arguments, which
    stand-ins do not take, or one whose weight something else computes, such as a user's own spectral norm around it.
    """
    order: dict[nn.Module, None] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs:
            order.setdefault(layer)

    held = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase) or "weight" in layer._parameters]
    handles = [layer.register_forward_pre_hook(note) for layer in held if fits(layer)]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def replace_layers(module: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`module` with layers exchanged in place, wherever they are registered; the stand-in itself if it is the root."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in stand_ins:
                parent._modules[name] = stand_ins[child]
    return stand_ins.get(module, module)
