"""Transfer (Papernot et al. 2016, arXiv:1605.07277): adversarial inputs of the uncompressed parent, replayed."""

from __future__ import annotations

import math
from typing import Literal

from ...targets.errors import NotApplicable
from ..attack import Access, Case
from .engine import PERTURBERS, Perturber, Search


@PERTURBERS.register
class Transfer(Perturber):
    """Adversarial inputs crafted on the uncompressed parent, replayed on the deployed model (one query a record).

    It replays `Case.parent_adversarial` (see `pgd.craft`), which is made once per parent for all its candidates.
    """

    kind: Literal["transfer"] = "transfer"

    @property
    def access(self) -> Access:
        return Access.LABELS

    def why_not(self, case: Case) -> str | None:
        if case.parent is not None and (case.parent is case.twin or case.parent is case.native):
            return "the dense model is its own parent"
        if not case.parent_adversarial:
            return "there are no adversarial inputs of an uncompressed parent (a dense model is its own parent)"
        return None

    def perturb(self, search: Search, case: Case) -> None:
        crafted = case.parent_adversarial.get(search.ball.epsilon)
        if crafted is None:
            raise NotApplicable(f"nothing was crafted on the parent at epsilon {search.ball.epsilon:g}")
        search.query(crafted.to(search.ball.center.device)[search.active], math.nan)
