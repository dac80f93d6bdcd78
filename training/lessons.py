"""Trainings that a longer piece of work asks for, so that several such pieces can have theirs done side by side.

A piece of work is a generator: it yields a `Lesson` wherever it needs a module trained, is sent the trained module and
returns its result. `alone` runs one; `together` runs several in step, and trains what they ask for as one stack where
the fixed rule of `group_size` says so. A model trained in a stack is the one trained alone, up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.model import device_of
from .adversarial import objective_of
from .loop import Objective, Training, rate, rule, train_stack
from .per_record import RecordLosses, label_losses
from .private_steps import refuse_mixing, train_privately
from .stacked import group_size

RECORD_BYTES = 2**28  # what the records of a stack may take together: each lesson brings its own


@dataclass(frozen=True, eq=False)
class Lesson:
    """One training.

    Args:
        module: on its device; it becomes the trained one.
        taught: float32 [n, outputs], what a teacher says of the records; for `objective`.
        objective: makes the objective of a stack from what its teachers say, row by row as the loop's records (nothing,
            [0], where nobody teaches); None: the plain one. It is the same for equal `setting`s.
        setting: what decides `objective`, a value that can be compared.
        by_record: the objective asks each record alone, as it is, what the model answers: it can be private.
        after_step: called after each step with the module's parameters by name, each float32 [1, *shape]; views, to be
            changed in place.
        nonzero: float32 like a parameter, by its name: where it is 0 the parameter is set to 0 after each step.
    """

    module: nn.Module
    records: Records
    training: Training
    seed: int
    taught: Tensor | None = None
    objective: Callable[[Tensor], Objective] | None = None
    setting: Any = None
    after_step: Callable[[Mapping[str, Tensor]], None] | None = None
    nonzero: Mapping[str, Tensor] = field(default_factory=dict)
    by_record: bool = False


Work = Generator[Lesson, nn.Module, nn.Module]

State = dict[str, np.ndarray[Any, Any]]
"""A trained module's parameters and buffers by name."""


def remembering(work: Work, left: list[State]) -> Work:
    """The work, whose first trainings are known from what they `left`; others are asked for, and added to it.

    So whoever keeps the list has the result again without any training, to the bit.

    Raises:
        ValueError: a state in the list is not of the module that was to be trained.
    """
    try:
        lesson = next(work)
        for number in count():
            if number == len(left):
                trained = yield lesson
                left.append({name: one.detach().cpu().numpy().copy() for name, one in _values(trained).items()})
            else:
                trained = _with(lesson.module, left[number])
            lesson = work.send(trained)
    except StopIteration as ended:
        result: nn.Module = ended.value
    return result


