"""The structure of a compressed module as a JSON document, so that a candidate is stored without a pickle.

A recipe replaces layers: thinner ones, two for one, quantised ones. `describe` writes down what each layer is, and
`rebuild` puts such layers into a fresh dense module; the values then come from plain named arrays.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...targets.errors import InputError, NotApplicable
from ..layers.attention import forgo_nested_tensors
from ..layers.edit import REBUILDABLE
from ..quantization.activation_grids import RoundedActivations
from ..recipe import RECIPES
from ..wrapping import Wrapper

Description = list[dict[str, Any]]
"""One entry per layer: `path` (dotted), `type`, and `arguments` of its constructor (None: cannot be rebuilt)."""

CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

# The layers that can be rebuilt, with their constructor's arguments.
ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: (*CONVOLUTION, "padding_mode"),
    nn.Conv2d: (*CONVOLUTION, "padding_mode"),
    nn.Conv3d: (*CONVOLUTION, "padding_mode"),
    nn.ConvTranspose1d: (*CONVOLUTION, "output_padding"),
    nn.ConvTranspose2d: (*CONVOLUTION, "output_padding"),
    nn.ConvTranspose3d: (*CONVOLUTION, "output_padding"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Embedding: (
        "num_embeddings",
        "embedding_dim",
        "padding_idx",
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
    ),
    nn.LSTM: (*RECURRENT, "proj_size"),
    nn.GRU: RECURRENT,
    nn.RNN: (*RECURRENT, "nonlinearity"),
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.BatchNorm3d: BATCH_NORM,
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.InstanceNorm1d: BATCH_NORM,
    nn.InstanceNorm2d: BATCH_NORM,
    nn.InstanceNorm3d: BATCH_NORM,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.RMSNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.PReLU: ("num_parameters",),
    nn.Identity: (),
}


def _known() -> Mapping[type[nn.Module], tuple[str, ...]]:
    """Every layer that can be rebuilt: torch's, and those that recipes bring (they register when they are imported)."""
    RECIPES.kinds()
    return ChainMap(REBUILDABLE, ARGUMENTS)


def _name(cls: type[nn.Module]) -> str:
    """As a description names a layer's type: short for torch's and ours, wherever they live; else with its module."""
    short = cls.__module__.partition(".")[0] in ("torch", __name__.partition(".")[0])
    return cls.__name__ if short else f"{cls.__module__}.{cls.__qualname__}"


def describe(module: nn.Module) -> Description:
    """Every layer of `module`, parents before children, in JSON's own types (lists, no tuples).

    A layer of a type that `rebuild` does not know is listed with `arguments: None`: it must be the same in the fresh
    module. Containers with a forward of their own are the architecture's business and are not listed.
    """
    description: Description = []
    _describe(module, "", description)
    return description


def rebuild(architecture_module: nn.Module, description: Description) -> nn.Module:
    """Puts the described layers in place of those of a fresh dense module, which is changed and returned.

    Args:
        architecture_module: a fresh module of the dense architecture, on the CPU.
        description: of a module compressed from that architecture; layers that are as described stay.

    Returns:
        The module in evaluation mode. New layers hold initial values: `load_state_dict(..., strict=True)` follows.

    Raises:
        NotApplicable: a layer differs and its type is not one that can be rebuilt; the message names it.
        InputError: the description is not one that `describe` writes.
    """
    types = {_name(cls): cls for cls in _known()}
    root = nn.ModuleDict({"module": architecture_module})  # so that a lone layer can be replaced as well
    for entry in description:
        try:
            path, kind, arguments = str(entry["path"]), str(entry["type"]), entry["arguments"]
        except (KeyError, TypeError):
            raise InputError(f"The description of a compressed model has a malformed entry: {entry!r}.") from None
        parent, name = _parent(root, path)
        present = parent._modules.get(name)
        if present is not None and _entry(present, path) == {"path": path, "type": kind, "arguments": arguments}:
            continue
        if kind == "Sequential" and isinstance(arguments, list):
            layer: nn.Module = _sequence(present, arguments)
        elif kind in types and isinstance(arguments, dict):
            layer = _build(path, types[kind], arguments)
            if isinstance(layer, RoundedActivations | Wrapper) and present is not None:
                layer.inner = present  # whose changed layers follow, as parts of it
        else:
            raise NotApplicable(
                f"Layer {path or 'of the model'} was changed by compression and its type, {kind}, cannot be rebuilt "
                f"from a description. Layers that can: {', '.join(types)}, Sequential."
            )
        parent._modules[name] = layer
    rebuilt: nn.Module = root["module"]
    forgo_nested_tensors(rebuilt)
    return rebuilt.eval()


