"""Who takes part in an audit: the dense models (plain and hardened), and every candidate made from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from ...attacks.attack import Attack, Task
from ...compression.recipe import RECIPES
from ...compression.words import spelled
from ...defenses.chain import parse_defenses, steps_of
from ...defenses.defense import CompressionDefense, TrainingDefense
from ...targets.errors import InputError, NotApplicable, user_error
from ...targets.runtimes.runtime import RUNTIMES, Runtime
from ...training.architecture import Architecture
from ..plan.plan import DENSE, Plan
from ..plan.presets import attacks_of
from ..plan.sections import CandidatePlan
from ..subject.audited import AuditedModel, Candidate, DenseModel, FinishedFile
from ..subject.resolve import Subject

T = TypeVar("T", Attack, Runtime)


@dataclass(frozen=True)
class Lineup:
    dense: tuple[DenseModel, ...]  # the plain one first
    candidates: tuple[Candidate | FinishedFile, ...]  # in the plan's order
    attacks: tuple[tuple[Attack, str], ...]  # each with the label its findings carry
    runtimes: tuple[tuple[Runtime, str], ...]  # the plan's other runtimes, labelled as attacks are

    @cached_property
    def models(self) -> dict[str, AuditedModel]:
        """All that are deployed and attacked, by name; the dense ones first."""
        return {model.name: model for model in (*self.dense, *self.candidates)}

    @cached_property
    def runtime_phrases(self) -> dict[str, str]:
        """What sentences call the plan's other runtimes, by label, which tells one of several of a kind from others."""
        return {
            label: runtime.phrase if label == runtime.kind else f"{runtime.phrase} ({label})"
            for runtime, label in self.runtimes
        }


def assemble(plan: Plan, subject: Subject) -> Lineup:
    """Resolves the plan's recipes, defenses and attacks.

    Raises:
        InputError: an unknown or ill-defined technique, named with its candidate.
    """
    dense = {} if subject.model is None else {DENSE: subject.model}
    candidates = []
    for name, entry in plan.candidates.items():
        try:
            candidates.append(_candidate(name, entry, subject, dense))
        except (InputError, NotApplicable) as error:
            raise InputError(f"Candidate {name!r}: {error}") from None
        except Exception as error:
            if entry.defense is None:
                raise
            why = user_error(error)  # of the defense's own code, perhaps another package's
            raise InputError(f"Candidate {name!r}: the defense {entry.defense!r} cannot harden it: {why}") from error
    runtimes = [RUNTIMES.parse(one) for one in plan.runtimes]
    private = [model for model in dense.values() if model.hardened is not None and model.hardened.private]
    attacks = attacks_of(plan.attacks, subject.data, promised=bool(private), claimed=plan.claims is not None)
    return Lineup(tuple(dense.values()), tuple(candidates), _labelled(attacks), _labelled(runtimes))


def _candidate(
    name: str, entry: CandidatePlan, subject: Subject, dense: dict[str, DenseModel]
) -> Candidate | FinishedFile:
    """One candidate; `dense` gains the hardened model it comes from."""
    recipe = None if entry.recipe is None else RECIPES.parse(spelled(entry.recipe))
    defense = None if entry.defense is None else parse_defenses(entry.defense)
    parent = subject.model
    if name in subject.files:
        return FinishedFile(name, subject.files[name], parent, recipe, entry.control)
    if recipe is None:
        raise InputError(f"defense {entry.defense!r} hardens a recipe, and there is none.")
    assert parent is not None, "the plan's validator asks for a dense model"
    draws = [recipe]
    for step in steps_of(defense):
        if _task(subject) not in step.tasks:
            raise InputError(f"the defense {step.kind} is one of classifiers: leave it out.")
        if isinstance(step, TrainingDefense):
            parent = _hardened(step, parent, subject, dense)
        elif isinstance(step, CompressionDefense):
            draws = [made for draw in draws for made in step.recipes(draw)]
    return Candidate(name, parent, draws[0], defense, entry.control, tuple(draws[1:]), entry.deploy)


def _task(subject: Subject) -> Task:
    return Task.REGRESSION if subject.data.regression else Task.CLASSIFICATION


def _labelled(techniques: list[T]) -> tuple[tuple[T, str], ...]:
    """Each technique with its kind, numbered where a kind occurs twice."""
    labelled: list[tuple[T, str]] = []
    kinds = {technique.kind for technique in techniques}
    for technique in techniques:
        labelled.append((technique, numbered(technique.kind, [label for _, label in labelled], kinds)))
    return tuple(labelled)


def numbered(name: str, taken: Collection[str], reserved: Collection[str] = ()) -> str:
    """`name`, or `name-2`, `name-3` ... when it is taken: the first that is neither `taken` nor another's own name."""
    number, free = 2, name
    while free in taken or (free != name and free in reserved):
        free, number = f"{name}-{number}", number + 1
    return free


def _hardened(
    defense: TrainingDefense, plain: DenseModel, subject: Subject, dense: dict[str, DenseModel]
) -> DenseModel:
    """One hardened dense model per distinct defense; a second of the same kind gets a number."""
    for known in dense.values():
        if known.hardened == defense:
            return known
    name = numbered(f"{DENSE}-{defense.kind}", dense)
    architecture = Architecture(
        f"{plain.architecture.name}|{defense.kind}", lambda: defense.adapt(plain.architecture.build())
    )
    trainer = defense.trained_on(subject.data, plain.trainer)
    dense[name] = replace(
        plain,
        name=name,
        architecture=architecture,
        trainer=trainer,
        hardened=defense,
        state=None,
        file=None,
        undefended=plain.architecture,
        claim=None,
        together=subject.together.get(name),
    )
    return dense[name]
