"""Finished files under audit: read with suspicion, their inputs and outputs found out, opened as they run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel
from torch import nn

from ...targets.data.data import Data
from ...targets.errors import InputError, UnsafeInput, quoted
from ...targets.form import Form
from ...targets.interface.assumptions import Assumptions, Overrides, alike
from ...targets.interface.finished_model import deployed, differentiable
from ...targets.interface.infer import assume
from ...targets.interface.readings import ALIKE
from ...targets.interface.trials import DOUBT
from ...targets.model import Target
from ...targets.serving.smoothed import PROPERTY, vote_of
from ...targets.untrusted.files import ordinary_file
from ...targets.untrusted.model_file import FILE_BYTES, Facts, Kind, ModelFile, read_again, read_model_file
from ..plan.plan import DENSE, Plan
from ..plan.presets import attacks_of
from ..plan.sections import InterfacePlan

HOURS, HOURS_BY_BYTE = 1.0, 1.5e-6  # of processor time that asking a file may take, at least, and for each of its bytes
FINDING, FINDING_SHARE = 4_000, 1 / 60  # records that it is asked to find out what it takes, and their share of it


@dataclass(frozen=True, eq=False)
class OpenedFile:
    """A file that somebody else compressed, as it is audited.

    Args:
        name: as it was given, for people.
        file: its bytes, read with suspicion, and what was seen in them.
        notes: what was declared and assumed about it, sentence by sentence.
        doubtful: something else than what was declared would have fitted clearly better, or another reading than the
            one taken fits about as well and is of another robustness, here or in the dense model.
    """

    name: str
    file: ModelFile
    assumptions: Assumptions
    notes: tuple[str, ...]
    doubtful: bool = False

    @property
    def kind(self) -> Kind:
        return self.file.kind

    @property
    def content(self) -> bytes:
        return self.file.data

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def identity(self) -> str:
        """What decides its answers: the bytes and how they are asked. `notes` are kept out of every cell's result."""
        return f"{self.digest}|{self.assumptions.model_dump_json()}"

    def deployed(self) -> Target:
        return deployed(self.file, self.assumptions)

    def differentiable(self, data: Data) -> nn.Module:
        """The twin, in the data's own units. Raises NotApplicable where the file has none."""
        return differentiable(self.file, self.assumptions, data.bounds, data.shape)