def resized(layer: nn.Module, **sizes: Any) -> nn.Module:
    """A new layer of the same type and constructor's arguments, but for `sizes`; its values are initial ones.

    Raises:
        NotApplicable: the layer's type is not one that can be rebuilt.
    """
    entry = _entry(layer, "")
    if entry["arguments"] is None:
        raise NotApplicable(f"A layer of type {entry['type']} cannot be built in another size.")
    return _build("", type(layer), {**entry["arguments"], **sizes})


def save_module(module: nn.Module) -> tuple[Description, dict[str, np.ndarray[Any, Any]]]:
    """The module as a JSON-able description and named arrays (its whole state, copied)."""
    arrays = {name: value.detach().cpu().clone().numpy() for name, value in module.state_dict().items()}
    return describe(module), arrays


def load_module(
    architecture_module: nn.Module, description: Description, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> nn.Module:
    """What `save_module` saved, rebuilt in a fresh dense module (which is changed); on the CPU, evaluation mode.

    Raises:
        InputError: names or shapes of the arrays do not fit the description.
        NotApplicable: see `rebuild`.
    """
    module = rebuild(architecture_module, description)
    _take_shapes(module, arrays)
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}, strict=True)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"The saved weights do not fit the model they are loaded into: {error}") from None
    return module


def _take_shapes(module: nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Gives the values of layers that are not rebuilt (a user's own, such as a slope per channel) their new sizes."""
    known = _known()
    for path, layer in module.named_modules():
        if type(layer) in known:
            continue
        for values in (layer._parameters, layer._buffers):
            for name, value in values.items():
                array = arrays.get(f"{path}.{name}" if path else name)
                if value is None or array is None or array.ndim != value.dim() or array.shape == value.shape:
                    continue
                new = torch.zeros(array.shape, dtype=value.dtype)
                values[name] = nn.Parameter(new) if isinstance(value, nn.Parameter) else new


def _describe(layer: nn.Module, path: str, description: Description) -> None:
    entry = _entry(layer, path)
    children = list(layer.named_children())
    if entry["arguments"] is not None or not children:
        description.append(entry)
    for name, child in children:  # of a layer of our own as well: its parts may have been replaced
        _describe(child, f"{path}.{name}" if path else name, description)


def _entry(layer: nn.Module, path: str) -> dict[str, Any]:
    """A layer's own line. Subclasses are not their parents: only exact types can be rebuilt."""
    cls = type(layer)
    if cls is nn.Sequential:
        return {"path": path, "type": "Sequential", "arguments": [name for name, _ in layer.named_children()]}
    known = _known()
    if cls not in known:
        return {"path": path, "type": f"{cls.__module__}.{cls.__qualname__}", "arguments": None}
    arguments = {name: _argument(layer, name) for name in known[cls]}
    return {"path": path, "type": _name(cls), "arguments": arguments}


def _argument(layer: nn.Module, name: str) -> Any:
    """A constructor's argument as JSON has it; `bias` is an attribute too, and becomes whether there is one."""
    value = getattr(layer, name)
    if name in layer._parameters:
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _build(path: str, cls: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    kind = _name(cls)
    if set(arguments) != set(_known()[cls]):
        raise InputError(f"The description of layer {path} ({kind}) does not name that layer's arguments.")
    restored = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    constructor: Callable[..., nn.Module] = cls
    try:
        return constructor(**restored)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The description of layer {path} ({kind}) is not valid: {error}") from None


def _sequence(present: nn.Module | None, names: list[str]) -> nn.Sequential:
    """An empty sequence with those children of the present one that keep their name (activations have no arguments)."""
    sequence = nn.Sequential()
    for name in names:
        child = present._modules.get(name) if isinstance(present, nn.Sequential) else None
        sequence.add_module(str(name), child if child is not None else nn.Identity())
    return sequence


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the layer at `path` (relative to root's only child), and the layer's name in it."""
    steps = ["module", *path.split(".")] if path else ["module"]
    try:
        return root.get_submodule(".".join(steps[:-1])), steps[-1]
    except AttributeError:
        raise InputError(
            f"The description of a compressed model names a layer {path!r}, and the architecture it is rebuilt in has "
            "no such place. Use the architecture that the candidate was compressed from."
        ) from None
