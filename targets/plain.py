"""A module as people have it, made plain: parallel and compiled wrappers taken off, computed weights written out.

What computes a weight anew in every pass (weight norm, spectral norm, a pruning mask, any parametrization) hides it
from whatever reads or exchanges layers. A plain module answers alike, and its layers hold their weights themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from .answers import answer_with_logits, logits_in
from .errors import InputError, user_error

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
Sources = tuple[int, ...]  # ids of the tensors a weight is computed from


def plain(module: nn.Module, example: Tensor | None = None) -> tuple[nn.Module, list[str]]:
    """A copy of `module` on the CPU, in float32 and evaluation mode, without wrappers and computed weights.

    Weights that layers share stay shared. One that answers with a dictionary or object of `logits` answers with these.

    Args:
        module: left as it is.
        example: float32 [n, *shape]; where given and the module takes it, its answers are looked at, and written-out
            weights are checked to answer as before.

    Returns:
        The copy, and sentences that a reader of the report must know.

    Raises:
        InputError: the module cannot be copied, holds something else than plain tensors (quantised or sparse ones, on
            no device), was never run (lazy layers), is TorchScript, an exported program or prepared for torch's
            quantisation, or answers otherwise once written out.
    """
    if scripted(module):
        raise InputError(
            "The model is TorchScript (scripted or traced), whose layers cannot be compressed or retrained. Hand over "
            "the nn.Module it was made from."
        )
    _refuse_unfinished(module)
    copied = _unwrapped(_copy(module))
    _check_tensors(copied)
    notes = _cast(copied)
    copied.eval()
    notes += _logits_alone(copied, example)
    before = _answers(copied, example)
    written = _write_out(copied)
    if written:
        after = _answers(copied, example)
        if isinstance(before, Tensor) and not (isinstance(after, Tensor) and _same(before, after)):
            raise InputError(
                f"The weights that the model computes in every pass ({_some(written)}) cannot be written out: its "
                "answers would change. Remove the parametrization yourself before the audit."
            )
        notes.append(
            f"Weights computed in every pass were written out as plain ones, with the same answers: {_some(written)}. "
            "Retraining, such as that of shadow models, is without that computation."
        )
    notes += [
        f"{' and '.join(names)} are one tensor: it counts once. Removing channels and low-rank factors leave such "
        "layers as they are."
        for names in shared_weights(copied)
    ]
    return copied, notes


def scripted(module: nn.Module) -> bool:
    """Whether the module or a part of it is TorchScript."""
    return any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules())


def shared_weights(module: nn.Module) -> list[list[str]]:
    """The names under which different layers hold one parameter (tied weights), a list for each such parameter."""
    names: dict[nn.Parameter, list[str]] = {}
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(parameter, []).append(f"{path}.{name}" if path else name)
    return [own for own in names.values() if len(own) > 1]


def sharing_layers(module: nn.Module) -> set[nn.Module]:
    """The layers of `module` with a parameter that another layer holds too."""
    return {module.get_submodule(name.rpartition(".")[0]) for names in shared_weights(module) for name in names}


def tie(module: nn.Module, like: nn.Module) -> None:
    """Makes `module` share, in place, what `like` shares under the same names, as far as shapes agree."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for first, *others in shared_weights(like):
        for name in others:
            if first in parameters and name in parameters and parameters[first].shape == parameters[name].shape:
                path, _, last = name.rpartition(".")
                setattr(module.get_submodule(path), last, parameters[first])


def _copy(module: nn.Module) -> nn.Module:
    # A weight computed in the last forward pass still hangs on its graph, and torch does not copy such tensors.
    held = [value for layer in module.modules() for value in vars(layer).values()]
    held += [one for value in held if isinstance(value, list | tuple) for one in value]
    memo = {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf}
    try:
        return copy.deepcopy(_inner(module), memo)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a user's module may hold anything: locks, open files, process groups
        raise InputError(
            f"The model cannot be copied: {user_error(error)}. Take out of it what only training needs."
        ) from None


def _inner(module: nn.Module) -> nn.Module:
    """What a wrapper wraps; the module itself where it is none."""
    while True:
        if isinstance(module, WRAPPERS):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(module._modules.get("_orig_mod"), nn.Module):
            module = module.get_submodule("_orig_mod")  # by its name: importing torch's compiler takes seconds
        else:
            return module


def _unwrapped(module: nn.Module) -> nn.Module:
    module = _inner(module)
    for layer in list(module.modules()):
        for name, child in layer._modules.items():
            if child is not None:
                layer._modules[name] = _inner(child)
    return module


def _refuse_unfinished(module: nn.Module) -> None:
    """Refuses what torch's exporter and quantiser put between an nn.Module and what runs."""
    for path, layer in module.named_modules():
        names = {base.__name__ for base in type(layer).__mro__}  # not the classes: importing them takes a second
        if names & {"FakeQuantizeBase", "ObserverBase"}:
            raise InputError(
                f"The model is prepared for torch's own quantisation ({type(layer).__name__} at {path}). Hand over the "
                "float model it was prepared from; or convert it, save it as .onnx and audit that file."
            )
    try:
        module.train(module.training)
    except NotImplementedError:
        raise InputError(
            "The model is an exported program (torch.export), which cannot be retrained. Hand over the nn.Module it "
            "was made from; or save it as .onnx and audit that file."
        ) from None


