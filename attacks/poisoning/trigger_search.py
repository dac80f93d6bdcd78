"""What attacks that look for triggers have in common: their settings, whom they are for, and whom they ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ...targets.data.data import Data
from ...targets.errors import NotApplicable
from ...targets.model import Target, TorchTarget, device_of
from ...targets.seeds import generator
from ..access import Ledger
from ..attack import Attack
from ..case import Case
from ..effort import FORWARD
from ..evasion.categories import without_ball
from ..preparation import Scope
from .inversion import BATCH, CHECK, FINALISTS, HEATS, KINDS, STEPS, Inverted, Kind, invert

FEWEST = 8  # records to invert a trigger on
SMALLEST = 4  # pixels of an image's side


class TriggerSearch(Attack):
    """Triggers found by gradients, class by class, on records of the attacker's own."""

    kinds: tuple[Kind, ...] = Field(
        KINDS, min_length=1, description="of triggers: patch, a few pixels; blended, all of the image a little"
    )
    own: int = Field(24, ge=FEWEST, le=10_000, description="the attacker's own records, to invert triggers on")
    steps: int = Field(STEPS, ge=10, le=100_000, description="of gradient descent, for all classes at once")
    classes: int = Field(32, ge=2, le=10_000, description="that are looked at, at most; drawn by the seed")
    records: int = Field(300, ge=1, le=10_000_000, description="evaluation records that triggers are put on, at most")

    def unfit(self, scope: Scope) -> str | None:
        data = scope.data
        if len(data.shape) < 3 or min(data.shape[-2:]) < SMALLEST or data.structure.tokens:
            return "no images"
        if len(data.attacker) < FEWEST:
            return "no records of the attacker's own"
        return "inputs that are no pixels" if without_ball(data) else None

    def usual(self, data: Data) -> bool:
        return len(data.shape) >= 3

    def passes(self, classes: int, *, beside: bool, times: int = 1) -> float:
        """Gradients, records times passes, of one search in one model, or in a model and the one beside it.

        Args:
            times: so many times the steps.
        """
        looks = FORWARD * self.own * self.steps / CHECK
        every = min(self.classes, classes)
        sought = 2 * (HEATS * every + (1 - HEATS) * min(FINALISTS, every)) if beside else every
        return times * (BATCH * self.steps + looks) * len(self.kinds) * sought

    def targets(self, case: Case, seed: int) -> Tensor:
        """int64 [c], ascending: the classes that are looked at.

        Raises:
            NotApplicable: the inputs are no images.
        """
        shape = tuple(case.evaluation.x.shape[1:])
        if len(shape) < 3 or min(shape[-2:]) < SMALLEST or case.bounds.held is not None or case.structure.tokens:
            raise NotApplicable("not applicable: a trigger lies on an image, and these inputs are none")
        return torch.randperm(case.classes, generator=generator(seed, "classes"))[: self.classes].sort().values

    def search(
        self,
        case: Case,
        deployed: Target,
        twin: nn.Module,
        parent: nn.Module | None,
        seed: int,
        ledger: Ledger,
        *,
        times: int = 1,
    ) -> tuple[list[Inverted], int]:
        """By kind what is found in a model beside its parent, if any, and on how many records.

        Args:
            times: so many times the steps, of which `early` is after the first.

        Raises:
            NotApplicable: the two answer hardly a record of the attacker's alike.
        """
        order = torch.randperm(len(case.attacker), generator=generator(seed, "own"))[: 4 * self.own]
        x = case.attacker.x[order.to(case.attacker.x.device)]
        y = deployed.logits(x).argmax(1)
        same = y == y if parent is None else TorchTarget(parent).logits(x).argmax(1) == y
        if int(same.sum()) < FEWEST:
            raise NotApplicable("not applicable: the two models answer hardly a record alike")
        device = device_of(twin, case.evaluation.x.device)
        x, y = x[same][: self.own].to(device), y[same][: self.own].to(device)
        targets = self.targets(case, seed).tolist()
        found = [
            invert(
                twin,
                parent,
                x,
                y,
                case.bounds,
                targets,
                kind,
                steps=self.steps,
                further=(times - 1) * self.steps,
                seed=seed,
                ledger=ledger,
            )
            for kind in self.kinds
        ]
        return found, len(x)


def answers(target: Target, x: Tensor, arrays: Mapping[str, np.ndarray[Any, Any]], prefix: str) -> dict[str, Any]:
    """`clean` int64 [n] and `triggered` int64 [s, n] of a model, with the triggers `mask` and `pattern` of arrays."""
    masks, patterns = (torch.from_numpy(np.array(arrays[name])) for name in ("mask", "pattern"))
    none = torch.zeros(len(masks))
    shown = Inverted(none, none, masks, patterns, none)
    found = [target.logits(one).argmax(1).cpu().numpy() for one in (x, *(shown.on(x, at) for at in range(len(masks))))]
    return {f"{prefix}clean": found[0], f"{prefix}triggered": np.stack(found[1:])}
