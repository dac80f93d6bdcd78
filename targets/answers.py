"""A model that answers with a dictionary or an object, as Hugging Face's do, made to answer with its logits alone.

The module stays itself: its layers, names and weights. Only its class changes, to one whose forward keeps the logits,
so that whatever reads, trains, exports or copies the module meets an ordinary one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

KEY = "logits"
_MADE: dict[type[nn.Module], type[nn.Module]] = {}  # by the user's own class: copies of one model are of one class


class _Answering(nn.Module):
    """Comes before a user's own class among the bases of the class that `answer_with_logits` makes."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = logits_in(super().forward(x))
        return logits

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copied and stored as the user's own class, since nobody else knows the one that was made."""
        parts: Any = super().__reduce_ex__(protocol)
        return (_blank, (type(self).__mro__[2],), *parts[2:])


def logits_in(answer: Any) -> Any:
    """The logits in what a model answered: under `logits`, as a key or an attribute; None where there are none."""
    if isinstance(answer, Mapping):
        return answer.get(KEY)
    return answer if isinstance(answer, Tensor) else getattr(answer, KEY, None)


def answer_with_logits(module: nn.Module, really: bool = True) -> nn.Module:
    """Makes `module` answer, in place, with the logits in what it answers, if it `really` is to; returns it."""
    if really and not answers_with_logits(module):
        module.__class__ = _class(type(module))
    return module


def answers_with_logits(module: nn.Module) -> bool:
    """Whether `answer_with_logits` was called on it, or on what it is a copy of."""
    return isinstance(module, _Answering)


def as_written(module: nn.Module) -> nn.Module:
    """Undoes `answer_with_logits`, in place: what the user's own code expects. Returns the module."""
    if answers_with_logits(module):
        module.__class__ = type(module).__mro__[2]
    return module


def _class(own: type[nn.Module]) -> type[nn.Module]:
    if own in _MADE:
        return _MADE[own]
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    made = _MADE[own] = type(own.__name__, (_Answering, own), names)
    return made


def _blank(own: type[nn.Module]) -> nn.Module:
    made = _class(own)
    return made.__new__(made)