def _check_tensors(module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        fault = _fault(value)
        if fault is not None:
            raise InputError(
                f"The model holds {fault} ({name}), and an audit compresses a float model itself. Hand over the float "
                "model; or save what is compressed already as .onnx or .tflite and audit that file."
            )


def _fault(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} in its state dict, as torch's quantised layers do"
    if nn.parameter.is_lazy(value):
        return "a lazy layer that has never seen a record"
    if value.is_quantized:
        return "quantised tensors"
    if value.layout != torch.strided:
        return "sparse tensors"
    if value.is_meta:
        return "tensors without values (device meta)"
    return "complex numbers" if value.is_complex() else None


def _cast(module: nn.Module) -> list[str]:
    """Everything to float32 on the CPU, in place; a note where it was something else."""
    kinds = {value.dtype for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()}
    module.cpu().float()
    for layer in module.modules():  # constants that are neither parameters nor buffers
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(layer)[name] = value.cpu().float()
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    return [f"The model's {' and '.join(others)} values are audited as float32."] if others else []


def _write_out(module: nn.Module) -> list[str]:
    """Replaces every computed weight by a parameter of its value, in place; their names."""
    first: dict[tuple[Sources, str], nn.Parameter] = {}
    written = []
    for path, layer in module.named_modules():
        if path.endswith("parametrizations") or ".parametrizations." in f".{path}.":
            continue
        for name, sources, how in (*_hooked(layer), *_parametrized(layer)):
            written.append(f"{path}.{name} ({how})" if path else f"{name} ({how})")
            own = layer._parameters.get(name)
            if own is not None:
                shared = first.setdefault((sources, how), own)
                if shared.shape == own.shape and torch.equal(shared, own):
                    setattr(layer, name, shared)  # computed from the same tensors: tied before, tied after
        if isinstance(layer, nn.RNNBase):
            layer._flat_weights = [getattr(layer, name, None) for name in layer._flat_weights_names]
    return written


def _hooked(layer: nn.Module) -> Iterator[tuple[str, Sources, str]]:
    """Writes out the weights that hooks before a pass compute: torch's older ways."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm):
            sources = _ids(layer, f"{hook.name}_g", f"{hook.name}_v")
            nn.utils.remove_weight_norm(layer, hook.name)
            yield hook.name, sources, "weight norm"
        elif isinstance(hook, SpectralNorm):
            sources = _ids(layer, f"{hook.name}_orig")
            nn.utils.remove_spectral_norm(layer, hook.name)
            yield hook.name, sources, "spectral norm"
        elif isinstance(hook, prune.BasePruningMethod):
            name = str(hook._tensor_name)
            sources = _ids(layer, f"{name}_orig")
            value = hook.apply_mask(layer).detach().clone()
            del layer._forward_pre_hooks[key], layer._parameters[f"{name}_orig"], layer._buffers[f"{name}_mask"]
            _own(layer, name, value, parameter=True)  # not prune.remove, which would write into a tied weight
            yield name, sources, "pruning mask"
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):  # some look for the old names
        for key, hook in list(hooks.items()):
            if str(getattr(hook, "hook", hook).__module__).startswith("torch.nn.utils."):
                del hooks[key]


def _parametrized(layer: nn.Module) -> Iterator[tuple[str, Sources, str]]:
    """Writes out what `torch.nn.utils.parametrize` computes."""
    if not parametrize.is_parametrized(layer):
        return
    computations = dict(layer.get_submodule("parametrizations").named_children())
    values = {name: getattr(layer, name).detach().clone() for name in computations}
    # Not remove_parametrizations: it deletes from a class that the original shares with its copy.
    del layer._modules["parametrizations"]
    layer.__class__ = type(layer).__bases__[0]
    for name, computation in computations.items():
        own = list(computation.parameters(recurse=False))
        _own(layer, name, values[name], parameter=bool(own))
        kinds = [type(step).__name__.strip("_") for step in computation.children()]
        yield name, tuple(id(one) for one in own), ", ".join(kinds)


def _own(layer: nn.Module, name: str, value: Tensor, *, parameter: bool) -> None:
    vars(layer).pop(name, None)
    if parameter:
        layer.register_parameter(name, nn.Parameter(value))
    else:
        layer.register_buffer(name, value)


def _ids(layer: nn.Module, *names: str) -> Sources:
    return tuple(id(getattr(layer, name)) for name in names)


def _logits_alone(module: nn.Module, example: Tensor | None) -> list[str]:
    """Makes the module answer with its logits alone, in place; a note where it gave them among other things."""
    answers = _answers(module, example)
    if isinstance(answers, Tensor) or not isinstance(logits_in(answers), Tensor):
        return []
    answer_with_logits(module)
    return [f"The model answers with a {type(answers).__name__}: the logits in it are audited, and nothing else."]


def _answers(module: nn.Module, example: Tensor | None) -> Any:
    """What it answers; None where there is no example, or it cannot take it (the check of the model says so)."""
    if example is None:
        return None
    try:
        with torch.no_grad():
            return module(example)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # the user's own forward can raise anything
        return None


def _same(before: Tensor, after: Tensor) -> bool:
    scale = float(before.abs().max()) if before.numel() else 0.0
    return before.shape == after.shape and torch.allclose(before, after, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
