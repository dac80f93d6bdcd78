"""Does a model answer a record the same whatever else it is asked? Every figure of an audit takes that for granted."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Target

ASKED = 48  # records, at most
ALONE = 8  # of them, that are also asked one at a time
SAME = 1e-4  # of the logits' spread: an identical call of a deterministic runtime repeats its answer to the bit
# Among other records kernels round otherwise, and now and then a quantised file takes the next code. The answers vary
# when more than this share of the records moves by more than so much of the spread:
MOVED = ((0.05, 0.02), (0.5, 0.003))


def variation(target: Target, x: Tensor, together: Tensor | None = None) -> str | None:
    """A sentence on how the answers vary, or None where they do not.

    The records are asked twice, then in reverse order, then one at a time. Randomness and a state that is kept show in
    the first; a state, statistics over the batch, or a batch taken for an axis of time in the others.

    Args:
        x: float32 [n, *shape], n >= 2; the first 48 are asked.
        together: its answers to all n, asked in large batches, where they are known; or to the first of them.

    Raises:
        InputError: the records do not fit the model.
    """
    x = x[:ASKED]
    answers = target.logits(x)
    spread = max(float(answers.double().std()), 1e-6)

    def moved(others: Tensor, limit: float) -> Tensor:
        return (others - answers[: len(others)]).abs().flatten(1).amax(1) > limit * spread

    again = int(moved(target.logits(x), SAME).sum())
    if again:
        return (
            f"Asked the same twice, it answers otherwise for {again} of {len(x)} records: it keeps a state between "
            "calls or draws random numbers. Its figures follow from the order of the questions; export it in "
            "evaluation mode and without a state."
        )
    reverse = target.logits(x.flip(0)).flip(0)
    alone = torch.cat([target.logits(one[None]) for one in x[:ALONE]])
    for others in (reverse, alone, *([] if together is None else [together[: len(x)]])):
        counts = [int(moved(others, limit).sum()) for _, limit in MOVED]
        if any(count > share * len(others) for count, (share, _) in zip(counts, MOVED, strict=True)):
            count = max(counts)
            return (
                f"Among other records, it answers otherwise for {count} of {len(others)}: records that are asked "
                "together change each other's answers (statistics over the batch, or a batch taken for an axis of "
                "time). Its figures follow from who else asks; export it in evaluation mode, its first axis the batch."
            )
    return None
