"""Records that note whether their values are used, and not only their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crushproof.targets.data.records import Records

READS: list[str] = []  # what was done with values since it was last emptied
SHAPES = {"shape", "device", "dtype", "ndim", "requires_grad", "is_cuda", "layout", "is_sparse", "is_quantized"}
OF_SHAPE = {
    "size",
    "dim",
    "numel",
    "__len__",
    "is_floating_point",
    "zeros_like",
    "ones_like",
    "empty_like",
    "new_zeros",
}
OF_SHAPE |= {"new_ones", "new_empty", "get_device", "element_size", "__repr__", "stride", "storage_offset"}
VIEWS = {
    "__getitem__",
    "split",
    "flatten",
    "reshape",
    "view",
    "to",
    "float",
    "detach",
    "index_select",
    "unsqueeze",
    "cpu",
}


class Noted(Tensor):
    """Views of it are such tensors too; everything else that is made of its values is noted."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "a property")
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        if name in SHAPES | OF_SHAPE:
            return found
        if name in VIEWS and isinstance(args[0], Noted):
            return _noted(found)
        READS.append(name)
        return found


def _noted(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.as_subclass(Noted)
    return type(found)(map(_noted, found)) if isinstance(found, list | tuple) else found


def noted(records: Records) -> Records:
    return Records(_noted(records.x.clone()), _noted(records.y.clone()))
