"""Several defenses of one candidate, each at a stage of its own: training, compression, its inputs, its answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SerializeAsAny

from ..attacks.attack import Attack
from ..targets.errors import InputError
from .defense import DEFENSES, STAGES, Defense


class DefenseChain(Defense):
    """What `chained` makes; a plan writes it as a list of defenses."""

    kind: str
    steps: tuple[SerializeAsAny[Defense], ...]

    def named(self) -> str:
        first, *rest = [step.named() for step in self.steps]
        return ", then ".join([first, *(name[:1].lower() + name[1:] for name in rest)])

    def phrase(self, statement: Mapping[str, Any]) -> str:
        return ", then ".join(step.phrase(statement) for step in self.steps)

    def adapted(self, attack: Attack) -> Attack:
        """The attack of whoever knows all of them: each step's own, made of the attack that knows the steps before."""
        for step in self.steps:
            knowing = step.adapted(attack)
            if not isinstance(knowing, Attack):
                raise InputError(
                    f"The defense {step.kind} gives no attack that knows it: {type(step).__name__}.adapted returns "
                    f"{type(knowing).__name__}."
                )
            attack = knowing
        return attack


def steps_of(defense: Defense | None) -> tuple[Defense, ...]:
    """The defenses it is made of, in the order in which they act."""
    if isinstance(defense, DefenseChain):
        return defense.steps
    return () if defense is None else (defense,)


def chained(defenses: Sequence[Defense]) -> Defense:
    """One defense of several, in the order of their stages, in which they act however they were listed.

    Raises:
        InputError: none, or two of one stage: which of them came first would be anybody's guess.
    """
    if not defenses:
        raise InputError("The list of defenses is empty: name one, or leave it out.")
    steps = sorted(defenses, key=lambda one: STAGES.index(one.stage))
    for one, other in itertools.pairwise(steps):
        if one.stage == other.stage:
            raise InputError(
                f"The defenses {one.kind} and {other.kind} both act on {one.stage}, and a chain takes one of each "
                f"({', '.join(STAGES)}): leave one of them out."
            )
    return steps[0] if len(steps) == 1 else DefenseChain(kind=" + ".join(one.kind for one in steps), steps=tuple(steps))


def parse_defenses(raw: Any) -> Defense:
    """A defense as a plan has it: a kind, a mapping with kind and its fields, or a list of such.

    Raises:
        InputError: unknown or ill-defined, or two of one stage.
    """
    return chained([DEFENSES.parse(one) for one in (raw if isinstance(raw, list | tuple) else [raw])])
