"""How a training perturbs the records that it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ..targets.technique import Technique
from .ball import Norm


class Perturbation(Technique):
    """Adversarial records in the loop of a training, found anew in every step."""

    method: Literal["pgd", "trades"] = Field(
        "pgd",
        description="pgd: learn the labels of the perturbed records (Madry et al. 2018, arXiv:1706.06083); trades: "
        "learn those of the clean ones, and to answer near them alike (Zhang et al. 2019, arXiv:1901.08573)",
    )
    norm: Norm = Field("linf", description="of the perturbation")
    epsilon: float = Field(0.1, gt=0, le=1, description="radius in [0, 1] units")
    steps: PositiveInt = Field(
        2,
        le=1000,
        description="ascents from a random start inside each training step; 1 is fast adversarial training (Wong et "
        "al. 2020, arXiv:2001.03994), which only the defense allows, since it checks what came of it",
    )
    step_size: PositiveFloat | None = Field(
        None,
        le=1000,
        description="in [0, 1] units; default: 2.5 * epsilon / steps, at most epsilon; of a single step 1.25 * epsilon",
    )
    beta: PositiveFloat = Field(
        6.0, le=1000, description="trades: weight of the divergence between clean and perturbed answers"
    )

    @property
    def size(self) -> float:
        """Of a step, in [0, 1] units."""
        longest = 1.25 if self.steps == 1 else 1.0
        return self.step_size or min(2.5 / self.steps, longest) * self.epsilon


def answering(metric: str, setting: Mapping[str, Any]) -> Perturbation | None:
    """How records are to be perturbed for a model that falls to an attack; None: no perturbation answers that figure.

    Args:
        metric: that was measured, e.g. robust_accuracy.
        setting: of the attack, e.g. norm and epsilon.
    """
    if metric != "robust_accuracy":
        return None
    try:
        return Perturbation.model_validate({name: setting[name] for name in ("norm", "epsilon")})
    except (KeyError, ValueError):  # tokens and tables are perturbed otherwise
        return None
