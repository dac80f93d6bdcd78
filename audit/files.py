"""Finished files under audit: read with suspicion, their inputs and outputs found out, opened as they run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..targets.artifact import Assumptions, Overrides, assume, deployed, differentiable, read_foreign
from ..targets.data import Data
from ..targets.foreign import Kind
from ..targets.model import Target
from .sections import InterfacePlan


@dataclass(frozen=True, eq=False)
class FinishedFile:
    """A file that somebody else compressed, as it is audited.

    Args:
        name: as it was given, for people.
        kind: "onnx" or "tflite".
        facts: what was seen in it, JSON values (`targets.artifact.Foreign.facts`).
        notes: what was assumed about it, sentence by sentence.
    """

    name: str
    kind: Kind
    content: bytes
    assumptions: Assumptions
    facts: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def identity(self) -> str:
        """What decides its answers: the bytes and how they are asked."""
        return f"{self.digest}|{self.assumptions.model_dump_json()}"

    def deployed(self) -> Target:
        return deployed(self.content, self.kind, self.assumptions)

    def differentiable(self, data: Data) -> nn.Module:
        """The twin, in the data's own units. Raises NotApplicable where the file has none."""
        return differentiable(self.content, self.kind, self.assumptions, data.bounds, data.shape)


def open_file(
    path: str, folder: Path, interface: InterfacePlan, data: Data, like: FinishedFile | None = None
) -> FinishedFile:
    """Reads the file (in a process with limits) and finds out what it takes and answers.

    Args:
        like: the dense model it came from: what was assumed about that is tried first.

    Raises:
        InputError: there is no such file, or under no assumption it is better than guessing.
        UnsafeInput: it may be crafted.
    """
    foreign = read_foreign(folder / path)
    overrides = Overrides.model_validate(interface.model_dump())
    assumptions, notes = assume(foreign, data, overrides, None if like is None else like.assumptions)
    return FinishedFile(
        path, foreign.kind, foreign.data, assumptions, foreign.facts.model_dump(mode="json"), tuple(notes)
    )