class Reading(BaseModel):
    """What was found out about a file, for other processes and later runs: they need not find it out again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    kind: Kind
    facts: Facts
    packed: bool
    assumptions: Assumptions
    notes: tuple[str, ...]
    doubtful: bool


class Readings(RootModel[dict[str, Reading]]):
    """Of all files of a plan, by the name of their model."""


READINGS = Form(Readings, {}, declines=False)


def reading_of(file: OpenedFile) -> Reading:
    return Reading(
        digest=file.digest,
        kind=file.kind,
        facts=file.file.facts,
        packed=file.file.packed,
        assumptions=file.assumptions,
        notes=file.notes,
        doubtful=file.doubtful,
    )


def open_again(path: str, folder: Path, known: Reading, record: tuple[int, ...], *, checked: bool) -> OpenedFile | None:
    """A file of which it is known what it means; None: it has changed since.

    Args:
        record: the shape of a record of the data.
        checked: the process that started this one read it with suspicion; else it is read so now, because what lies in
            an output folder may have been put there.
    """
    if checked:
        file = read_again(folder / path, known.digest, known.kind, known.facts, packed=known.packed)
    else:
        found = read_model_file(folder / path, record)
        outputs = {None, *(port.name for port in found.facts.outputs)}
        same = hashlib.sha256(found.data).hexdigest() == known.digest and known.assumptions.output in outputs
        file = found if same else None
    return None if file is None else OpenedFile(path, file, known.assumptions, known.notes, known.doubtful)


def paths_of(plan: Plan) -> dict[str, str]:
    """The plan's finished files by the name of their candidate, and the dense model's."""
    model = {} if plan.model is None or plan.model.file is None else {DENSE: plan.model.file}
    return model | {name: one.file for name, one in plan.candidates.items() if one.file is not None}


def question_of(plan: Plan, folder: Path, data: Data) -> Any:
    """All that decides what the files of a plan are taken to mean, but for versions: a JSON value; None: no files."""
    paths = paths_of(plan)
    if not paths:
        return None
    digests = {}
    for name, path in paths.items():
        content = ordinary_file(folder / path, "the model", FILE_BYTES).read_bytes()
        digests[name] = hashlib.sha256(content).hexdigest()
    declared = {name: one.interface.model_dump(mode="json") for name, one in plan.candidates.items() if name in paths}
    model = None if plan.model is None else plan.model.interface.model_dump(mode="json")
    return [data.digest, plan.seed, digests, declared, model]


def open_file(
    path: str,
    folder: Path,
    interface: InterfacePlan,
    data: Data,
    like: Assumptions | None = None,
    file: ModelFile | None = None,
    answers: float = 0.0,
) -> OpenedFile:
    """Reads the file (in a process with limits) and finds out what it takes and answers.

    Args:
        answers: how many records it will be asked, about.
        like: how the dense model it came from is read, which is tried first.
        file: what is in it, where it was read before.

    Raises:
        InputError: there is no such file, under no assumption it is better than guessing, or it says that it is served
            otherwise than it is audited.
        UnsafeInput: it may be crafted, or takes more than its share of processor time.
    """
    if file is None:
        file = read_model_file(folder / path, data.shape)
        _check_time(path, file, interface.hours, answers)
    overrides = Overrides.model_validate(interface.model_dump(exclude={"hours"}))
    try:
        assumptions, notes = assume(file, data, overrides, like)
    except InputError as error:  # which of the plan's files it is
        raise InputError(f"{quoted(path)}: {error}") from None
    if file.kind == "onnx" and vote_of(file.checked.model) is not None:
        raise InputError(
            f"{quoted(path)} says in its metadata it is served by vote under noise, and a finished file is audited "
            "as it answers by itself. Audit the recipe that made it, with `defense: randomized-smoothing`, or take "
            f"{PROPERTY} out of its metadata."
        )
    declared = [
        f"{name} {', '.join(f'{one:g}' for one in value) if isinstance(value, tuple) else value}"
        for name, value in interface
        if value is not None and name != "hours"
    ]
    said = [f"Declared: {'; '.join(declared)}."] if declared else []
    doubtful = any(note.startswith((DOUBT, ALIKE)) for note in notes)
    return OpenedFile(path, file, assumptions, (*said, *file.notes, *notes), doubtful)


def answers_planned(plan: Plan, data: Data) -> float:
    """About how many records each model of the plan is asked; gradients of its twin count as three of its answers."""
    efforts = [attack.effort for attack in attacks_of(plan.attacks, data)]
    return 2_000 + sum(effort.answers + 3 * effort.gradients for effort in efforts)


def _check_time(path: str, file: ModelFile, hours: float | None, answers: float) -> None:
    """Raises UnsafeInput where the file, at the price of the record that was tried, would take more than `hours`."""
    limit = HOURS + HOURS_BY_BYTE * len(file.data) if hours is None else hours
    for count, share, what in ((FINDING, FINDING_SHARE, "to find out what it takes"), (answers, 1.0, "by this plan")):
        needed = count * file.seconds / 3600
        if needed > limit * share:
            raise UnsafeInput(
                f"{quoted(path)} takes {1000 * file.seconds:,.3g} ms of processor time for one record, and is to be "
                f"asked about {count:,.0f} {what}: {needed:.2g} h, where a file of {len(file.data):,} bytes may take "
                f"{limit * share:.2g} h. Nothing was attacked. If the model is yours, allow as much with --hours "
                f"{math.ceil(needed / share)} (interface: {{hours: {math.ceil(needed / share)}}} in a plan), or plan "
                "fewer attacks (attacks: quick)."
            )


def open_all(
    plan: Plan, folder: Path, data: Data, readings: Mapping[str, Reading] | None = None, *, checked: bool = False
) -> dict[str, OpenedFile]:
    """Every file of the plan, by the name of its candidate, and the dense model's.

    A dense model and a file made from it see a record in the same way unless the data say otherwise: where the two were
    found to differ, and the dense model is as good the other way, it follows the file (whose rounded input gives more
    away).

    Args:
        readings: what was found out about all of them before; checked: see `open_again`.

    Raises:
        InputError, UnsafeInput: as `open_file`; a file is named and the data's targets are values.
    """
    answers = answers_planned(plan, data) if paths_of(plan) else 0.0
    if readings is not None:
        same = {
            name: open_again(path, folder, readings[name], data.shape, checked=checked)
            for name, path in paths_of(plan).items()
        }
        if all(same.values()):
            opened = {name: file for name, file in same.items() if file is not None}
            for name, file in opened.items():
                section = plan.candidates.get(name, plan.model)
                _check_time(file.name, file.file, section.interface.hours if section else None, answers)
            return opened
    wanted = {name: one for name, one in plan.candidates.items() if one.file is not None}
    model = None if plan.model is None or plan.model.file is None else plan.model
    named = [*([] if model is None else [model.file]), *(one.file for one in wanted.values())]
    if data.regression and named:
        raise InputError(
            f"{named[0]}: a finished file of a model that predicts values cannot be audited yet: what its inputs mean "
            "is found out by the labels that it gets right. Name the model's architecture and weights instead, and "
            "candidates by their recipes."
        )
    files: dict[str, OpenedFile] = {}
    like = None if plan.model is None else Assumptions(record=data.shape)  # a module takes the values as they are
    if model is not None:
        files[DENSE] = open_file(str(model.file), folder, model.interface, data, answers=answers)
        like = files[DENSE].assumptions
    for name, candidate in wanted.items():
        files[name] = open_file(str(candidate.file), folder, candidate.interface, data, like, answers=answers)
    if model is None:
        return files
    odd = next((name for name in wanted if not _alike(files[name], files[DENSE])), None)
    if odd is not None:
        like, known = files[odd].assumptions, files[DENSE].file
        again = open_file(str(model.file), folder, model.interface, data, like, known)
        if _alike(again, files[odd]):
            doubtful = again.doubtful or files[odd].doubtful
            files[DENSE] = replace(again, doubtful=doubtful)
            for name, candidate in wanted.items():
                known = files[name].file
                files[name] = open_file(
                    str(candidate.file), folder, candidate.interface, data, again.assumptions, known
                )
    for name in wanted:
        if not _alike(files[name], files[DENSE]):
            warning = "The dense model is asked in other units or another layout: compare the two with care."
            files[name] = replace(files[name], notes=(*files[name].notes, warning), doubtful=True)
        elif files[DENSE].doubtful:
            files[name] = replace(files[name], doubtful=True)
    return files


def _alike(one: OpenedFile, other: OpenedFile) -> bool:
    return alike(one.assumptions, other.assumptions)
