"""Finished files under audit: read with suspicion, their inputs and outputs found out, opened as they run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ..targets.assumptions import Assumptions, Overrides, alike
from ..targets.data import Data
from ..targets.errors import InputError
from ..targets.finished_model import deployed, differentiable
from ..targets.infer import assume
from ..targets.model import Target
from ..targets.model_file import Kind, ModelFile, read_model_file
from ..targets.readings import ALIKE
from ..targets.trials import DOUBT
from .plan import DENSE, Plan
from .sections import InterfacePlan


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


def open_file(
    path: str,
    folder: Path,
    interface: InterfacePlan,
    data: Data,
    like: Assumptions | None = None,
    file: ModelFile | None = None,
) -> OpenedFile:
    """Reads the file (in a process with limits) and finds out what it takes and answers.

    Args:
        like: how the dense model it came from is read, which is tried first.
        file: what is in it, where it was read before.

    Raises:
        InputError: there is no such file, or under no assumption it is better than guessing.
        UnsafeInput: it may be crafted.
    """
    file = file or read_model_file(folder / path)
    overrides = Overrides.model_validate(interface.model_dump())
    assumptions, notes = assume(file, data, overrides, like)
    declared = [
        f"{name} {', '.join(f'{one:g}' for one in value) if isinstance(value, tuple) else value}"
        for name, value in interface
        if value is not None
    ]
    said = [f"Declared: {'; '.join(declared)}."] if declared else []
    doubtful = any(note.startswith((DOUBT, ALIKE)) for note in notes)
    return OpenedFile(path, file, assumptions, (*said, *file.notes, *notes), doubtful)


def open_all(plan: Plan, folder: Path, data: Data) -> dict[str, OpenedFile]:
    """Every file of the plan, by the name of its candidate, and the dense model's.

    A dense model and a file made from it see a record in the same way unless the data say otherwise: where the two were
    found to differ, and the dense model is as good the other way, it follows the file (whose rounded input gives more
    away).

    Raises:
        InputError, UnsafeInput: as `open_file`; a file is named and the data's targets are values.
    """
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
        files[DENSE] = open_file(str(model.file), folder, model.interface, data)
        like = files[DENSE].assumptions
    for name, candidate in wanted.items():
        files[name] = open_file(str(candidate.file), folder, candidate.interface, data, like)
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
