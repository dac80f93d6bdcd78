"""The logits of a module that answers with something that hides them: what goes into a final softmax or sigmoid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ALONG_CLASSES: tuple[Callable[..., Any], ...] = (
    *(torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax),
    *(torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax),
)
EACH: tuple[Callable[..., Any], ...] = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit, F.logsigmoid)


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """What the module answers, [n, classes]; where its last operation is a softmax, a log-softmax (over the classes) or
    a sigmoid, what goes into that: it puts the classes in the same order, and does not saturate.
    """
    with _Noting() as noting:
        answer: Tensor = module(x)
    return noting.before(answer)


class _Noting(TorchFunctionMode):
    """Notes what went into the last softmax or sigmoid, and what came out."""

    def __init__(self) -> None:
        super().__init__()
        self._given: Tensor | None = None
        self._result: Any = None

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        if func in ALONG_CLASSES or func in EACH:
            given = args[0] if args else named.get("input")
            along = args[1] if len(args) > 1 else named.get("dim")
            fits = isinstance(given, Tensor) and given.dim() == 2 and (func in EACH or along in (1, -1))
            self._given, self._result = (given if fits else None), result
        return result

    def before(self, answer: Tensor) -> Tensor:
        return self._given if self._given is not None and answer is self._result else answer
