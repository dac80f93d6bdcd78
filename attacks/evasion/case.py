"""What the evasion attack finds prepared: its radius, and inputs crafted on the model's parent."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..case import Case


@dataclass(frozen=True)
class EvasionInputs:
    """What is made once for several models.

    Args:
        radius: the gate's epsilon and the epsilons of its curve, where the attack leaves them open.
        parent_adversarial: inputs crafted on the parent, by epsilon: float32 like `Case.evaluation.x`; what transfer
            replays.
    """

    radius: tuple[float, tuple[float, ...]] | None = None
    parent_adversarial: dict[float, Tensor] = field(default_factory=dict)


def prepared_for(case: Case) -> EvasionInputs:
    """What was prepared for this case; nothing where nothing was."""
    return case.prepared if isinstance(case.prepared, EvasionInputs) else EvasionInputs()
