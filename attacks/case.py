"""What an attack is handed, and what it hands back: a case, and evidence per record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..targets.data.records import Bounds, Records
from ..targets.data.structure import PLAIN, Structure
from ..targets.interface.assumptions import Assumptions
from ..targets.model import Target
from .access import Ledger


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
        bounds: of an input; epsilon counts in units of [0, 1] and is scaled by `bounds.scale`. They also say which
            values stay as they are and which are whole numbers, as `structure` has it.
        twin_agrees: the certificate's label agreement is at least 99.5 %.
        structure: what the features are where they are no plain numbers, as declared.
        shipped: the bytes of the file; empty where they are not at hand.
        assumptions: how that file's input and output are read, where it is one that somebody else made.
        prepared: what `Run.prepare` made of the shared work, of a type that the attack knows; None: nothing.
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
    twin_agrees: bool = True
    structure: Structure = PLAIN
    shipped: bytes = field(default=b"", repr=False)
    assumptions: Assumptions | None = None
    prepared: Any = None


@dataclass
class Evidence:
    """What an attack measured, per record, before any statistics.

    Args:
        arrays: one numpy array per name; the attack's docstring documents names and shapes. On `adversarial`, float32
            [n, *shape], where there is such an array, the agreement of twin and deployed model is measured as well.
        summary: JSON values; the attack's docstring documents the keys.
        flags: trust flags by the part of the attack they belong to ("pgd", "square", ...), as `Flag` values.
        skipped: parts that did not run, each with its reason.
        agreement: share of the labels on which twin and deployed model agree on `adversarial`; None: not measured.
    """

    arrays: dict[str, np.ndarray[Any, Any]]
    summary: dict[str, Any]
    flags: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    agreement: float | None = None
