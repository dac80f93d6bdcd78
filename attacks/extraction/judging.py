"""What copies are worth, asked of the deployed model once they are finished: no attacker spends these queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...targets.model import TorchTarget
from ...targets.seeds import derive
from ...targets.serving.query_streams import shortest_distances
from ..access import Ledger
from ..case import Case
from ..evasion.gradient.pgd import craft

Arrays = dict[str, np.ndarray[Any, Any]]


def judge(
    case: Case,
    copies: Mapping[str, nn.Module],
    strongest: Sequence[str],
    ledger: Ledger,
    *,
    epsilon: float,
    steps: int,
    records: int,
    seed: int,
) -> tuple[Arrays, int]:
    """The evidence arrays, as `Extraction` has them, and how many answers of the deployed model they took.

    Args:
        strongest: names of the copies through which the deployed model is attacked.
        epsilon, steps: of PGD on the copy, L-inf in [0, 1] units.
        records: so many evaluation records are attacked, at most.
    """
    evaluation = case.evaluation
    truth = case.deployed.logits(evaluation.x).argmax(1)
    judging = len(evaluation)
    arrays: Arrays = {
        "ids": case.ids,
        "target_correct": (truth == evaluation.y).cpu().numpy(),
        "distances/honest": shortest_distances(evaluation.x, truth),
    }
    for name, module in copies.items():
        labels = TorchTarget(module).logits(evaluation.x).argmax(1)
        arrays[f"agrees/{name}"] = (labels == truth).cpu().numpy()
        arrays[f"copy_correct/{name}"] = (labels == evaluation.y).cpu().numpy()
    attacked = evaluation.take(torch.arange(min(records, len(evaluation))))
    held = case.bounds.held
    for name in () if held is not None and bool(held.all()) else strongest:  # no epsilon changes an id
        crafted = craft(
            copies[name],
            attacked,
            [epsilon],
            "linf",
            case.bounds,
            seed=derive(seed, "transfer"),
            steps=steps,
            ledger=ledger,
            name=f"transfer/{name}",
        )[epsilon]
        wrong = (case.deployed.logits(crafted).argmax(1) != attacked.y) | (truth != evaluation.y)[: len(attacked)]
        judging += len(attacked)
        arrays[f"transfer/{name}"] = wrong.cpu().numpy()
    return arrays, judging
