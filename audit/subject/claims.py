"""What a plan claims of the dense model's training."""

from __future__ import annotations

from ...targets.data.data import Data
from ...targets.errors import InputError
from ...training.privacy import PrivacyClaim, PrivateStep
from ..plan.sections import ClaimsPlan


def claim_of(claims: ClaimsPlan | None, data: Data, step: PrivateStep | None) -> PrivacyClaim | None:
    """The claim as an audit puts it to the test; None: the plan makes none.

    Args:
        step: what `claims.step` names; None: it names none, or it is not at hand.

    Raises:
        InputError: its delta would allow to publish a whole record.
    """
    if claims is None:
        return None
    if data.members is not None and claims.delta >= 1 / len(data.members):
        raise InputError(
            f"claims.delta is {claims.delta:g}, and there are {len(data.members):,} training records: at 1 / "
            f"{len(data.members):,} and above, publishing a whole record would be allowed. Claim a smaller delta, at "
            "the epsilon that goes with it."
        )
    return PrivacyClaim(
        epsilon=claims.epsilon,
        delta=claims.delta,
        noise_multiplier=claims.noise_multiplier,
        sampling_rate=claims.sampling_rate,
        steps=claims.steps,
        step=step,
        stacked=claims.stacked,
    )
