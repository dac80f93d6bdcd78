"""The logits of a module that answers with something that hides them: what goes into a final softmax or sigmoid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Functions = frozenset[Callable[..., Any]]

ALONG_CLASSES: Functions = frozenset(
    (
        *(torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax),
        *(torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax),
    )
)
EACH: Functions = frozenset((torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit, F.logsigmoid))
# What may follow: it never puts two values of a record in another order, whatever numbers it is given ...
RISING: Functions = frozenset(
    (
        *(torch.log, Tensor.log, torch.log1p, Tensor.log1p, torch.exp, Tensor.exp, torch.sqrt, Tensor.sqrt),
        *(torch.clamp, Tensor.clamp, torch.clamp_min, Tensor.clamp_min, torch.clamp_max, Tensor.clamp_max, torch.clip),
        *(torch.round, Tensor.round, torch.floor, Tensor.floor, torch.ceil, Tensor.ceil),
        *(torch.flatten, Tensor.flatten, Tensor.view, Tensor.view_as, torch.reshape, Tensor.reshape, torch.squeeze),
        *(Tensor.squeeze, Tensor.float, Tensor.double, Tensor.to, Tensor.contiguous, Tensor.clone, torch.clone),
    )
)
SHIFTS: Functions = frozenset(
    (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__)
)
SCALES: Functions = frozenset(
    (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__)
)
ROUNDED = 1 / 64  # a probability that is so near to another is that, rounded
MOST_CLASSES = 100_000  # beyond it, it is no answer


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """What the module answers, [n, classes]; where it ends in a softmax, a log-softmax (over the classes) or a sigmoid,
    what goes into that: it puts the classes in the same order, and does not saturate. Roundings, logarithms and the
    like may follow.
    """
    return answer_and_logits(module, x)[1]


def answer_and_logits(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the module answers, and its logits, see `logits_of`: the same tensor where nothing hides them."""
    answer, logits, _ = noted(module, x)
    return answer, logits


def noted(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """As `answer_and_logits`, and whether there was any softmax or sigmoid, be it in the middle of the module."""
    with _Noting() as noting:
        answer: Tensor = module(x)
    return answer, noting.before(answer), noting.any


class _Noting(TorchFunctionMode):
    """Notes what went into the last softmax or sigmoid, and what has become of what came out."""

    def __init__(self) -> None:
        super().__init__()
        self._given: Any = None
        self._result: Any = None

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        x: Any = args[0] if args else named.get("input")
        if func in EACH or (func in ALONG_CLASSES and _over_classes(x, args[1] if len(args) > 1 else named.get("dim"))):
            self._given, self._result = x, result
        elif self._result is None:  # as in most of a network, which is asked thousands of times
            pass
        elif func is Tensor.__getitem__ and self._is(x):
            self._given, self._result = self._given.reshape(x.shape)[args[1]], result
        elif (func in RISING or _by_number(func, args[1:])) and self._is(x):
            self._result = result
        return result

    @property
    def any(self) -> bool:
        return self._result is not None

    def before(self, answer: Tensor) -> Tensor:
        logits: Tensor = self._given.reshape(answer.shape) if self._is(answer) else answer
        return logits

    def _is(self, x: Any) -> bool:
        """Whether x holds what the softmax or sigmoid has become: the same memory, or nearly the same values."""
        if not isinstance(x, Tensor) or not isinstance(self._result, Tensor) or x.numel() != self._result.numel():
            return False
        if x.data_ptr() == self._result.data_ptr():
            return True
        if not x.is_floating_point() or x.numel() > MOST_CLASSES * len(x):
            return False
        return float((x - self._result.reshape(x.shape)).detach().abs().max()) <= ROUNDED


def _over_classes(x: Any, axis: Any) -> bool:
    """Whether the axis is all there is to a record."""
    if not isinstance(x, Tensor) or not isinstance(axis, int) or axis % x.dim() == 0:
        return False
    return x.shape[axis] > 1 and x.shape[axis] * len(x) == x.numel()


def _by_number(func: Any, others: tuple[Any, ...]) -> bool:
    """Whether the function shifts a tensor by one number for all, or scales it by one above 0."""
    if func not in SHIFTS and func not in SCALES:
        return False
    if len(others) != 1 or not isinstance(others[0], Real | Tensor):
        return False
    if isinstance(others[0], Tensor) and (others[0].numel() > 1 or others[0].requires_grad):
        return False
    return func in SHIFTS or float(others[0]) > 0
