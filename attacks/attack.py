"""What every attack is: data plus `run`, which turns a case into evidence per record."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from torch import nn
from torch.nn import Module

from ..targets.model import Target
from ..targets.records import Bounds, Records
from ..targets.technique import Registry, Technique


class Access(StrEnum):
    """What the attacker sees of the deployed model."""

    WHITE_BOX = "white-box"  # weights and gradients, through the twin
    SCORES = "scores"  # logits or probabilities of chosen inputs
    LABELS = "labels"  # the predicted class of chosen inputs


class Flag(StrEnum):
    """Why a measurement may be too optimistic. The report explains each in a sentence."""

    NO_GRADIENT = "no-gradient"  # missing, zero or non-finite gradients
    NO_WHITE_BOX = "no-white-box"  # the file has no twin: only its answers were used
    BLACK_BOX_WINS = "black-box-wins"  # a black-box attack or a transfer beats the white-box one
    UNBOUNDED_FAILS = "unbounded-fails"  # an unbounded attack does not bring the model to chance
    UNFINISHED = "unfinished-optimisation"
    TWIN_DISAGREES = "twin-disagrees"  # certificate below 99.5 % label agreement
    FEW_RECORDS = "few-records"
    FEW_SHADOWS = "few-shadows"
    NO_SHADOWS = "no-shadows"  # membership was attacked without shadow models
    AT_CHANCE = "at-chance"  # the model is no better than guessing: neither robust nor private
    DISTRIBUTION_SHIFT = "distribution-shift"  # a classifier that never sees the model tells members apart
    SHADOWS_DIFFER = "shadows-differ"  # the shadows are not (known to be) trained as the target was
    INTERFACE_DOUBTFUL = "interface-doubtful"  # a file fits better, or about as well, when asked otherwise
    BOUNDS_DOUBTFUL = "bounds-doubtful"  # epsilon counts in units of bounds that were guessed
    ANSWERS_VARY = "answers-vary"  # a record's answer depends on what else is asked, or on chance
    EPSILON_EXTREME = "epsilon-extreme"  # no radius was found at which the dense model keeps about half
    EPSILON_VOID = "epsilon-void"  # compression touched members after DP-SGD


@dataclass
class Ledger:
    """What an attack spent, in records: one forward or backward pass of one record counts one."""

    forwards: int = 0
    backwards: int = 0
    queries: int = 0  # asked of the deployed model

    def add(self, other: Ledger) -> None:
        self.forwards += other.forwards
        self.backwards += other.backwards
        self.queries += other.queries


@dataclass(frozen=True)
class ShadowSignals:
    """What one population of shadow models says of the attacked records.

    Args:
        inside: bool [k, n], record j was in the training set of shadow i (each record in half of the shadows).
        phi: float32 [k, n], the logit margin `z_y - logsumexp(z_others)` of shadow i on record j.
    """

    inside: np.ndarray[Any, np.dtype[np.bool_]]
    phi: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class MembershipCase:
    """The records of a membership audit, equal numbers of both sorts, and what shadow models say of them.

    Args:
        records: members first, then as many non-members.
        is_member: bool [n], the truth for the audited model.
        ids: int64 [n], indices into `Data.members` or `Data.non_members`.
        own: shadows compressed as the candidate was; None: the attacker has no shadow models.
        dense: uncompressed shadows; None when the candidate is the uncompressed model itself.
        blind: float64 [n], scores of a classifier that never asks a model, the same for all models of a population;
            None: the attack computes them.
    """

    records: Records
    is_member: np.ndarray[Any, np.dtype[np.bool_]]
    ids: np.ndarray[Any, np.dtype[np.int64]]
    own: ShadowSignals | None
    dense: ShadowSignals | None
    blind: np.ndarray[Any, np.dtype[np.float64]] | None = None


@dataclass(frozen=True)
class Case:
    """What an attacker may use against one deployed model. Which parts it does use is the attack's declared access.

    Args:
        deployed: the model as shipped; only its answers decide what counts as a success.
        twin: differentiable (straight-through at rounding) stand-in for `deployed`, in evaluation mode; None if there
            is none.
        native: the module with the true (possibly zero) gradients of the candidate; equals `twin` for float models.
        parent: the uncompressed model the candidate came from, as a torch module; None if unknown.
        evaluation: the records attacked; ids are their indices in `Data.non_members`.
        attacker: records the attacker owns (labels included), disjoint from `evaluation`.
        bounds: of an input; epsilon counts in units of [0, 1] and is scaled by `bounds.scale`.
        parent_adversarial: inputs crafted on the parent, by epsilon: float32 like evaluation.x; what transfer replays.
        twin_agrees: the certificate's label agreement is at least 99.5 %.
        membership: None when membership is not audited (no training records).
    """

    deployed: Target
    twin: nn.Module | None
    native: nn.Module | None
    parent: nn.Module | None
    evaluation: Records
    ids: np.ndarray[Any, np.dtype[np.int64]]
    attacker: Records
    bounds: Bounds
    classes: int
    parent_adversarial: dict[float, Any] = field(default_factory=dict)
    twin_agrees: bool = True
    membership: MembershipCase | None = None


@dataclass
class Evidence:
    """What an attack measured, per record, before any statistics.

    Args:
        arrays: one numpy array per name; the attack's docstring documents names and shapes.
        summary: JSON values; the attack's docstring documents the keys.
        flags: trust flags by the part of the attack they belong to ("pgd", "square", ...), as `Flag` values.
        skipped: parts that did not run, each with its reason.
    """

    arrays: dict[str, np.ndarray[Any, Any]]
    summary: dict[str, Any]
    flags: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)


class Attack(Technique):
    """One attack with its parameters."""

    kind: str
    risk: ClassVar[str]  # "evasion", "membership", "extraction", ...

    @abstractmethod
    def run(self, case: Case, *, seed: int) -> Evidence:
        """Attacks the case's deployed model.

        Raises:
            NotApplicable: this attack cannot run on this case; the message says why.
        """


ATTACKS: Registry[Attack] = Registry("attack", "crushproof.attacks", "crushproof.attacks")


def frozen_copy(module: Module) -> Module:
    """A deep copy in evaluation mode whose parameters need no gradient: what attacks differentiate inputs through."""
    import copy

    return copy.deepcopy(module).eval().requires_grad_(False)
