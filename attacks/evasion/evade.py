"""Evasion as a call: adversarial inputs for one model and some records, without a plan, a store or a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import InputError, NotApplicable
from ...targets.interface.assumptions import Assumptions
from ...targets.interface.finished_model import Differentiable, deployed
from ...targets.model import BATCH, Target, TorchTarget, device_of, frozen_copy, records_at_once
from ...targets.seeds import derive
from ...targets.temporary import scratch
from ...targets.twin.twin import twin_of
from ...targets.untrusted.model_file import read_model_file
from ..access import Access, Flag, Ledger
from ..case import Case
from . import trust
from .ascent.losses import Goal, reached
from .ball import Ball, Box, Norm, Region
from .black_box.square import Square
from .blocks import COPIES, Sought, seek
from .engine import Perturber
from .gradient.apgd import Apgd
from .gradient.diversified import Diversified
from .gradient.pgd import Pgd

Budget = Literal["quick", "standard", "thorough"]

PARTS: dict[Budget, tuple[Perturber, ...]] = {
    "quick": (Pgd(steps=20, loss="margin"),),
    "standard": (
        Pgd(steps=20, loss="margin"),
        Apgd(steps=20, restarts=2),
        Diversified(steps=20, restarts=10),
        Square(queries=200),
    ),
    "thorough": (
        Pgd(steps=20, loss="margin"),
        Apgd(steps=50, restarts=3),
        Apgd(steps=50, restarts=3, loss="dlr", label="apgd-dlr"),
        Diversified(steps=20, restarts=200),
        Square(queries=5000),
    ),
}


@dataclass(frozen=True, eq=False)
class Evaded:
    """What `evade` found, n records each, on the device of `x`.

    Args:
        adversarial: float32 [n, *shape], inside the allowed set: what fooled the model, or else came closest to it.
        success: bool [n]: the model itself answers it as the attacker wants.
        distance: float64 [n], from the record, in the norm asked for and in x's own units; infinite without success.
        parts: by part of the attack, bool [n]: what it fooled of what those before it had left.
        flags: by part, why its failures may say little (`attacks.access.Flag`).
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


@dataclass(frozen=True, eq=False)
class Attackable:
    """A model as `evade` asks it, to be opened once for many calls (`attackable`).

    Args:
        deployed: whose answers decide.
        twin: whose gradients are followed; None: only answers are used.
    """

    deployed: Target
    twin: nn.Module | None


def attackable(target: nn.Module | Path | str | bytes | Target | Attackable, shape: tuple[int, ...]) -> Attackable:
    """What can be attacked of a model.

    Args:
        target: a torch module (copied, in evaluation mode); an ONNX or TFLite file, or the bytes of one, run by its
            runtime and followed through its twin; or anything with `logits`, of which only answers are used.
        shape: of a record. A file may take the same values in another shape.

    Raises:
        InputError, UnsafeInput: the file is refused (`targets.untrusted.model_file.read_model_file`).
    """
    if isinstance(target, Attackable):
        return target
    if isinstance(target, nn.Module):
        module = frozen_copy(target)
        return Attackable(TorchTarget(module), module)
    if isinstance(target, bytes):
        with scratch() as folder:
            path = folder / "model"
            path.write_bytes(target)
            return attackable(path, shape)
    if not isinstance(target, str | Path):
        return Attackable(target, None)
    file = read_model_file(Path(target), shape)
    declared = file.facts.inputs[0].shape[1:]
    record = tuple(size for size in declared if isinstance(size, int))
    assumptions = Assumptions(record=record if len(record) == len(declared) else shape)
    twin = None
    if file.kind == "onnx":
        with suppress(NotApplicable):  # an operator that has no twin
            twin = Differentiable(twin_of(file.checked), assumptions).eval()
    return Attackable(deployed(file, assumptions), twin)


