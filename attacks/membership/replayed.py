"""Shadow models compressed as a candidate was, once, and what follows from them: margins, and what else is seen."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...compression.recipe import Recipe, TrainingRecipe
from ...targets.errors import failing_as_not_applicable
from ...targets.form import Array, Arrays, Document, Form, Layout, require
from ...targets.steps import kept, pulse
from ...targets.technique import Technique
from ...training.lessons import State, remembering, together
from ...training.stacked import GROUP
from ..effort import Effort, retraining
from ..preparation import Audited, Inputs, Need, Preparation, Prepared, Scope, Trained
from .preparations import FEWEST, ShadowModels, population_of, shadow_count
from .signals import phi_of_shadow, replay, settled, works

KEPT = 2**28  # bytes a shadow: what is stored at most of the trainings that a recipe took on it


UNFIT = "the shadow models cannot be compressed as the candidate was"
LEFT = re.compile(r"left/\d{1,9}/\d{4}/.+")


@dataclass(frozen=True)
class ReplayedShadows(Preparation):
    """Shadows [first, last) of a population, compressed as a candidate was, and their margins on the attacked records.

    They are as many as a recipe is replayed on at once, and wait for no other shadow models than themselves (and the
    first, whose sizes a recipe gives to all).

    Arrays: `phi` float32 [k, n]; where the data has records to forget, f of them, none of which any shadow was trained
    on, `forgotten` float32 [k, f]. And `left/<shadow>/<training>/<parameter>`, what each training of the recipe left:
    whoever looks at the compressed shadows again (`modules`) does all but the trainings anew, and none of those. On the
    disk that takes a shadow's weights for each of its trainings, in memory those of the shadows in this piece. Where it
    would be more than `KEPT` a shadow it is not stored, and who looks again trains again.
    """

    phase: ClassVar[str] = "signals"
    parent: Trained
    recipe: Recipe | None
    chunks: tuple[ShadowModels, ...]
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"replays/{self.parent.name}/{told_apart(self.recipe)}/{self.first}"

    @property
    def words(self) -> str:
        which = f"model {self.first + 1}" if self.last - self.first == 1 else f"models {self.first + 1} to {self.last}"
        how = "" if self.recipe is None else f"compressing ({self.recipe.phrase}) and "
        return f"{how}asking shadow {which} of {self.parent.name}"

    @property
    def identity(self) -> Any:
        return [self.first, self.last]

    @property
    def effort(self) -> Effort:
        count = self.last - self.first
        return Effort(seconds=0.2 * count, trainings=count * retraining(self.recipe, self.parent.trainer))

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return () if self.recipe is None else (self.recipe,)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.chunks

    def compute(self, inputs: Inputs) -> Prepared:
        left: dict[int, list[State]] = {shadow: [] for shadow in range(self.first, self.last)}
        forgotten = inputs.scope.data.forgotten
        asked = {"phi": population_of(inputs.scope).targets} | ({} if forgotten is None else {"forgotten": forgotten})
        rows: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in asked}
        with failing_as_not_applicable(UNFIT):
            for module in self._compressed(inputs, left):
                for name, records in asked.items():
                    rows[name].append(phi_of_shadow(module, records))
        states = {
            f"left/{shadow}/{training:04}/{name}": array
            for shadow, own in left.items()
            for training, state in enumerate(own)
            for name, array in state.items()
        }
        few = sum(one.nbytes for one in states.values()) <= KEPT * len(left)
        return Prepared({name: np.stack(found) for name, found in rows.items()} | (states if few else {}))

    def modules(self, inputs: Inputs) -> Iterator[nn.Module]:
        """The compressed shadows; `inputs` has what was prepared, and what that was prepared from (`needs`)."""
        left: dict[int, list[State]] = {shadow: [] for shadow in range(self.first, self.last)}
        arrays = inputs.prepared(self).arrays
        for shadow, training, name in sorted(tuple(one.split("/", 3)[1:]) for one in arrays if LEFT.fullmatch(one)):
            states = left[int(shadow)]
            states += [{}] if int(training) == len(states) else []
            states[-1][name] = arrays[f"left/{shadow}/{training}/{name}"]
        return self._compressed(inputs, left)

    def _compressed(self, inputs: Inputs, left: Mapping[int, list[State]]) -> Iterator[nn.Module]:
        """Args: left: what trainings left by shadow, as `remembering` has it."""
        population, bounds, recipe = population_of(inputs.scope), inputs.scope.data.bounds, self.recipe
        shadows = range(self.first, self.last)
        if recipe is not None:
            recipe = settled(population, self.chunks[0].modules(inputs, [0])[0], recipe, bounds)
        if recipe is not None and recipe.trains:
            trained = {at: one for chunk in self.chunks for at, one in chunk.modules(inputs, shadows).items()}
            modules = [trained[shadow] for shadow in shadows]
            at_work = works(population, modules, first=self.first, recipe=recipe, bounds=bounds)
            yield from together([remembering(work, left[at]) for at, work in zip(shadows, at_work, strict=True)])
            return
        for chunk in self.chunks:
            for shadow, module in chunk.modules(inputs, shadows).items():  # one at a time: the records are many
                pulse("shadow", shadow - self.first, len(shadows))
                one = [module]
                if recipe is not None:
                    one = replay(population, one, first=shadow, recipe=recipe, bounds=bounds)
                yield from one

    def form(self, scope: Scope) -> Form:
        def holds(document: Any, arrays: Arrays, files: Any) -> None:
            odd = [name for name in arrays if name not in known and not LEFT.fullmatch(name)]
            require(not odd, f"it has an array {odd[0][:80] if odd else ''!r} that nobody reads")

        known = margins_of(scope, self.last - self.first)
        return Form(Document, {**known, "*": Array(finite=False)}, holds=holds)


def margins_of(scope: Scope, shadows: int) -> dict[str, Array]:
    """What so many shadows say."""
    forgotten = scope.data.forgotten
    counts = {"phi": population_of(scope).attacked}
    counts |= {} if forgotten is None else {"forgotten": len(forgotten)}
    return {name: Array("float32", (shadows, count), finite=False) for name, count in counts.items()}


@dataclass(frozen=True)
class SignalsOfShadows(Preparation):
    """What each shadow, compressed by the recipe as the candidate was, says of the attacked records.

    Arrays: `inside` bool [k, n], and the margins of `ReplayedShadows`.
    """

    phase: ClassVar[str] = "signals"
    parent: Trained
    recipe: Recipe | None
    replays: tuple[ReplayedShadows, ...]
    count: int

    @property
    def name(self) -> str:
        return f"signals/{self.parent.name}/{told_apart(self.recipe)}"

    @property
    def words(self) -> str:
        return f"answers of {self.which}"

    @property
    def which(self) -> str:
        """The shadows in a phrase."""
        how = "" if self.recipe is None else f", compressed ({self.recipe.phrase})"
        return f"the shadow models of {self.parent.name}{how}"

    @property
    def identity(self) -> Any:
        return [self.count]

    @property
    def effort(self) -> Effort:
        return Effort(seconds=0.01)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.replays

    def compute(self, inputs: Inputs) -> Prepared:
        rows: dict[str, list[np.ndarray[Any, Any]]] = {}
        for piece in self.replays:
            pulse("shadow", piece.first, self.count)
            for name, array in self.told(piece, inputs).items():
                rows.setdefault(name, []).append(array)
        told = {name: np.concatenate(arrays) for name, arrays in rows.items()}
        return Prepared({"inside": population_of(inputs.scope).inside[: self.count], **told})

    def told(self, piece: ReplayedShadows, inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
        """What is kept of some shadows: a row each in every array."""
        arrays = inputs.prepared(piece).arrays
        return {name: arrays[name] for name in self.telling(inputs.scope, 1)}

    def telling(self, scope: Scope, shadows: int) -> dict[str, Array]:
        """What `told` looks like of so many shadows."""
        return margins_of(scope, shadows)

    def form(self, scope: Scope) -> Form:
        def holds(document: Any, arrays: Arrays, files: Any) -> None:
            inside = population_of(scope).inside[: self.count]
            require(np.array_equal(arrays["inside"], inside), "inside is not who was inside")

        def layout(document: Any) -> Layout:
            shape = (self.count, population_of(scope).attacked)
            return {"inside": Array("bool", shape), **self.telling(scope, self.count)}

        return Form(Document, layout, holds=holds)


@dataclass(frozen=True)
class LookedAtShadows(SignalsOfShadows):
    """As `SignalsOfShadows`, of something else that the compressed shadows tell."""

    @property
    def effort(self) -> Effort:
        return Effort(seconds=0.2 * self.count)

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(dict.fromkeys([*self.replays, *(chunk for piece in self.replays for chunk in piece.chunks)]))

    def told(self, piece: ReplayedShadows, inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
        count, form = piece.last - piece.first, self.telling(inputs.scope, piece.last - piece.first)
        # A part is what was trained together: a smaller stack rounds its sums in another order.
        part = f"shadow {piece.first}" if count == 1 else f"shadows {piece.first} to {piece.last - 1}"
        with failing_as_not_applicable(UNFIT):
            return kept(part, lambda: self.seen(piece.modules(inputs), inputs), form)

    @abstractmethod
    def seen(self, modules: Iterable[nn.Module], inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
        """What is seen in some compressed shadows: a row each in every array."""


def signals_of(scope: Scope, parent: Trained | None, recipe: Recipe | None) -> SignalsOfShadows | None:
    """The shadows of a parent, as many as any model that came from it asks for; this one uses the first of them.

    None: nobody knows how it was trained, or the plan trains none for it.
    """
    count = shadow_count(scope, parent, recipe)
    if parent is None or not count:
        return None
    family = [model for model in scope.models.values() if model.parent is not None and model.parent.name == parent.name]
    most = max(shadow_count(scope, parent, one) for one in [recipe, None, *(model.recipe for model in family)])
    device = torch.device(scope.device)
    size = parent.side_by_side(device)
    chunks = tuple(ShadowModels(parent, first, min(first + size, most)) for first in range(0, count, size))
    return SignalsOfShadows(parent, recipe, replays_of(parent, recipe, chunks, count, device), count)


def own_signals(model: Audited, scope: Scope) -> SignalsOfShadows | None:
    """Of shadows compressed as the model is; None: nobody knows how it was trained, or the plan has too few for it."""
    signals = signals_of(scope, model.parent, model.recipe)
    return None if signals is None or signals.count < FEWEST else signals


def replays_of(
    parent: Trained, recipe: Recipe | None, chunks: Sequence[ShadowModels], count: int, device: torch.device
) -> tuple[ReplayedShadows, ...]:
    """A recipe on the first `count` of the shadows in `chunks`, piece by piece.

    One that trains small modules has its trainings stacked; where it trains others, a shadow is a piece of its own.
    """
    size, pieces = GROUP, list[ReplayedShadows]()
    if recipe is not None and recipe.trains:
        size = parent.stacks(device)[1] if isinstance(recipe, TrainingRecipe) else 1
    for first in range(0, count, size):
        last = min(first + size, count)
        read = [one for one in chunks if one.first < last and one.last > first]
        read = read if recipe is None or read[0] is chunks[0] else [chunks[0], *read]
        pieces.append(ReplayedShadows(parent, recipe, tuple(read), first, last))
    return tuple(pieces)


def told_apart(recipe: Recipe | None) -> str:
    """What tells work with one recipe from that with another, in a name."""
    if recipe is None:
        return "dense"
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]
