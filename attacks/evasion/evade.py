"""Evasion as a call: adversarial inputs for one model and some records, without a plan, a store or a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ...targets.data.records import Records
from ...targets.errors import NotApplicable
from ...targets.model import BATCH, Target, device_of, records_at_once
from ...targets.seeds import derive
from ..access import Access, Flag, Ledger
from . import trust
from .ascent.losses import Goal, margins, reached
from .black_box.square import Square
from .blocks import COPIES, seek
from .call.allowed import checked_records, limits_of, region_of
from .call.approach import approach
from .call.attackable import Attackable, attackable, case_of
from .call.doubts import ROUNDING, Hope, cliff, differ, flags_of_part, varies
from .engine import Perturber
from .gradient.apgd import Apgd
from .gradient.apgd_targeted import ApgdTargeted
from .gradient.diversified import Diversified
from .gradient.pgd import Pgd
from .nearest.found import Distance, norms

Budget = Literal["quick", "standard", "thorough"]

PARTS: dict[Budget, tuple[Perturber, ...]] = {
    "quick": (Pgd(steps=20, loss="margin"),),
    "standard": (
        Pgd(steps=20),
        ApgdTargeted(steps=20, classes=5),
        Diversified(steps=10, restarts=10),
        Square(queries=200),
    ),
    "thorough": (
        Pgd(steps=20, loss="margin"),
        Diversified(steps=20, restarts=200),
        Square(queries=100, label="square-first"),
        Apgd(steps=50, restarts=3),
        Apgd(steps=50, restarts=3, loss="dlr", label="apgd-dlr"),
        Square(queries=5000),
    ),
}
# Of a search for the nearest input: steps, and how many classes are tried one by one as well.
STEPS: dict[Budget, tuple[int, int]] = {"quick": (50, 0), "standard": (100, 3), "thorough": (300, 9)}


@dataclass(frozen=True, eq=False)
class Evaded:
    """What `evade` found, n records each, on the device of `x`.

    Args:
        adversarial: float32 [n, *shape], inside the allowed set: what fooled the model, or else came closest to it.
        success: bool [n]: the model itself answers it as the attacker wants.
        distance: float64 [n], from the record, in the norm asked for and in x's own units; infinite without success.
        parts: by part of the attack, bool [n]: what it fooled of what those before it had left.
        flags: why failures may say little (`attacks.access.Flag`), by part, and under `all` for the whole.
        ledger: forward and backward passes through gradients, and queries of the model, all in records.
    """

    adversarial: Tensor
    success: Tensor
    distance: Tensor
    parts: dict[str, Tensor]
    flags: dict[str, list[str]]
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def queries(self) -> int:
        """Records that the model answered."""
        return self.ledger.queries

    def __repr__(self) -> str:
        found, n = int(self.success.sum()), len(self.success)
        raised = sorted({flag for flags in self.flags.values() for flag in flags})
        doubts = f", flags: {', '.join(raised)}" if raised else ""
        return f"<Evaded: {found} of {n} records, {self.queries} queries{doubts}>"


def evade(
    target: nn.Module | Path | str | bytes | Target | Attackable,
    x: Tensor,
    y: Tensor,
    *,
    norm: Distance = "linf",
    epsilon: float | None = None,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
    target_class: int | Tensor | None = None,
    budget: Budget = "standard",
    parts: Sequence[Perturber] | None = None,
    seed: int = 0,
) -> Evaded:
    """Looks for adversarial inputs near records, and asks the model itself about each.

    ```python
    >>> import torch
    >>> from crushproof import evade
    >>> _ = torch.manual_seed(0)
    >>> net, x = torch.nn.Linear(4, 3), torch.rand(20, 4)
    >>> evade(net, x, net(x).argmax(1), epsilon=0.3, budget="quick").success.float().mean() > 0.5
    tensor(True)

    ```

    Args:
        target: see `attackable`.
        x: float32 [n, *shape], clean records; y: int64 [n], their classes.
        norm: of the distance; "l0" counts the elements that differ. epsilon: the largest one, in x's own units. None:
            the nearest input that can be found; with limits for each element (tensors) any input within them.
        lower, upper: what an input may be, with epsilon as well: one number, or float32 broadcastable to x for every
            element of every record (L-inf only). Kept to the bit. Left out: 0 and 1, where x lies within.
        target_class: the class to reach, for all or for each record; None: any but the record's own.
        budget: how hard to try, see `PARTS`; parts: instead of those of the budget. A `step_size` of theirs counts in
            widths of what an element may be, of which the radius is half (in an L2 ball, in widths of the bounds).
        seed: what is drawn for a record follows from it and from the record's place.

    Raises:
        InputError: shapes do not fit, a record lies outside of the limits, or a number is none.
        NotApplicable: no part can attack this target.
    """
    x, y = checked_records(x, y)
    opened = attackable(target, tuple(x.shape[1:]))
    device = x.device if opened.twin is None else device_of(opened.twin, x.device)
    limits = limits_of(x.to(device), lower, upper)
    nearest = norm in ("l1", "l0") or (epsilon is None and max(limit.numel() for limit in limits) == 1)
    region = region_of(x.to(device), norm, epsilon, *limits, any_within=nearest)
    goal: Goal = "untargeted" if target_class is None else "targeted"
    wanted = (y if target_class is None else torch.as_tensor(target_class).to(torch.int64).expand(len(y))).to(device)
    case = case_of(opened, Records(region.center, wanted))
    ledger = Ledger(queries=len(x))
    answers = opened.deployed.logits(region.center)
    success = reached(answers, wanted, goal).cpu()
    best, found_by, flags = region.center.cpu().clone(), dict[str, Tensor](), dict[str, list[str]]()
    hope, weak = Hope(len(x)), True
    skipped, white = [], success.clone()
    modules = () if opened.twin is None else (opened.twin,)
    batch = records_at_once(region.center[:1], *modules, copies=COPIES) if modules else BATCH

    def margin(inputs: Tensor, rows: Tensor) -> Tensor:
        ledger.queries += len(rows)
        return margins(opened.deployed.logits(inputs.to(wanted.device)), wanted[rows.to(wanted.device)], goal).cpu()

    for part in PARTS[budget] if parts is None else parts:
        if (reason := part.why_not(case)) is not None:
            skipped.append(f"{part.part}: {reason}")
            continue
        left, seeds = ~success & ~hope.lost, derive(seed, "evade", part.part)
        try:
            found = seek(
                part,
                case,
                case.evaluation,
                case.ids,
                region,
                among=left,
                seed=seeds,
                ledger=ledger,
                batch=batch,
                goal=goal,
            )
        except NotApplicable as error:
            skipped.append(f"{part.part}: {error}")
            continue
        closest = found.fooled if found_by else ~success
        best[closest] = found.best[closest]
        success, found_by[part.part] = success | found.fooled, found.fooled
        flags[part.part] = flags_of_part(part, found, len(x))
        hope.learn(part, found, margin)
        if part.access is Access.WHITE_BOX:
            white |= found.fooled
            weak &= trust.too_weak(part.model_dump(), region.epsilon)
    if nearest and (found_by or opened.twin is not None):
        inputs, reaches = approach(
            opened.deployed,
            opened.twin,
            region.center,
            wanted,
            goal,
            limits,
            norm,
            best.to(device),
            success.to(device),
            steps=STEPS[budget][0],
            classes=STEPS[budget][1],
            batch=batch,
            ledger=ledger,
        )
        best, found_by["nearest"] = inputs.cpu(), reaches.cpu() & ~success
        success = success | found_by["nearest"]
        white |= found_by["nearest"] if opened.twin is not None else False
    if not found_by:
        raise NotApplicable("no part of the attack can run: " + "; ".join(skipped))
    inputs = best.to(region.center.device)
    logits = opened.deployed.logits(inputs)
    ledger.queries += len(x)
    again = (reached(logits, wanted, goal) & region.contains(inputs)).cpu()
    off = margins(logits, wanted, goal).cpu() > ROUNDING * logits.abs().amax(1).cpu()
    raised = {Flag.ANSWERS_VARY: bool((success & ~again & off).any()) or varies(opened.deployed, region.center, ledger)}
    if opened.twin is None:
        raised[Flag.NO_WHITE_BOX] = True
    else:
        raised[Flag.WEAK_ATTACK] = weak
        raised[Flag.TWIN_DISAGREES] = differ(opened.twin, region.center, answers, ledger)
        raised[Flag.BLACK_BOX_WINS] = trust.beats(success.numpy(), white.numpy())
        if epsilon is not None:
            nearby = epsilon / 2 if norm == "linf" else epsilon / 2 / region.center[0].numel() ** 0.5
            raised[Flag.MARGIN_CLIFF] = cliff(opened.twin, region.center, limits, nearby, seed, ledger)
    flags["all"] = sorted(str(flag) for flag in raised if raised[flag])
    distance = norms(best.double() - x.cpu().double(), norm)
    success = success & again & ((distance <= epsilon) if epsilon is not None else True)
    distance = torch.where(success, distance, torch.inf)
    raised_by = {part: some for part, some in flags.items() if some}
    return Evaded(best.to(x.device), success.to(x.device), distance.to(x.device), found_by, raised_by, ledger)
