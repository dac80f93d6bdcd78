"""How an untrained model is built, again and again: for shadows, surrogates, hardened variants."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..targets.errors import CrushproofError, NotApplicable, user_error
from ..targets.form import Array, Layout
from ..targets.model import copied
from ..targets.seeds import global_seed


@dataclass(frozen=True)
class Architecture:
    """A recipe for untrained modules of one shape.

    Args:
        name: identifies the shape in cache keys and the report, for example `my_package.nets:build`.
        build: returns a new module; initialised from torch's global generator, as torch's own layers are.
        pattern: a module of this shape, where there is one; never changed.
    """

    name: str
    build: Callable[[], nn.Module]
    pattern: nn.Module | None = None

    def fresh(self, seed: int) -> nn.Module:
        """A new module whose initial weights follow from `seed` alone, to be trained.

        Raises:
            NotApplicable: the architecture was made by `like`, and a layer of its pattern cannot be initialised anew.
        """
        with global_seed(seed, "initial weights"):
            return self.build()

    def blank(self) -> nn.Module:
        """A module of this shape whose weights mean nothing: they are to be overwritten."""
        return self.fresh(0) if self.pattern is None else copy.deepcopy(self.pattern)

    @classmethod
    def of(cls, given: Architecture | nn.Module | Callable[[], nn.Module]) -> Architecture:
        """What somebody names: itself, a module of the same structure, or what builds one."""
        if isinstance(given, Architecture):
            return given
        if isinstance(given, nn.Module):
            return cls.like(given, type(given).__name__)
        return cls(getattr(given, "__name__", type(given).__name__), given)

    @classmethod
    def like(cls, module: nn.Module, name: str) -> Architecture:
        """Modules of the same structure as `module` (which is copied, never changed), initialised anew."""
        pattern = copy.deepcopy(module).cpu()

        def build() -> nn.Module:
            refuse_unresettable(pattern)
            new = copied(pattern)
            layers = list(new.named_modules())
            for path, layer in layers:
                _reset(layer, "reset_parameters", path)
            # After their parts, as their constructors do: attention's output bias starts at 0, unlike a Linear's.
            for path, layer in reversed(layers):
                _reset(layer, "_reset_parameters", path)
            return new.requires_grad_(True)  # a model frozen for serving must not give shadows that never train

        return cls(name, build, pattern)


def weights_layout(architecture: Architecture) -> Layout:
    """What the stored weights of such modules look like."""
    state = architecture.blank().state_dict()
    return {name: Array(shape=tuple(value.shape), finite=False) for name, value in state.items()}


RESETS = ("reset_parameters", "_reset_parameters")  # the second is what torch's attention calls it


def unresettable(module: nn.Module) -> str | None:
    """The first layer that holds weights and cannot initialise them anew, in words; None when all can.

    Buffers of integers or of one number are constants of the architecture, such as sizes; others may have been learnt.
    """
    for path, layer in module.named_modules():
        buffers = [one for one in layer.buffers(recurse=False) if one.is_floating_point() and one.numel() > 1]
        if (buffers or list(layer.parameters(recurse=False))) and not any(hasattr(layer, name) for name in RESETS):
            return f"{path or 'of the model'} ({type(layer).__name__})"
    return None


def refuse_unresettable(module: nn.Module) -> None:
    layer = unresettable(module)
    if layer is not None:
        raise NotApplicable(
            f"Layer {layer} has weights and no reset_parameters(), so no model can be started from scratch in its "
            "likeness. Name a function that builds the untrained model: audit_model(..., build=...), or "
            "model.architecture in a plan."
        )


def _reset(layer: nn.Module, name: str, path: str) -> None:
    reset = getattr(layer, name, None)
    if not callable(reset):
        return
    try:
        reset()
    except CrushproofError:
        raise
    except Exception as error:
        raise NotApplicable(
            f"{name}() of layer {path or 'of the model'} ({type(layer).__name__}) failed, so no model can be started "
            f"from scratch in its likeness: {user_error(error)}. Name a function that builds the untrained model."
        ) from None
