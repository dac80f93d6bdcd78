"""Leakage: what the shipped bytes hold, found without asking the model anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from ...targets.errors import NotApplicable, UnsafeInput
from ...targets.form import Array, Arrays, Document, Form, require
from ..access import Access
from ..attack import ATTACKS, Attack, Run, Task
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Found, Measurement, ThreatModel
from ..preparation import Audited, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .moments import Rows
from .risk import LEAKAGE, PRIVATE_WORDS, TRAINING_ROWS
from .search import Searched, rows_of, search_file
from .signatures import RecordSignatures, rows_in
from .words import SORTS

WORDS = "words"  # details of findings
NAMED = 5  # places and ids that a sentence names
PLACES = 1000  # places that evidence names

UNFOUND = (
    "records encrypted, packed otherwise than by zip, gzip, zlib, bzip2 or xz, in big-endian numbers whose type "
    "nothing states, compressed with loss, noisy, cropped, resized, in pictures other than PNG (or interlaced ones, or "
    "several records in one), of other units or signs by feature (unless standardised, or scaled by least and "
    "largest), coarser than 8 bits, interleaved with other values, or by columns in a container that says no shape; "
    "and what weights remember"
)
UNREAD = "words that look like no path, name, address or secret, have other letters than ASCII, or are encrypted"

Text = Annotated[str, Field(max_length=400)]


class Place(Document):
    """Where records are, and how they are written there: "tensor 'rows'", "float32", "as stored", "as they are"."""

    place: Text
    type: Text
    order: Literal["as stored", "other order"]
    form: Text


class Seen(Document):
    """A word that is in the file: its kind, whether it is private, where it is, and its begin."""

    kind: Text
    private: bool
    place: Text
    offset: Annotated[int, Field(ge=0)]
    shown: Text


class Summary(Document):
    """`Evidence.summary`. `searched`: training records searched for; `kind`, `size`: of the file, in bytes; `cut`:
    whether more places looked like records, or pictures, than were compared; `none`: why no records were searched for.
    """

    kind: Text
    size: Annotated[int, Field(ge=1)]
    searched: Annotated[int, Field(ge=0)]
    cut: bool
    none: Text
    places: Annotated[tuple[Place, ...], Field(max_length=PLACES)]
    words: tuple[Seen, ...]


@ATTACKS.register
class Leakage(Attack):
    """Training records and private words in the shipped bytes; the model is never asked.

    The file is searched as it lies and taken apart (ONNX, safetensors, zip archives, gzip, pickles, base64, PNG, text,
    UTF-16) without running or loading anything in it. Records are found exact, scaled, negated, rounded or cut off to 8
    bits or more, standardised and with their features in any order (skewness and kurtosis of every window, compared
    value by value where they fit), each with a bound on how often chance would do the same.

    Evidence, of k finds in the order of their records: `record` int64 [k], the member's id; `offset` int64 [k], in the
    file; `place` int64 [k], in `Summary.places`; `bound` float64 [k], windows of the whole file that chance would take
    for such a find, expected, at most.
    """

    kind: Literal["leakage"] = "leakage"
    risk: ClassVar[Risk] = LEAKAGE
    metrics: ClassVar[tuple[Metric, ...]] = (TRAINING_ROWS, PRIVATE_WORDS)
    tasks: ClassVar[frozenset[Task]] = frozenset(Task)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if scope.data.members is None:
            return (Run(uses_parent=False, effort=Effort(seconds=0.5)),)
        seconds = 0.5 + 1e-7 * scope.data.members.x.numel()
        return (Run(needs=(RecordSignatures(),), uses_parent=False, prepare=_known, effort=Effort(seconds=seconds)),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        return (Ran(model.name),)

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", WORDS)

    def form(self, model: Audited, scope: Scope) -> Form:
        arrays = {name: Array("int64", ("k",), 0) for name in ("record", "offset", "place")}
        layout = {**arrays, "bound": Array("float64", ("k",), 0)}
        return Form(Summary, layout, holds=partial(_holds, scope))

    def run(self, case: Case, *, seed: int) -> Evidence:
        if not case.shipped:
            raise NotApplicable("the shipped bytes are not at hand")
        known: Known | None = case.prepared
        rows = None if known is None else known.rows
        try:
            found = search_file(case.shipped, rows)
        except UnsafeInput as error:
            raise NotApplicable(f"the file cannot be taken apart: {error}") from None
        none = "there are no training records" if known is None else ""
        if known is not None and rows is None:
            none = "the training records hold too few values, or all the same, to be told from chance"
        return evidence_of(found, len(case.shipped), 0 if rows is None else len(rows.values), none)

    def measure(self, results: Results) -> list[Measurement]:
        evidence = results.evidence(Ran(results.model.name))
        if evidence is None:
            why = results.why(Ran(results.model.name))
            return [Measurement(TRAINING_ROWS, "training records in the shipped bytes", None, reason=why)]
        return measured(evidence, Summary.model_validate(evidence.summary))

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        known: Known | None = case.prepared  # stored signatures that were thinned out would hide records
        fresh = case if known is None else replace(case, prepared=replace(known, rows=rows_of(known.x)))
        again = self.run(fresh, seed=0)
        same = all(np.array_equal(again.arrays[name], evidence.arrays[name]) for name in ("record", "offset", "place"))
        if same and Summary.model_validate(again.summary) == Summary.model_validate(evidence.summary):
            return []
        return ["what is found in the file is something else"]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "A file in which no training record was found may hold them encrypted, packed otherwise than by zip, gzip, "
            "zlib, bzip2 or xz, in big-endian numbers, compressed with loss, with noise, cropped, resized or in other "
            "units; and what the model remembers of them in its weights is a matter of membership."
        ]


def _count(scope: Scope) -> int:
    return 0 if scope.data.members is None else len(scope.data.members)


@dataclass(frozen=True)
class Known:
    """What the search is given: the training records, float32 [n, *shape], and their signatures."""

    x: torch.Tensor
    rows: Rows | None


def _known(inputs: Inputs) -> Known:
    members = inputs.scope.data.members
    assert members is not None, "there is nothing to prepare otherwise"
    return Known(members.x, rows_in(inputs.prepared(RecordSignatures()), inputs.scope))


def _holds(scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    require(bool((arrays["record"] < _count(scope)).all()), "a record that is none of the training records")
    require(bool((np.diff(arrays["record"]) >= 0).all()), "the records are not in order")
    require(bool((arrays["place"] < len(found.places)).all()), "a place that is not named")
    require(bool((arrays["offset"] < found.size).all()), "an offset beyond the file")
    require(found.searched in (0, _count(scope)), "other records were searched for")
    require((found.searched == 0) == (found.none != ""), "nothing was searched for, and no reason is given")


def evidence_of(found: Searched, size: int, searched: int, none: str) -> Evidence:
    """What is stored of a search: records by id alone."""
    places: dict[tuple[str, str, str, str], int] = {}
    rows = []
    for one in found.records:
        key = (one.place[:400], one.match.type, one.match.order, one.match.form)
        if key not in places and len(places) == PLACES - 1:
            key = ("another place", *key[1:]) if ("another place", *key[1:]) in places else key
        at = places.setdefault(key, min(len(places), PLACES - 1))
        rows.append((one.match.record, one.offset, at, one.match.bound))
    words = [
        {"kind": word.kind, "private": word.private, "place": place[:400], "offset": word.offset, "shown": word.shown}
        for place, word in found.words
    ]
    named = [dict(zip(("place", "type", "order", "form"), key, strict=True)) for key in list(places)[:PLACES]]
    arrays = {
        "record": np.array([one[0] for one in rows], dtype=np.int64),
        "offset": np.array([one[1] for one in rows], dtype=np.int64),
        "place": np.array([one[2] for one in rows], dtype=np.int64),
        "bound": np.array([one[3] for one in rows], dtype=np.float64),
    }
    summary = {"kind": found.kind, "size": size, "searched": searched, "cut": found.cut, "none": none}
    return Evidence(arrays, {**summary, "places": named, "words": words})


def measured(evidence: Evidence, found: Summary) -> list[Measurement]:
    """What was counted, with sentences on what was found where."""
    threat = ThreatModel(Access.WHITE_BOX, "has the file and asks the model nothing", "every byte of the file")
    about = "training records in the shipped bytes"
    ids = np.unique(evidence.arrays["record"])
    if found.searched:
        count = Found(len(ids), found.searched, UNFOUND)
        rows = Measurement(TRAINING_ROWS, about, count, threat, available=found.searched, notes=_notes(evidence, found))
    else:
        rows = Measurement(TRAINING_ROWS, about, None, threat, reason=found.none)
    private = sorted(  # secrets first: a file may hold paths by the dozen
        (word for word in found.words if word.private), key=lambda word: (*SORTS, word.kind).index(word.kind)
    )
    told = [f"{_a(word.kind)} in {word.place}, at byte {word.offset:,}: {word.shown}" for word in private[:NAMED]]
    plain = sorted({f"{word.kind} in {word.place}" for word in found.words if not word.private})
    notes = [f"Found: {'; '.join(told)}{_more(len(private))}."] if told else []
    notes += [f"Also: {'; '.join(plain[:NAMED])}{_more(len(plain))}."] if plain else []
    words = Measurement(
        PRIVATE_WORDS,
        "paths, names of people and machines, and secrets in the shipped bytes",
        Found(len(private), len(SORTS), UNREAD),
        threat,
        detail=WORDS,
        reason="not gated: no built-in limit on words",
        notes=tuple(notes),
    )
    return [rows, words]


def _notes(evidence: Evidence, found: Summary) -> tuple[str, ...]:
    record, offset, place, bound = (evidence.arrays[name] for name in ("record", "offset", "place", "bound"))
    notes = []
    for at, one in enumerate(found.places[:NAMED]):
        mine = place == at
        ids = np.unique(record[mine])
        if not len(ids):
            continue
        listed = ", ".join(map(str, ids[:NAMED].tolist())) + _more(len(ids))
        order = "" if one.order == "as stored" else ", with its features in another order"
        notes.append(
            f"In {one.place} from byte {int(offset[mine].min()):,} on: {len(ids)} training record"
            f"{'s' * (len(ids) > 1)} (id {listed}), as {one.type}, {one.form}{order}; chance would do as much in "
            f"{float(bound[mine].max()):.1g} of such files at most."
        )
    if len(found.places) > NAMED:
        notes.append(f"{len(found.places) - NAMED} more places hold training records.")
    if not notes:
        notes.append(
            f"None of {found.searched} training records was found in {found.size:,} bytes ({found.kind}). One that is "
            "found fails whatever the policy, unless it limits this figure."
        )
    if found.cut:
        notes.append("More places looked like records, or more pictures, than were compared: there may be others.")
    return tuple(notes)


def _more(count: int) -> str:
    return f" and {count - NAMED} more" if count > NAMED else ""


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