def evade(
    target: nn.Module | Path | str | bytes | Target | Attackable,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
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
        norm: of the distance; epsilon: the largest one, in x's own units. None: `lower` and `upper` are all there is.
        lower, upper: what an input may be, with epsilon as well: one number, or float32 broadcastable to x for every
            element of every record (L-inf only). Kept to the bit. Left out: 0 and 1, where x lies within.
        target_class: the class to reach, for all or for each record; None: any but the record's own.
        budget: how hard to try, see `PARTS`; parts: instead of those of the budget.
        seed: what is drawn for a record follows from it and from the record's place.

    Raises:
        InputError: shapes do not fit, a record lies outside, or nothing bounds the change.
        NotApplicable: no part can attack this target.
    """
    x, y = _records(x, y)
    opened = attackable(target, tuple(x.shape[1:]))
    device = x.device if opened.twin is None else device_of(opened.twin, x.device)
    region = _region(x.to(device), norm, epsilon, lower, upper)
    goal: Goal = "untargeted" if target_class is None else "targeted"
    wanted = (y if target_class is None else torch.as_tensor(target_class).to(torch.int64).expand(len(y))).to(device)
    case = _case(opened, Records(region.center, wanted))
    ledger = Ledger(queries=len(x))
    success = reached(opened.deployed.logits(region.center), wanted, goal).cpu()
    best, found_by, flags = region.center.cpu().clone(), dict[str, Tensor](), dict[str, list[str]]()
    skipped, black = [], torch.zeros_like(success)
    modules = () if opened.twin is None else (opened.twin,)
    batch = records_at_once(region.center[:1], *modules, copies=COPIES) if modules else BATCH
    for part in PARTS[budget] if parts is None else parts:
        if (reason := part.why_not(case)) is not None:
            skipped.append(f"{part.part}: {reason}")
            continue
        found = seek(
            part, case, case.evaluation, case.ids, region,
            among=~success, seed=derive(seed, "evade", part.part), ledger=ledger, batch=batch, goal=goal,
        )  # fmt: skip
        closest = found.fooled if found_by else ~success
        best[closest] = found.best[closest]
        success, found_by[part.part] = success | found.fooled, found.fooled
        flags[part.part] = _flags(part, found, len(x))
        black |= found.fooled if part.access is not Access.WHITE_BOX else torch.zeros_like(black)
    if not found_by:
        raise NotApplicable("no part of the attack can run: " + "; ".join(skipped))
    if opened.twin is not None and trust.beats(success.numpy(), (success & ~black).numpy()):
        flags["all"] = [str(Flag.BLACK_BOX_WINS)]
    best, success = best.to(x.device), success.to(x.device)
    change = (best.double() - x.double()).flatten(1)
    distance = change.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(change, dim=1)
    distance = torch.where(success, distance, torch.inf)
    return Evaded(best, success, distance, found_by, {part: some for part, some in flags.items() if some}, ledger)


def _records(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_floating_point() or x.dim() < 2 or len(x) == 0 or y.shape != (len(x),) or y.is_floating_point():
        raise InputError(
            f"x is {x.dtype} of shape {list(x.shape)} and y {y.dtype} of shape {list(y.shape)}. Records are float32 "
            "[n, *shape] and classes int64 [n]."
        )
    if not torch.isfinite(x).all():
        raise InputError("x holds values that are not finite. Leave those records out.")
    return x.detach().float(), y.detach().to(torch.int64)


def _region(
    x: Tensor, norm: Norm, epsilon: float | None, lower: float | Tensor | None, upper: float | Tensor | None
) -> Region:
    """The allowed set of each record."""
    if epsilon is None and (lower is None or upper is None):
        raise InputError("Nothing bounds the change. Give epsilon, or lower and upper.")
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise InputError(f"epsilon is {epsilon}. It is a finite number above 0, in the units of x.")
    if (lower is None or upper is None) and not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError("x is not within [0, 1]. Give lower and upper, the smallest and largest value of an input.")
    low, high = (
        torch.as_tensor(default if given is None else given, dtype=torch.float32, device=x.device)
        for given, default in ((lower, 0.0), (upper, 1.0))
    )
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all() & (low <= high).all()):
        raise InputError("lower and upper are no limits. They must be finite, and lower nowhere above upper.")
    try:
        inside = (x >= low.expand_as(x)) & (x <= high.expand_as(x))
    except RuntimeError:
        raise InputError(
            f"lower has the shape {list(low.shape)} and upper {list(high.shape)}. Both have to be broadcastable to x, "
            f"{list(x.shape)}."
        ) from None
    if not bool(inside.all()):
        first = int((~inside.flatten(1).all(1)).nonzero()[0])
        raise InputError(f"Record {first} lies outside of lower and upper itself. Give limits around it.")
    if norm == "linf":
        if epsilon is not None:
            low, high = torch.maximum(low, _rounded(x, -epsilon)), torch.minimum(high, _rounded(x, epsilon))
        return Box(low.expand_as(x), high.expand_as(x), x)
    if epsilon is None or low.numel() > 1 or high.numel() > 1 or not bool(low < high):
        raise InputError("That is not for an L2 distance. Give epsilon and one number each for lower and upper.")
    bounds = Bounds(low.reshape(()), high.reshape(()))
    return Ball(norm, epsilon / float(bounds.scale), x, bounds)


def _rounded(x: Tensor, change: float) -> Tensor:
    """x + change, in float32 and no further from x than that."""
    exact = x.double() + change
    near = exact.float()
    beyond = near.double() > exact if change > 0 else near.double() < exact
    return torch.where(beyond, near.nextafter(x), near)


def _case(opened: Attackable, records: Records) -> Case:
    low, high = float(records.x.min()), float(records.x.max())
    return Case(
        deployed=opened.deployed,
        twin=opened.twin,
        native=opened.twin,
        parent=None,
        evaluation=records,
        ids=np.arange(len(records)),
        attacker=Records(records.x[:0], records.y[:0]),
        bounds=Bounds.of(low, high if high > low else low + 1),
        classes=int(opened.deployed.logits(records.x[:1]).shape[1]),
    )


def _flags(part: Perturber, found: Sought, count: int) -> list[str]:
    raised = []
    if trust.gradients_missing(int((found.flat & ~found.fooled).sum()), count):
        raised.append(str(Flag.NO_GRADIENT))
    if part.access is Access.WHITE_BOX and trust.unfinished(found.found_at.numpy(), count):
        raised.append(str(Flag.UNFINISHED))
    return raised
