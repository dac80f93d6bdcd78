"""Students: smaller networks that learn from a dense one. Fewer layers, thinner layers, or the user's own network."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...targets.errors import CrushproofError, InputError, NotApplicable, user_error
from ...training.architecture import Architecture
from ..layers.edit import WEIGHTED, rebuildable, replace_layers, working_copy

Build = Callable[[], nn.Module]

_FACTORIES: dict[str, Build] = {}


def offer_factory(path: str, build: Build) -> None:
    """Makes `build` what `Distill(student=path)` builds its students with, in this process.

    A caller that finds functions elsewhere than on Python's path (beside a plan, say) offers them before recipes run
    and before candidates are rebuilt. A document can thereby only name factories that somebody has vouched for.
    """
    _FACTORIES[path] = build


def offered(path: str) -> Build | None:
    """The function offered by that name, if any."""
    return _FACTORIES.get(path)


def import_factory(path: str) -> None:
    """Offers the function `module:function` of an importable module, unless that name is already offered.

    Raises:
        InputError: there is no such module or function, or importing it fails.
    """
    if path in _FACTORIES:
        return
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except CrushproofError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"The student {path!r} cannot be imported: {user_error(error)}.") from None
    if not callable(function):
        raise InputError(f"The student {path!r} cannot be built: module {module_name!r} has no such function.")
    offer_factory(path, function)


@rebuildable("factory")
class Student(nn.Module):
    """A network built by the user's own function, as a layer that can be rebuilt by the function's name.

    Args:
        factory: the name it was offered by (`offer_factory`), `module:function`; called without arguments.
    """

    def __init__(self, factory: str) -> None:
        super().__init__()
        self.factory = factory
        if factory not in _FACTORIES:
            raise ValueError(f"the student's factory {factory!r} was not offered in this process")
        try:
            module = _FACTORIES[factory]()
        except CrushproofError:
            raise
        except Exception as error:
            raise InputError(
                f"The student's factory {factory} raised {user_error(error)}. It takes no arguments."
            ) from None
        if not isinstance(module, nn.Module):
            raise InputError(
                f"The student's factory {factory} must return a torch.nn.Module; it returned {type(module).__name__}."
            )
        self.network = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def own_student(factory: str, module: nn.Module, example: Tensor, seed: int) -> nn.Module:
    """A fresh student of the user's, on the CPU, after checking that it answers as `module` does.

    Args:
        module: the dense model; `example` float32 [n, *shape] lies on its device.

    Raises:
        InputError: the factory cannot be found, fails, or builds a network of another input or output shape.
    """
    import_factory(factory)
    student = Architecture(factory, lambda: Student(factory)).fresh(seed).requires_grad_(True)
    with torch.no_grad():
        wanted = tuple(module(example).shape)
        try:
            given = tuple(student.eval()(example.cpu()).shape)
        except Exception as error:
            shape = tuple(example.shape[1:])
            raise InputError(
                f"The student of {factory} does not take records of shape {shape}: {user_error(error)}."
            ) from None
    if given != wanted:
        raise InputError(
            f"The student of {factory} gives outputs of shape {given[1:]} for a record; the dense model's have shape "
            f"{wanted[1:]}."
        )
    return student


@rebuildable()
class Skip(nn.Module):
    """Stands where a block was: gives back its first argument."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        return x


def shallow(module: nn.Module, example: Tensor, depth: float) -> nn.Module:
    """A copy in evaluation mode with the share `depth` of its droppable blocks (rounded up), evenly chosen.

    As DistilBERT takes every other layer of BERT (Sanh et al. 2019, arXiv:1910.01108). The others become `Skip`.

    Args:
        example: float32 [n, *shape], on the module's device.

    Raises:
        NotApplicable: fewer than two blocks keep their input's shape, or all of them make up that share.
    """
    copied = working_copy(module)
    blocks = droppable(copied, example)
    keep = math.ceil(depth * len(blocks) - 1e-9)
    if len(blocks) < 2:
        raise NotApplicable(
            "The model has no two blocks or layers whose outputs have their inputs' shape, so its depth cannot be cut."
        )
    if keep == len(blocks):
        raise NotApplicable(
            f"A depth of {depth:g} drops none of the model's {len(blocks)} blocks; ask for "
            f"{(len(blocks) - 1) / len(blocks):.3g} or less."
        )
    kept = {index * len(blocks) // keep for index in range(keep)}
    dropped: dict[nn.Module, nn.Module] = {block: Skip() for index, block in enumerate(blocks) if index not in kept}
    return replace_layers(copied, dropped).eval()


def droppable(module: nn.Module, example: Tensor) -> list[nn.Module]:
    """The blocks whose removal leaves every shape as it is, in the order of calls.

    They hold weights, are called once, take a tensor first and give one of its shape, and do not give the model's
    output. Of nested ones the outermost counts, except where it only strings blocks together: a container of two or
    more blocks that have parts of their own, or an nn.Sequential of two or more layers.
    """
    calls: dict[nn.Module, list[bool]] = {}
    outputs: dict[nn.Module, Any] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        same = bool(inputs) and all(isinstance(value, Tensor) for value in (inputs[0], output))
        calls.setdefault(layer, []).append(same and inputs[0].shape == output.shape)
        outputs[layer] = output

    handles = [layer.register_forward_hook(note) for layer in module.modules()]
    try:
        with torch.no_grad():
            final = module(example)
    finally:
        for handle in handles:
            handle.remove()
    fits = {layer for layer, same in calls.items() if same == [True] and outputs[layer] is not final and weighty(layer)}
    found: list[nn.Module] = []

    def visit(layer: nn.Module) -> None:
        if layer in fits and not strings_together(layer, fits):
            found.append(layer)
            return
        for child in layer.children():
            visit(child)

    visit(module)
    order = list(calls)  # a block is noted when it is done, so blocks stand in the order of their ends
    return sorted(dict.fromkeys(found), key=order.index)


def weighty(layer: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in layer.parameters())


def strings_together(layer: nn.Module, fits: set[nn.Module]) -> bool:
    parts = [
        part
        for child in layer.children()
        for part in (child.children() if isinstance(child, nn.ModuleList) else (child,))
        if part in fits
    ]
    composite = [part for part in parts if next(part.children(), None) is not None]
    return len(composite) > 1 or (type(layer) is nn.Sequential and len(parts) > 1)


def last_layer(module: nn.Module, example: Tensor) -> nn.Module:
    """The weighted layer that is called last: the one that gives the logits.

    Raises:
        NotApplicable: no such layer is called.
    """
    order: list[nn.Module] = []
    layers = [layer for layer in module.modules() if isinstance(layer, WEIGHTED)]
    handles = [layer.register_forward_hook(lambda layer, inputs, output: order.append(layer)) for layer in layers]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    if not order:
        raise NotApplicable("The model calls no linear or convolutional layer whose input could be a hint.")
    return order[-1]
