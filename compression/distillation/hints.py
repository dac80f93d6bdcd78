"""Feature hints: a student's features are led to its teacher's through a learned regressor (FitNets)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...targets.errors import NotApplicable
from ...targets.seeds import global_seed
from .student import Student, last_layer

Place = tuple[nn.Module, bool]
"""Where features are read: a layer, and whether its input (True) or its output is meant."""


class Hinted(nn.Module):
    """A student with a regressor per hint; its answer is [n, outputs + hinted features], side by side.

    One call gives both, so that the training loop needs to know nothing of hints.

    Args:
        student: float32 [n, *shape] -> [n, outputs].
        places: in `student`.
        regressors: from the student's features to the shape of the teacher's.
    """

    def __init__(self, student: nn.Module, places: Sequence[Place], regressors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.student, self.regressors = student, nn.ModuleList(regressors)
        self.places = list(places)

    def forward(self, x: Tensor) -> Tensor:
        with reading(self.places) as features:
            outputs = self.student(x)
        guesses = [regressor(value) for regressor, value in zip(self.regressors, features, strict=True)]
        return torch.cat([outputs, *(guess.flatten(1) for guess in guesses)], 1)


@contextmanager
def reading(places: Sequence[Place]) -> Iterator[list[Tensor]]:
    """Fills a list with the features at `places` during the one forward pass inside the block."""
    features: list[Any] = [None] * len(places)
    handles = []
    for position, (layer, before) in enumerate(places):

        def note(_: nn.Module, inputs: Any, output: Any, position: int = position, before: bool = before) -> None:
            features[position] = inputs[0] if before else output

        handles.append(layer.register_forward_hook(note))
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def hinted(
    student: nn.Module, teacher: nn.Module, names: Sequence[str], example: Tensor, seed: int
) -> tuple[Hinted, Callable[[Tensor], Tensor]]:
    """The student with its regressors, and the teacher's features as the student's guesses are laid out.

    Args:
        student: fresh, on the teacher's device.
        names: of layers whose outputs are hints, `teacher=student` where the names differ; empty: the input of the
            layer that gives the logits.
        example: float32 [n, *shape]; the regressors start from the mean of the teacher's features on it.

    Returns:
        the student, and a function from records float32 [n, *shape] to features float32 [n, features].

    Raises:
        NotApplicable: a name is not a layer of teacher and student, or no regressor leads from one to the other.
    """
    if names:
        pairs = [(name.partition("=")[0], name.partition("=")[2] or name) for name in names]
        ours = [(named(teacher, one, "teacher"), False) for one, _ in pairs]
        own = student.network if isinstance(student, Student) else student
        theirs = [(named(own, other, "student"), False) for _, other in pairs]
    else:
        ours, theirs = [(last_layer(teacher, example), True)], [(last_layer(student.eval(), example), True)]
    with torch.no_grad():
        with reading(ours) as wanted:
            teacher(example)
        with reading(theirs) as given:
            student.eval()(example)
    labels = names or ("the input of the last layer",)
    with global_seed(seed, "regressors"):
        regressors = [regressor(*each) for each in zip(given, wanted, labels, strict=True)]
    places = [value.shape[2:] for value in given]

    def targets(x: Tensor) -> Tensor:
        with torch.no_grad(), reading(ours) as features:
            teacher(x)
        return torch.cat([pooled(value, place).flatten(1) for value, place in zip(features, places, strict=True)], 1)

    return Hinted(student, theirs, regressors).to(example.device), targets


def named(module: nn.Module, name: str, whose: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise NotApplicable(f"The {whose} has no layer {name!r} for a hint.") from None


def regressor(student: Any, teacher: Any, label: str) -> nn.Module:
    """From the student's features to the teacher's: 1 x 1 over channels, or linear over features.

    Pictures of different sizes are compared at the student's: see `pooled`.
    """
    if not (isinstance(student, Tensor) and isinstance(teacher, Tensor) and student.dim() == teacher.dim() >= 2):
        raise NotApplicable(f"The features of teacher and student at {label} differ in kind; name another layer.")
    axis = 1 if student.dim() == 4 else -1
    if student.dim() == 4:
        layer: nn.Conv2d | nn.Linear = nn.Conv2d(student.shape[1], teacher.shape[1], 1)
    elif student.shape[1:-1] == teacher.shape[1:-1]:
        layer = nn.Linear(student.shape[-1], teacher.shape[-1])
    else:
        raise NotApplicable(f"The features of teacher and student at {label} differ in length; name another layer.")
    assert layer.bias is not None
    layer.bias.data.copy_(teacher.transpose(0, axis).flatten(1).mean(1))
    return layer


def pooled(features: Tensor, place: torch.Size) -> Tensor:
    """The teacher's pictures [n, channels, *pixels] averaged to the student's size; other features as they are."""
    if features.dim() != 4 or features.shape[2:] == place:
        return features
    return F.adaptive_avg_pool2d(features, (place[0], place[1]))
