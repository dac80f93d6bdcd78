"""Calibration: ranges of activations in the shipped file that equal the extreme of a single training record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...compression.lineage.graphs import compare_structures
from ...compression.lineage.limits import Limit
from ...compression.lineage.matched import match
from ...compression.lineage.ranges import feeds
from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.form import Array, Arrays, Document, Form, require
from ...targets.interface.preprocessing import Preprocessing
from ...targets.onnx_graph.observed import unfused
from ...targets.untrusted.model_file import check_onnx
from ..access import Access, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Found, Measurement, ThreatModel
from ..preparation import Audited, Deployed, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .risk import CALIBRATED_ON, LEAKAGE

if TYPE_CHECKING:
    import onnx

EQUAL = 2e-6  # of a range: what float32 sums in another order move an activation by
NEIGHBOURS = 5  # records nearest to a range's end, that tell how dense records lie there
ALARM = 0.01  # records that would be as near by chance, expected, above which a range tells of nobody
BATCH = 128
NAMED = 5
UNFOUND = (
    "ranges that were clipped or widened, that two records give together, that were measured on a model trained on "
    "after pruning, or over inputs that were altered"
)
ABOUT = "ranges of activations in the file, held against the extremes of records"

Floats = np.ndarray[Any, np.dtype[np.float64]]
Text = Annotated[str, Field(max_length=400)]


class Ranged(Document):
    """A range of the file: its tensor, the dense model's, and the end that one record may have given."""

    tensor: Text
    dense_tensor: Text
    end: float


class Summary(Document):
    """`Evidence.summary`. `ranges`: those with one end that is free; `both`: how many have two."""

    ranges: Annotated[tuple[Ranged, ...], Field(min_length=1)]
    both: Annotated[int, Field(ge=0)]
    members: Annotated[int, Field(ge=1)]
    others: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Known:
    """The dense model's file, and the training records as it takes them, float32 [n, *shape]; None: it is unknown."""

    dense: bytes
    members: Tensor
    others: Tensor


@dataclass(frozen=True)
class End:
    """The free end of a range, in the units of a tensor of the dense model.

    Args:
        readings: what the extreme may have been that its quantiser makes this range of.
        side: of the tensor's values: the largest, the least, or the largest magnitude.
    """

    limit: Limit
    name: str
    readings: tuple[float, ...]
    side: Literal["high", "low", "magnitude"]


