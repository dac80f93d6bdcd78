"""How an untrained model is built, again and again: for shadows, surrogates, hardened variants."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..targets.errors import InputError
from ..targets.seeds import global_seed


@dataclass(frozen=True)
class Architecture:
    """A recipe for untrained modules of one shape.

    Args:
        name: identifies the shape in cache keys and the report, for example `my_package.nets:build`.
        build: returns a new module; initialised from torch's global generator, as torch's own layers are.
    """

    name: str
    build: Callable[[], nn.Module]

    def fresh(self, seed: int) -> nn.Module:
        """A new module whose initial weights follow from `seed` alone."""
        with global_seed(seed, "initial weights"):
            return self.build()

    @classmethod
    def like(cls, module: nn.Module, name: str) -> Architecture:
        """Modules of the same structure as `module` (which is copied, never changed), initialised anew.

        Raises:
            InputError: some layer holds parameters and cannot reset them (no `reset_parameters`).
        """
        pattern = copy.deepcopy(module).cpu()
        for path, layer in pattern.named_modules():
            own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            if own and not hasattr(layer, "reset_parameters"):
                raise InputError(
                    f"Layer {path or type(module).__name__} ({type(layer).__name__}) has weights and no "
                    "reset_parameters(), so shadow models cannot be started from scratch. Name a function that builds "
                    "the untrained model instead."
                )

        def build() -> nn.Module:
            new = copy.deepcopy(pattern)
            for layer in new.modules():
                reset = getattr(layer, "reset_parameters", None)
                if callable(reset):
                    reset()
            return new

        return cls(name, build)