def _values(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def _with(module: nn.Module, state: State) -> nn.Module:
    """The module with these values, in evaluation mode."""
    values = _values(module.eval())
    if {name: tuple(one.shape) for name, one in values.items()} != {name: one.shape for name, one in state.items()}:
        raise ValueError("what a training left is of another module")
    for name, value in values.items():
        value.copy_(torch.from_numpy(np.array(state[name])))
    return module


def fine_tuning(
    module: nn.Module,
    records: Records,
    training: Training,
    bounds: Bounds,
    seed: int,
    nonzero: Mapping[str, Tensor] | None = None,
) -> Lesson:
    """More of a training on the records themselves, which `training.adversarial` perturbs within `bounds`."""
    objective = objective_of(training, bounds)
    if objective is None:
        return Lesson(module, records, training, seed, nonzero=nonzero or {})
    setting = tuple(bounds.low.flatten().tolist()), tuple(bounds.high.flatten().tolist())
    return Lesson(module, records, training, seed, None, lambda _: objective, setting, nonzero=nonzero or {})


def alone(work: Work) -> nn.Module:
    """What the work returns."""
    return together([work])[0]


def together(works: Sequence[Work]) -> list[nn.Module]:
    """What each work returns; those that ask for like trainings have them side by side.

    Memory: the records of up to `GROUP` lessons at once, at most `RECORD_BYTES`, and that many times the activations
    and the state of one training.
    """
    results: dict[int, nn.Module] = {}
    asked: dict[int, Lesson] = {}

    def go_on(position: int, trained: nn.Module | None) -> None:
        try:
            asked[position] = next(works[position]) if trained is None else works[position].send(trained)
        except StopIteration as ended:
            results[position] = ended.value

    for position in range(len(works)):
        go_on(position, None)
    while asked:
        now, asked = asked, {}
        for group in _groups(now):
            for position, module in zip(group, _trained([now[one] for one in group]), strict=True):
                go_on(position, module)
    return [results[position] for position in range(len(works))]


def _groups(lessons: Mapping[int, Lesson]) -> list[list[int]]:
    """Which of them, by position, are trained side by side: those of one structure, setting and number of records."""
    alike: dict[Any, list[int]] = {}
    for position, lesson in lessons.items():
        alike.setdefault(_likeness(lesson), []).append(position)
    groups = []
    for positions in alike.values():
        first = lessons[positions[0]]
        size = group_size(first.module, first.training.batch_size, first.records.x.device)
        held = first.records.x.element_size() * max(1, first.records.x.numel())
        size = max(1, min(size, RECORD_BYTES // held))
        groups += [positions[start : start + size] for start in range(0, len(positions), size)]
    return groups


def _likeness(lesson: Lesson) -> Any:
    """What lessons of one stack have in common; constants that a layer keeps beside its weights are compared too."""
    constants = tuple(
        (path, type(layer), tuple(sorted((k, repr(v)) for k, v in vars(layer).items() if _is_constant(k, v))))
        for path, layer in lesson.module.named_modules()
    )
    shapes = tuple((name, value.shape, value.dtype) for name, value in lesson.module.state_dict().items())
    frozen = tuple(parameter.requires_grad for parameter in lesson.module.parameters())
    teaching = None if lesson.taught is None else lesson.taught.shape
    records = lesson.records.x.shape, lesson.records.y.dtype
    after = lesson.after_step is None, tuple(lesson.nonzero)
    return constants, shapes, frozen, records, teaching, lesson.training, lesson.setting, after


def _is_constant(name: str, value: object) -> bool:
    return not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | None)


def _trained(lessons: Sequence[Lesson]) -> list[nn.Module]:
    """Their modules, trained, in evaluation mode."""
    if lessons[0].training.private is not None:
        return [_privately(lesson) for lesson in lessons]
    try:
        return _stacked(lessons)
    except RuntimeError as error:
        if len(lessons) == 1 or "vmap" not in str(error):
            raise
        return [_stacked([lesson])[0] for lesson in lessons]  # a forward that looks at values cannot be batched


def _privately(lesson: Lesson) -> nn.Module:
    """By DP-SGD, with the training's own rule and rates.

    Raises:
        NotApplicable: the module mixes records, or the lesson has an objective of its own.
    """
    training, module = lesson.training, lesson.module
    assert training.private is not None
    records = lesson.records.to(device_of(module))
    losses: RecordLosses = label_losses
    if lesson.objective is not None:
        if not lesson.by_record or lesson.taught is None:
            raise NotApplicable("This training has an objective of its own, which cannot be private here.")
        records, losses = _told_apart(records, lesson.objective(lesson.taught))
    refuse_mixing(module)
    cost = training.noised(len(lesson.records))
    assert cost is not None
    train_privately(
        [module],
        records,
        [torch.arange(len(records))],
        [lesson.seed],
        sampling_rate=cost.sampling_rate,
        steps=cost.steps,
        noise_multiplier=cost.noise_multiplier,
        max_gradient_norm=training.private.max_gradient_norm,
        learning_rate=lambda step: rate(training, step, cost.steps),
        optimizer=lambda parameters: rule(training, parameters),
        after_step=_after_step([lesson]),
        losses=losses,
    )
    return module.eval()


def _told_apart(records: Records, objective: Objective) -> tuple[Records, RecordLosses]:
    """The records with their positions for labels, and the objective's losses by those."""

    def losses(logits: Tensor, index: Tensor) -> Tensor:
        return objective(lambda x: x, logits[None], records.y[index][None], index[None], ())[0]

    return Records(records.x, torch.arange(len(records), device=records.y.device)), losses


def _stacked(lessons: Sequence[Lesson]) -> list[nn.Module]:
    first, modules = lessons[0], [lesson.module for lesson in lessons]
    count = len(first.records)
    records = first.records
    if len(lessons) > 1:
        parts = [lesson.records for lesson in lessons]
        records = Records(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    taught = [lesson.taught for lesson in lessons if lesson.taught is not None]
    after_step = _after_step(lessons)
    train_stack(
        modules,
        records,
        [torch.arange(position * count, (position + 1) * count) for position in range(len(lessons))],
        [lesson.seed for lesson in lessons],
        first.training,
        objective=None if first.objective is None else first.objective(torch.cat(taught or [torch.zeros(0)])),
        after_step=None if after_step is None else lambda stack: after_step(stack.named_parameters()),
    )
    return modules


def _after_step(lessons: Sequence[Lesson]) -> Callable[[Mapping[str, Tensor]], None] | None:
    """What all of them do after a step, to parameters by name, float32 [lessons, *shape]; None: nothing."""
    nonzero = {name: torch.stack([lesson.nonzero[name] for lesson in lessons]) for name in lessons[0].nonzero}
    if not nonzero and lessons[0].after_step is None:
        return None

    def after_step(parameters: Mapping[str, Tensor]) -> None:
        for name, mask in nonzero.items():
            parameters[name].mul_(mask)
        for at, lesson in enumerate(lessons):
            if lesson.after_step is not None:
                lesson.after_step({name: value[at : at + 1] for name, value in parameters.items()})

    return after_step