@ATTACKS.register
class Calibration(Attack):
    """Which training record gave a static 8-bit file the range of an activation.

    Min-max calibration writes the largest activation of all calibration records into the file, as 255 times a scale,
    to the last bits of a float: whoever has the dense model too finds the record whose activation that is, and knows
    that it was in the training. Every record is run through the dense model; one that meets the end of a range, where
    records lie so thinly that none would by chance, is named by id.

    Evidence, of k ranges with one free end: `record` int64 [k], the nearest member; `distance`, `other` float64 [k], of
    that member and of the nearest record that is none from the end, as a share of it; `chance` float64 [k], how many of
    as many random records would lie within 2e-6 of the end.
    """

    kind: Literal["calibration"] = "calibration"
    risk: ClassVar[Risk] = LEAKAGE
    metrics: ClassVar[tuple[Metric, ...]] = (CALIBRATED_ON,)
    access: ClassVar[Access] = Access.WHITE_BOX

    def unfit(self, scope: Scope) -> str | None:
        return "no training records" if scope.data.members is None else None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if model.is_dense or model.parent is None or scope.data.members is None:
            return ()
        effort = Effort(answers=len(scope.data.members) + len(scope.data.evaluation_ids))
        prepare = partial(_known, model.parent.name)
        return (Run(needs=(Deployed(model.parent.name),), prepare=prepare, uses_parent=False, effort=effort),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        return (Ran(model.name),) if self.runs(model, scope) else ()

    def form(self, model: Audited, scope: Scope) -> Form:
        count = 0 if scope.data.members is None else len(scope.data.members)
        layout = {name: Array("float64", ("k",), 0, finite=False) for name in ("distance", "other", "chance")}
        layout["record"] = Array("int64", ("k",), 0, count - 1)

        def holds(found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(len(arrays["record"]) == len(found.ranges), "not a record per range")
            require(found.members == count, "other records were looked at")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        known = case.prepared
        if not isinstance(known, Known) or not known.dense or not case.shipped:
            raise NotApplicable("the bytes of the file, or of its dense model, are not at hand")
        with failing_as_not_applicable("the file's ranges cannot be held against the dense model's activations"):
            model = check_onnx(known.dense).copy()
            ends, both = ends_of(model, case.shipped, tuple(known.members.shape[1:]))
            if not ends:
                raise NotApplicable(
                    "the file holds no range of an activation with one free end: nothing was calibrated"
                )
            values = [extremes(model, ends, one) for one in (known.members, known.others)]
        found = [nearest(end, *(one[at] for one in values)) for at, end in enumerate(ends)]
        columns = [np.array(one, dtype=np.float64) for one in zip(*found, strict=True)]
        arrays = dict(zip(("record", "distance", "other", "chance"), columns, strict=True))
        arrays["record"] = arrays["record"].astype(np.int64)
        ranges = [
            {"tensor": one.limit.tensor[:400], "dense_tensor": one.name[:400], "end": one.readings[0]} for one in ends
        ]
        members, others = len(known.members), len(known.others)
        summary = {"ranges": ranges, "both": both, "members": members, "others": others}
        return Evidence(arrays, summary, ledger=Ledger(forwards=members + others))

    def measure(self, results: Results) -> list[Measurement]:
        model, ran = results.model, Ran(results.model.name)
        evidence = results.evidence(ran)
        if evidence is None:
            dense = "it is the dense model itself" if model.is_dense else "its dense model is not known"
            why = dense if model.is_dense or model.parent is None else results.why(ran)
            return [Measurement(CALIBRATED_ON, ABOUT, None, reason=why)]
        return [measured(evidence, Summary.model_validate(evidence.summary))]

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        again = self.run(case, seed=0)
        same = Summary.model_validate(again.summary) == Summary.model_validate(evidence.summary)
        same = same and np.array_equal(told(again), told(evidence))
        return [] if same else ["the ranges in the file, or the records that gave them, are others"]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "That no range of an activation meets a training record says nothing of what else calibration tells: a "
            "clipped range still follows from all calibration records."
        ]


def _known(parent: str, inputs: Inputs) -> Known:
    case, members = inputs.case(parent), inputs.scope.data.members
    assert members is not None, "there is nothing to prepare otherwise"
    both = [one.float().cpu() for one in (members.x, case.evaluation.x)]
    if case.assumptions is not None:
        both = [Preprocessing(case.assumptions)(one) for one in both]
    return Known(case.shipped, *both)


def ends_of(dense: onnx.ModelProto, shipped: bytes, record: tuple[int, ...]) -> tuple[list[End], int]:
    """The ranges of a file that one record may have given, and how many have two free ends.

    Args:
        dense: what is dead in it is removed from this very object.
        record: the sizes of a record.

    Raises:
        UnsafeInput: a file that `check_onnx` refuses.
        NotApplicable: the two graphs cannot be compared.
    """
    file = check_onnx(shipped).copy()
    known = compare_structures(dense, file, match(dense, file), record)
    if known.comparison is None:
        raise NotApplicable(known.reason or "its graph is not the dense model's, quantised")
    made = {name for node in dense.graph.node for name in node.output}
    found: dict[tuple[str, float], End] = {}
    both = 0
    for limit, name in known.comparison.ranges:
        key, low, high, step = (name, round(limit.high, 12)), limit.low, limit.high, abs(limit.step)
        if name not in made or not np.isfinite([low, high]).all() or step == 0 or key in found:
            continue
        if abs(low) < step / 2:
            found[key] = End(limit, name, (high,), "high")
        elif abs(high) < step / 2:
            found[key] = End(limit, name, (low,), "low")
        elif abs(low + high) < 1.5 * step:  # signed codes around 0: makers divide by 127, 127.5 or 128
            found[key] = End(limit, name, tuple(dict.fromkeys((high, (high - low) / 2, -low))), "magnitude")
        else:
            both += 1
    return list(found.values()), both


def extremes(dense: onnx.ModelProto, ends: Sequence[End], records: Tensor) -> list[Floats]:
    """Of each end the extreme of every record, float64 [n]; NaN where the tensor is none of single records.

    Raises:
        InputError: the dense model does not answer them.
    """
    session = unfused(dense, {end.name for end in ends})
    names = [output.name for output in session.get_outputs()]
    found: list[list[Floats]] = [[] for _ in ends]
    for batch in _batches(dense, records):
        values = dict(zip(names, session.run(None, feeds(dense, batch)), strict=True))
        for end, rows in zip(ends, found, strict=True):
            rows.append(_extreme(end, values[end.name], len(batch)))
    return [np.concatenate([*rows, np.empty(0)]) for rows in found]


def _batches(dense: onnx.ModelProto, records: Tensor) -> Iterator[np.ndarray[Any, Any]]:
    """The first alone: a tensor that has its records behind another axis is then told from the others."""
    first = dense.graph.input[0].type.tensor_type.shape.dim[0]
    if first.HasField("dim_value") and first.dim_value > 1:
        raise NotApplicable(f"the dense model takes {first.dim_value} records at once")
    size = 1 if first.HasField("dim_value") and first.dim_value == 1 else BATCH
    for batch in (records[:1], *torch.split(records[1:], size)):
        if len(batch):
            yield batch.numpy()


def _extreme(end: End, values: np.ndarray[Any, Any], records: int) -> Floats:
    if values.ndim == 0 or len(values) != records:
        return np.full(records, np.nan)
    if end.limit.rest is not None:
        times, plus, spatial = end.limit.rest
        channels = (-1, *[1] * spatial)
        values = (values - plus.reshape(channels)) / times.reshape(channels)
    flat = values.reshape(records, -1).astype(np.float64)
    if end.side == "magnitude":
        return np.asarray(np.abs(flat).max(1))
    return np.asarray(flat.max(1) if end.side == "high" else flat.min(1))


def nearest(end: End, members: Floats, others: Floats) -> tuple[int, float, float, float]:
    """The member whose extreme is nearest to an end, its distance, that of the nearest other, and what chance does.

    Chance: how many of as many random records would come within `EQUAL` of it, as densely as the next `NEIGHBOURS`
    lie around it; infinite where records share the extreme (white pixels).
    """
    best = (0, np.inf, np.inf, np.inf)
    for reading in end.readings:
        away = [np.nan_to_num(np.abs(one / reading - 1), nan=np.inf) for one in (members, others)]
        record = int(away[0].argmin())
        rest = np.sort(np.concatenate([np.delete(away[0], record), away[1]]))[:NEIGHBOURS]
        radius = float(rest[-1]) if len(rest) else np.inf
        chance = 2 * EQUAL * len(rest) / radius * len(end.readings) if radius > 0 else np.inf
        if away[0][record] < best[1]:
            best = record, float(away[0][record]), float(away[1].min(initial=np.inf)), chance
    return best


def told(evidence: Evidence) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [k]: the range equals a member's extreme, which chance does not explain."""
    return np.asarray((evidence.arrays["distance"] <= EQUAL) & (evidence.arrays["chance"] <= ALARM))


def measured(evidence: Evidence, found: Summary) -> Measurement:
    """How many ranges tell of a record, with sentences on which."""
    arrays, own = evidence.arrays, told(evidence)
    notes = [
        f"The range of {one.dense_tensor!r} ends at {one.end:.7g}; only training record {arrays['record'][at]} comes "
        f"to {max(arrays['distance'][at], 1e-9):.1g} of that (the nearest record that was not in training to "
        f"{arrays['other'][at]:.1g}); of as many random records {arrays['chance'][at]:.1g} would."
        for at, one in enumerate(found.ranges)
        if own[at]
    ]
    more = [f"{len(notes) - NAMED} more ranges are like that."] if len(notes) > NAMED else []
    expected, foreign = float(np.minimum(arrays["chance"], 1.0)[own].sum()), int((arrays["other"] <= EQUAL).sum())
    control = (
        f"Of {found.others} records that were not in training, {foreign} meets a range so." if found.others else ""
    )
    ways = f" {found.both} ranges have two free ends, which no single record gives." if found.both else ""
    if not notes:
        more = [f"None of {found.members} training records gives the end of a range."]
    return Measurement(
        CALIBRATED_ON,
        ABOUT,
        Found(int(own.sum()), len(found.ranges), UNFOUND),
        ThreatModel(Access.WHITE_BOX, "has the file, the dense model and the records in question", "no query"),
        available=len(found.ranges),
        notes=(*notes[:NAMED], *more, f"{control} Chance explains {expected:.1g} of what was found.{ways}".strip()),
    )
