"""Records in blocks, which are kept as they are finished, and in batches, so that memory is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...targets.data.records import Records
from ...targets.form import Array, Layout, check_arrays
from ...targets.model import device_of, records_at_once
from ...targets.steps import Arrays, Check, kept, pulse, unchecked
from ..access import Ledger
from ..case import Case
from ..statistics.sequential import FIRST
from .ascent.gradients import followed
from .ascent.losses import Goal
from .ball import Region
from .engine import Perturber, Search

COPIES = 16  # of a record, that an attack holds at a time: its ball, best inputs, steps and gradients


def blocks(count: int) -> list[tuple[int, int]]:
    """[first, end) of the blocks that so many records are attacked in: they end where `looks` are, so that none is cut.

    The boundaries do not depend on the count, but for the last one, which is the count itself: an attack on more
    records finds the blocks of an earlier one on fewer as they were kept, if that ended at a boundary.
    """
    ends = [0]
    while ends[-1] < count:
        ends.append(min(count, 2 * ends[-1] or FIRST))
    return list(pairwise(ends))


SPENT = Array("int64", (3,), low=0)


def kept_at_cost(
    name: str, ledger: Ledger, compute: Callable[[Ledger], Arrays], form: Layout, check: Check = unchecked
) -> Arrays:
    """`targets.steps.kept` for work that costs passes and queries: they are entered in the ledger whoever did it.

    Args:
        compute: gives named arrays, and enters what it spends in the ledger it is handed. The name `spent` is taken.
        form, check: what a kept part looks like, and what else holds of it (or raises MisfitError).
    """

    def checked(found: Arrays) -> None:
        check_arrays(found, {**form, "spent": SPENT})
        check(found)

    def counted() -> Arrays:
        spent = Ledger()
        arrays = compute(spent)
        return {**arrays, "spent": np.array([spent.forwards, spent.backwards, spent.queries], dtype=np.int64)}

    arrays = kept(name, counted, checked)
    ledger.add(Ledger(*arrays["spent"].tolist()))
    return arrays


class Counter:
    """Tells how far an attack is, in records times whatever each of them goes through."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def add(self, records: int) -> None:
        self.done += records
        self.now(0.0)

    def now(self, more: float) -> None:
        """So many records more than are finished, in part."""
        pulse("attacked record", min(self.total, self.done + int(more)), self.total)


def at_once(case: Case) -> int:
    """How many records of a case an attack takes at a time; see `targets.model.records_at_once`."""
    modules = {id(module): module for module in (case.twin, case.native) if module is not None}
    return records_at_once(case.evaluation.x[:1], *modules.values(), copies=COPIES)


def followable(case: Case, parts: Iterable[Perturber]) -> Case:
    """The same case with copies of the modules that these parts differentiate, as they are (`followed`)."""
    x = case.evaluation.x[:1]
    wanted = {id(one): one for part in parts for one in part.differentiated(case) if one is not None and len(x)}
    copies = {key: followed(module, x.to(device_of(module, x.device))) for key, module in wanted.items()}
    twin, native, parent = (copies.get(id(module), module) for module in (case.twin, case.native, case.parent))
    return replace(case, twin=twin, native=native, parent=parent)


@dataclass(frozen=True)
class Sought:
    """What `seek` found, n records each, on the CPU: see the attributes of `Search`."""

    fooled: Tensor
    flat: Tensor
    found_at: Tensor
    best: Tensor
    margin: Tensor
    plateau: Tensor


def seek(
    part: Perturber,
    case: Case,
    records: Records,
    ids: np.ndarray[tuple[int], np.dtype[np.int64]],
    region: Region,
    *,
    among: Tensor,
    seed: int,
    ledger: Ledger,
    batch: int,
    goal: Goal = "untargeted",
    first: int = 0,
    from_center: bool = False,
    before: Tensor | None = None,
    counter: Counter | None = None,
) -> Sought:
    """One part at one epsilon, on batches of the records it has not fooled yet. Arguments as those of `Search`, and:

    Args:
        among: bool [n], on the CPU; before: float32 [n], there too.
        batch: inputs at a time (`at_once`).
        first: where the records begin among those of the case.
        counter: goes on by n.
    """
    n, device = len(records), records.x.device
    found = Sought(
        torch.zeros(n, dtype=torch.bool),
        torch.zeros(n, dtype=torch.bool),
        torch.full((n,), torch.nan),
        records.x.cpu().clone(),
        torch.full((n,), torch.inf),
        torch.zeros(n, dtype=torch.bool),
    )
    rows = among.nonzero().squeeze(1)
    if counter is not None:
        counter.add(n - len(rows))
    for some in rows.split(max(1, batch // part.together)) if len(rows) else ():
        taken = some.to(device)

        def told(progress: float, size: int = len(some)) -> None:
            if counter is not None and not math.isnan(progress):
                counter.now(progress * size)

        search = Search(
            part.asked(case),
            records.take(taken),
            ids[some.numpy()],
            region.take(taken),
            among=torch.ones(len(some), dtype=torch.bool, device=device),
            seed=seed,
            ledger=ledger,
            goal=goal,
            from_center=from_center,
            positions=first + taken,
            before=None if before is None else before[some].to(device),
            told=told,
        )
        part.perturb(search, case)
        search.close()
        found.fooled[some], found.flat[some] = search.fooled.cpu(), search.flat.cpu()
        found.found_at[some], found.best[some] = search.found_at, search.best.cpu()
        found.margin[some], found.plateau[some] = search.margin.cpu(), search.plateau.cpu()
        if counter is not None:
            counter.add(len(some))
    return found
