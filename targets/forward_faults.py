"""Why a model cannot take the records: which layer, what it wants, what it gets, what to change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .answers import logits_in
from .errors import user_error

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def answer_of(module: nn.Module, x: Tensor) -> Tensor | str:
    """The logits that `module` (in evaluation mode) answers x float32 [n, *shape] with, or why there are none."""
    stack: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
    try:
        with torch.no_grad(), _followed(module, stack):
            answer = module(x)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # the user's own forward can raise anything
        return _why(error, x, stack)
    return answer if isinstance(answer, Tensor) else _no_tensor(answer)


@contextmanager
def _followed(module: nn.Module, stack: list[tuple[str, nn.Module, tuple[Any, ...]]]) -> Iterator[None]:
    """Inside the block `stack` holds the layers that are at work, outermost first, each with its inputs."""
    handles = []
    for path, layer in module.named_modules():

        def enter(layer: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            stack.append((path, layer, inputs))

        def leave(layer: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            stack.pop()

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _no_tensor(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return (
            f"The model answers with a {type(answer).__name__} of {len(answer)} values, and one tensor is expected: "
            "the logits [n, classes]. Let its forward return them alone."
        )
    if answer is None:
        return "The model's forward returns nothing. Let it return the logits [n, classes]."
    keys = f" with the keys {', '.join(map(str, list(answer)[:6]))}" if isinstance(answer, dict) else ""
    odd = "" if logits_in(answer) is None else ", and what is under logits is no tensor"
    return (
        f"The model answers with a {type(answer).__name__}{keys}{odd}. Let its forward return the logits [n, classes] "
        "as one tensor, or under the key logits."
    )


def _why(error: Exception, x: Tensor, stack: list[tuple[str, nn.Module, tuple[Any, ...]]]) -> str:
    shape = list(x.shape[1:])
    if len(stack) == 1 and isinstance(error, TypeError) and re.search(r"required positional argument", str(error)):
        return (
            f"The model takes more than one input ({user_error(error)}), and an audit hands it one: the records, "
            f"float32 {['n', *shape]}. Wrap it in a module whose forward(x) makes the others itself."
        ).replace("'n'", "n")
    path, layer, inputs = stack[-1] if stack else ("", None, ())
    own = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
    where = f"layer {path!r}, {_short(layer)}" if path else "the model" if layer is None else _short(layer)
    cure = None if own is None or layer is None else _cure(layer, own, x)
    if cure is not None and own is not None:
        return f"The model cannot take a record of shape {shape}: {where}, gets {_words(own)}. {cure}"
    batch = re.match(r"shape '\[\d+, .*is invalid for input of size", str(error))
    hint = " A pass may hold any number of records: write x.flatten(1), or x.view(len(x), -1)." if batch else ""
    gets = "" if own is None or not path else f", in {where}, which gets {_words(own)}"
    return (
        f"The model cannot take a record of shape {shape}: {user_error(error)}{gets}. Its forward is called with "
        f"float32 inputs {['n', *shape]} and must return one tensor of logits.{hint}"
    ).replace("'n'", "n")


def _cure(layer: nn.Module, own: Tensor, x: Tensor) -> str | None:
    """What to change where a layer's settings and its input contradict each other; None where they do not."""
    if isinstance(layer, nn.Embedding):
        return _ids(layer, own)
    if isinstance(layer, nn.Linear) and own.shape[-1] != layer.in_features:
        flat = math.prod(own.shape[1:])
        if own.dim() > 2 and flat == layer.in_features:
            return "A flattening is missing before it: put nn.Flatten() there, or x = x.flatten(1) in forward."
        if own.dim() > 2:
            return f"Flatten before it (nn.Flatten()) and set in_features={flat}, if it is to see the whole record."
        return f"Set its in_features to {own.shape[-1]}, or check that these are the records it was made for."
    if isinstance(layer, CONVOLUTIONS):
        return _channels(layer, own, x)
    if isinstance(layer, nn.RNNBase):
        return _steps(layer, own, x)
    if isinstance(layer, NORMS) and own.dim() > 1 and own.shape[1] != layer.num_features:
        return f"Set its num_features to {own.shape[1]}, which is how many channels come in."
    return None


def _ids(layer: nn.Embedding, own: Tensor) -> str | None:
    if own.is_floating_point():
        return (
            "An embedding looks up whole numbers, and records are handed over as float32: write .long() there in "
            "forward, as in self.embedding(x.long())."
        )
    low, high = int(own.min()), int(own.max())
    if low >= 0 and high < layer.num_embeddings:
        return None
    return (
        f"Its vocabulary has {layer.num_embeddings} entries (ids 0 to {layer.num_embeddings - 1}) and the ids run from "
        f"{low} to {high}: "
        + ("make it larger" if low >= 0 else "ids start at 0")
        + ", or check that tokens were numbered as in training."
    )


def _channels(layer: nn.Module, own: Tensor, x: Tensor) -> str | None:
    sides = len(layer.kernel_size)  # type: ignore[arg-type]  # a convolution's, which CONVOLUTIONS does not tell mypy
    wanted = layer.in_channels
    if own.dim() != sides + 2:
        if own is x or own.dim() == 2:
            return (
                f"It takes [n, {wanted}, {', '.join(['size'] * sides)}]: give the records in that shape, or reshape "
                "them at the start of forward (x.view)."
            )
        return f"It takes {sides + 2} dimensions, [n, {wanted}, {', '.join(['size'] * sides)}]."
    if own.shape[1] == wanted:
        return None
    if own.shape[-1] == wanted:
        return "The channels stand last: move them, as in x.movedim(-1, 1), in the records or at the start of forward."
    if wanted == 3 and own.shape[1] == 1:
        return (
            "The records are grey and it takes 3 channels: build it with in_channels=1, or repeat the channel at the "
            "start of forward (x.expand(-1, 3, -1, -1))."
        )
    return f"Set its in_channels to {own.shape[1]}, or check that these are the records it was made for."


def _steps(layer: nn.RNNBase, own: Tensor, x: Tensor) -> str | None:
    if own.dim() == 4 and own.shape[1] == 1 and own.shape[-1] == layer.input_size:
        return (
            "An array [n, steps, features] is read as images of one channel, [n, 1, steps, features]: write "
            "x.squeeze(1) at the start of forward."
        )
    if own.dim() > 3:
        return f"It takes [n, steps, {layer.input_size}]: reshape its input in forward."
    if own.shape[-1] != layer.input_size:
        hint = "; for one number a step write x.unsqueeze(-1) and input_size=1" if own.dim() == 2 else ""
        return f"Set its input_size to {own.shape[-1]}, or check that these are the records it was made for{hint}."
    return None


def _short(layer: nn.Module | None) -> str:
    text = repr(layer).split("\n", 1)[0]
    return text if layer is not None and not list(layer.children()) and len(text) < 90 else type(layer).__name__


def _words(own: Tensor) -> str:
    kind = "" if own.dtype == torch.float32 else f"{str(own.dtype).removeprefix('torch.')} "
    return f"{kind}{['n', *own.shape[1:]]}".replace("'n'", "n")
