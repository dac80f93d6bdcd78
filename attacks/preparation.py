"""What an attack declares before anything runs: its runs, the shared work they need, and what it may ask about.

Whoever schedules an audit makes each of these a piece of work that is done once, stored and reused; in a notebook they
can be computed by hand, with any object that answers as `Inputs` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from ..compression.recipe import Recipe
from ..targets.data.data import Data
from ..targets.form import Form
from ..targets.model import Target
from ..targets.technique import Technique
from ..training.architecture import Architecture
from ..training.privacy import PrivacyClaim
from ..training.trainer import Trainer
from .case import Case, Evidence
from .effort import UNKNOWN, Effort

OTHERWISE = 0.005  # of the records, or one: another batch adds up in another order


class Trained(Protocol):
    """A dense model as an attacker knows it: how it is built and trained."""

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> Architecture: ...
    @property
    def trainer(self) -> Trainer: ...
    @property
    def hardened(self) -> Technique | None:
        """The defense in its training."""

    @property
    def promise(self) -> Any:
        """What decides what is promised of its training, as a JSON value; None: nothing is."""

    def privacy(self, records: int) -> PrivacyClaim | None:
        """The promise of its training on so many records, which may take seconds to work out; None: there is none.

        Raises:
            NotApplicable: it cannot be made for so many.
        """

    def side_by_side(self, device: torch.device) -> int:
        """How many models like it are trained as one piece of work: a fixed rule, never a timing."""

    def stacks(self, device: torch.device) -> tuple[int, int]:
        """That number, and how many models like it have a recipe's trainings as one piece of work."""


class Audited(Protocol):
    """One model under attack, as far as an attack needs to know it before it runs."""

    @property
    def name(self) -> str: ...
    @property
    def parent(self) -> Trained | None:
        """The dense model it came from, or that it is; None where none is known."""

    @property
    def is_dense(self) -> bool: ...
    @property
    def recipe(self) -> Recipe | None:
        """How it was compressed; None for a dense model, and for a file that does not say."""

    @property
    def draws(self) -> tuple[Recipe, ...]:
        """A random recipe's other draws, beside the one that ships."""

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the models it is compared with, its own parent first."""

    @property
    def undeclared(self) -> bool:
        """Whether it is a file that somebody compressed and that does not say how."""

    @property
    def void(self) -> str | None:
        """Why a promise of its training's defense no longer holds, in a sentence; None: it holds, or there is none."""


@dataclass(frozen=True)
class Scope:
    """The audit an attack is part of.

    Args:
        label: what this attack's findings are called: its kind, numbered where a kind occurs twice.
        seed: of the whole audit.
        training_free, trained: how many shadow models to train, for what replays without training and for what trains.
        models: all that are audited, by name; the dense ones first.
        shadow_notes: what to know about training like the dense model was trained.
        shadows_differ: whether it is known, or must be assumed, that such training is not the dense model's own.
        device: where models are trained.
        runtimes: in which the models are to be run too, beside ONNX Runtime: by label, what sentences call them.
        released: names of the models that are to be released together.
    """

    label: str
    data: Data
    seed: int
    training_free: int
    trained: int
    models: Mapping[str, Audited]
    shadow_notes: tuple[str, ...] = ()
    shadows_differ: bool = False
    device: str = "cpu"
    runtimes: Mapping[str, str] = field(default_factory=dict)
    released: tuple[str, ...] = ()

    @property
    def reference(self) -> Audited:
        """The plain dense model, or the first candidate where there is none."""
        return next(iter(self.models.values()))

    def compared_with(self, baseline: str) -> list[str]:
        """Names of the models whose change is measured against this one."""
        return [name for name, other in self.models.items() if baseline in other.baselines]


