"""Transfer (Papernot et al. 2016, arXiv:1605.07277): adversarial inputs of the uncompressed parent, replayed."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor

from ....targets.data.records import Records
from ....targets.errors import NotApplicable
from ....targets.model import Target
from ....training.ball import Ball
from ...access import Access
from ...case import Case
from ..case import prepared_for
from ..engine import PERTURBERS, Perturber, Search


@PERTURBERS.register
class Transfer(Perturber):
    """Adversarial inputs crafted on the uncompressed parent, replayed on the deployed model (one query a record).

    It replays `EvasionInputs.parent_adversarial` (see `pgd.craft`), made once per parent for all its candidates.
    """

    kind: Literal["transfer"] = "transfer"
    uses_parent: ClassVar[bool] = True

    @property
    def access(self) -> Access:
        return Access.LABELS

    def why_not(self, case: Case) -> str | None:
        if case.parent is not None and (case.parent is case.twin or case.parent is case.native):
            return "the dense model is its own parent"
        if not prepared_for(case).parent_adversarial:
            return "there are no adversarial inputs of an uncompressed parent (a dense model is its own parent)"
        return None

    def perturb(self, search: Search, case: Case) -> None:
        crafted = prepared_for(case).parent_adversarial.get(search.ball.epsilon)
        if crafted is None:
            raise NotApplicable(f"nothing was crafted on the parent at epsilon {search.ball.epsilon:g}")
        search.query(crafted[search.positions.to(crafted.device)].to(search.ball.center.device), math.nan)


def replayed(target: Target, inputs: Tensor, records: Records, ball: Ball) -> Tensor:
    """bool [n]: the records that inputs [n, *shape] crafted elsewhere fool on the target; clean errors count."""
    wrong = target.logits(records.x).argmax(1) != records.y
    device = wrong.device
    fooled = (target.logits(inputs.to(records.x.device)).argmax(1) != records.y) & ball.contains(inputs.to(device))
    return wrong | fooled
