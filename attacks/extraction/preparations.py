"""The shared work of extraction: the copies of several models of one architecture, trained side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...targets.data.data import Data
from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.form import Array, Arrays, Count, Document, Form, Layout, require
from ...targets.seeds import derive
from ...targets.serving.query_streams import NONE
from ...training.architecture import Architecture, weights_layout
from ..access import Ledger
from ..effort import Effort
from ..preparation import Audited, Deployed, Inputs, Need, Preparation, Prepared, Scope, Trained
from .surrogate import surrogate_architecture
from .teaching import Answered, Attacker, Taught, question, teach
from .weights import with_state

TOGETHER = 4  # models, at most: where one of them changes, the copies of all are trained again
STACKED = 0.5  # of the time of copies that are trained one at a time
TRAINED = 2.0  # gradients of inputs that a record costs in training: weights and statistics of batches have some, too


class Copied(Document):
    """Of one model; `reason`: why there are no copies of it."""

    reason: str | None = None
    known: bool = False
    builtin: tuple[str, ...] = ()
    kept: str = ""
    forwards: Count = 0
    backwards: Count = 0
    queries: Count = 0


class AllCopied(Document):
    """`models`, in their order."""

    models: tuple[Copied, ...]


@dataclass(frozen=True)
class Copies(Preparation):
    """The copies of models that came from one dense model, or are it.

    A copy's weights depend on nothing but its own model, attacker and seed, whoever is beside it (`Tutor.alike`).

    Arrays, by the model's position p: `p/copy/<copy>/<parameter>` and `p/distances/<answers>` (`Answered.distances`).
    """

    phase: ClassVar[str] = "extraction"
    attacker: Attacker
    parent: Trained
    models: tuple[str, ...]

    @property
    def name(self) -> str:
        settings = json.dumps(self.attacker.identity, sort_keys=True).encode()
        return f"copies/{hashlib.sha256(settings).hexdigest()[:8]}/{self.models[0]}"

    @property
    def words(self) -> str:
        return f"training copies of {', '.join(self.models)}"

    @property
    def identity(self) -> Any:
        return [self.attacker.identity, self.parent.architecture.name, *self.models]

    @property
    def effort(self) -> Effort:
        gradients = STACKED * TRAINED * self.attacker.passes
        return Effort(answers=len(self.models) * self.attacker.asked, gradients=len(self.models) * gradients)

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(Deployed(model) for model in self.models)

    def compute(self, inputs: Inputs) -> Prepared:
        seed, reasons, answered = derive(inputs.scope.seed, "extraction"), dict[str, str](), dict[str, Answered]()
        for model in self.models:
            try:
                with failing_as_not_applicable("it cannot be asked"):
                    answered[model] = question(self.attacker, inputs.case(model), seed=seed)
            except NotApplicable as reason:  # one model's trouble is not another's
                reasons[model] = str(reason)
        taught = teach(self.attacker, answered, alike=True) if answered else {}
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        found = []
        for place, model in enumerate(self.models):
            if model in reasons:
                found.append(Copied(reason=reasons[model]))
                continue
            one = taught[model]
            found.append(Copied(known=one.known, builtin=tuple(one.builtin), kept=one.kept, **asdict(one.ledger)))
            for name, copy in one.copies.items():
                state = copy.state_dict().items()
                arrays |= {f"{place}/copy/{name}/{key}": value.detach().cpu().numpy() for key, value in state}
            arrays |= {f"{place}/distances/{answers}": value for answers, value in one.distances.items()}
        return Prepared(arrays, AllCopied(models=tuple(found)).model_dump(mode="json"))

    def form(self, scope: Scope) -> Form:
        def layout(document: AllCopied) -> Layout:
            return {
                f"{place}/{name}": array
                for place, one in enumerate(document.models[: len(self.models)])
                if one.reason is None
                for name, array in self._layout(one, scope.data).items()
            }

        def holds(document: AllCopied, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(len(document.models) == len(self.models), "it has copies of other models")
            copied = [one for one in document.models if one.reason is None]
            require(all(one.kept in self.attacker.queries for one in copied), "a copy is kept that there is not")

        return Form(AllCopied, layout, holds=holds)

    def _layout(self, found: Copied, data: Data) -> Layout:
        arrays = {f"distances/{answers}": Array("float32", (None,), low=NONE) for answers, _ in self.attacker.budgets}
        for name in self.attacker.queries:
            own = weights_layout(self.architecture(name, found, data))
            arrays |= {f"copy/{name}/{parameter}": array for parameter, array in own.items()}
        return arrays

    def architecture(self, name: str, found: Copied, data: Data) -> Architecture:
        """Of a copy."""
        if found.known and name not in found.builtin:
            return self.parent.architecture
        return surrogate_architecture(None, data.evaluation, data.classes)[0]

    def taught(self, model: str, inputs: Inputs) -> Taught:
        """What an attacker of this model has.

        Raises:
            NotApplicable: there are no copies of it.
        """
        place, prepared = self.models.index(model), inputs.prepared(self)
        found, data = Copied.model_validate(prepared.document["models"][place]), inputs.scope.data
        if found.reason is not None:
            raise NotApplicable(found.reason)
        copies = {
            name: with_state(
                self.architecture(name, found, data).blank().to(inputs.device),
                prepared.arrays,
                f"{place}/copy/{name}",
            )
            for name in self.attacker.queries
        }
        distances: dict[str, np.ndarray[Any, Any]] = {
            name: prepared.arrays[f"{place}/distances/{name}"] for name, _ in self.attacker.budgets
        }
        spent = Ledger(found.forwards, found.backwards, found.queries)
        return Taught(copies, list(found.builtin), found.kept, distances, found.known, ledger=spent)


def copies_with(attacker: Attacker, model: Audited, scope: Scope) -> Copies | None:
    """The copies of a model and of those beside it; None where they are trained with the attack on it.

    That is where nothing is won: its dense model is not known, or too large to be trained side by side. Models are put
    together in the plan's order, as many as their copies fill a stack.
    """
    parent = model.parent
    if parent is None:
        return None
    stack = parent.side_by_side(torch.device(scope.device))
    size = min(TOGETHER, (stack - 1) // (len(attacker.queries) - 1))
    if size < 2:
        return None
    family = [name for name, one in scope.models.items() if one.parent is not None and one.parent.name == parent.name]
    first = family.index(model.name) // size * size
    return Copies(attacker, parent, tuple(family[first : first + size]))