@dataclass(frozen=True)
class Prepared:
    """What a preparation gave: named arrays and a JSON document."""

    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Basis:
    """What evidence was made from besides the model's answers, as far as that is stored too.

    Args:
        prepared: gives what `Case.prepared` was.
        twin_agrees: as in `Case`.
        correct: bool [non-members], which the deployed model classifies right; None: it is no classifier, or answers
            otherwise each time.
    """

    prepared: Callable[[], object]
    twin_agrees: bool
    correct: np.ndarray[Any, np.dtype[np.bool_]] | None = None

    def contradicted(self, ids: np.ndarray[Any, Any], low: np.ndarray[Any, Any], high: np.ndarray[Any, Any]) -> bool:
        """Whether records would have to be right, or wrong, that the model was found to classify otherwise.

        Args:
            ids: of non-members.
            low, high: bool [n], what is right at least, and at most.
        """
        if self.correct is None:
            return False
        right = self.correct[ids]
        return int(((low & ~right) | (right & ~high)).sum()) > max(1, OTHERWISE * len(ids))


@dataclass(frozen=True)
class Deployed:
    """Need: a case against this model, as it ships."""

    model: str


@dataclass(frozen=True)
class Weights:
    """Need: the trained module of this dense model."""

    dense: str


@dataclass(frozen=True)
class Elsewhere:
    """Need: this model in another runtime, by its label in `Scope.runtimes`."""

    model: str
    runtime: str


@dataclass(frozen=True)
class Ran:
    """Need: the evidence of a run of the same attack on this model."""

    model: str
    detail: str = ""


class Preparation(ABC):
    """Shared work: a frozen dataclass whose fields decide the result, besides data and seed.

    Two preparations of one name are the same work.
    """

    phase: ClassVar[str]  # what its time is booked under

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique in an audit, for people: `radius/linf`."""

    @property
    @abstractmethod
    def identity(self) -> Any:
        """What decides its result besides data, seed and needs, as a JSON value."""

    @property
    def words(self) -> str:
        """What it is for, for people who do not know the name; empty: the name says it."""
        return ""

    @property
    def sharing(self) -> Any:
        """The identity of all whose finished parts it takes over: its own, where it shares with none."""
        return self.identity

    @property
    def effort(self) -> Effort:
        """About what it costs."""
        return UNKNOWN

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """The techniques it applies: their settings and code decide its result too."""
        return ()

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def form(self, scope: Scope) -> Form:
        """What its result looks like: one that is stored and looks otherwise is computed anew. Open by default."""
        return Form()

    @abstractmethod
    def compute(self, inputs: Inputs) -> Prepared:
        """Does the work.

        Raises:
            NotApplicable: it cannot be done here; the message says why.
        """


Need = Preparation | Deployed | Elsewhere | Weights | Ran


class Inputs(Protocol):
    """What a preparation or a run is handed: of each need it named, the result."""

    @property
    def scope(self) -> Scope: ...
    @property
    def device(self) -> torch.device: ...
    def case(self, model: str) -> Case: ...
    def deployed(self, model: str) -> Target:
        """As `case` has it, where nothing else of the case is looked at."""

    def twin(self, model: str) -> nn.Module | None:
        """As `case` has it, likewise."""

    def elsewhere(self, model: str, runtime: str) -> Target: ...
    def weights(self, dense: str) -> nn.Module: ...
    def prepared(self, preparation: Preparation) -> Prepared: ...
    def evidence(self, ran: Ran) -> Evidence: ...


class Results(Protocol):
    """What the runs of an attack gave; None where one did not finish or did not apply."""

    @property
    def scope(self) -> Scope: ...
    @property
    def model(self) -> Audited: ...
    @property
    def level(self) -> float:
        """Of the intervals, such that those of all rounds of the attack hold together with 95 %."""

    def evidence(self, ran: Ran) -> Evidence | None: ...
    def why(self, ran: Ran) -> str:
        """The reason why `evidence` gave None."""

    def prepared(self, preparation: Preparation) -> Prepared | None: ...
    def flags(self, model: str) -> set[str]:
        """What makes every figure of this model doubtful, as `Flag` values."""

    def agreement(self, model: str) -> dict[str, tuple[float, int]]:
        """On which share of how many inputs twin and deployed model give the same label, by kind of inputs."""

    def without_twin(self, model: str) -> str | None:
        """Why this model has no differentiable twin; None: it has one."""
