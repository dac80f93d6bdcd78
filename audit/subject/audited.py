"""The three sorts of models an audit deploys and attacks: dense models, candidates made from them, finished files.

Each satisfies `attacks.preparation.Audited`, and says how it runs as shipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ...compression.answers import limits_answers
from ...compression.deployment.structure import load_module
from ...compression.recipe import Recipe
from ...compression.smoothed import softened
from ...compression.wrapping import behind
from ...defenses.defense import Defense, TrainingDefense
from ...targets.data.data import Data
from ...targets.errors import NotApplicable
from ...targets.model import Target
from ...targets.recent import Recent
from ...targets.runtimes.litert import LiteRtTarget
from ...targets.runtimes.onnx import OnnxTarget
from ...targets.serving.smoothed import Voted, vote_of
from ...targets.twin.tflite.twin import twin_of_tflite
from ...targets.twin.twin import twin_of
from ...targets.untrusted.model_file import CheckedOnnx, Kind, ModelFile, check_onnx, read_model
from ...training.architecture import Architecture
from ...training.privacy import PrivacyClaim
from ...training.stacked import group_size
from ...training.trainer import Trainer
from ..plan.plan import DENSE
from .finished_file import OpenedFile


class Stored(Protocol):
    """What was stored of a model when it was made: arrays, a JSON document, files by name."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]: ...
    @property
    def document(self) -> Mapping[str, Any]: ...
    @property
    def files(self) -> Mapping[str, bytes]: ...


@dataclass(frozen=True)
class Opened:
    """A model as it runs.

    Args:
        checked: its ONNX model; None: it is another kind of file.
        twin: builds the differentiable stand-in of the deployed bytes, straight-through where it rounds; None: they
            have none.
        naive: what stands in for them where nobody looks behind the layer that limits their answers, or knows of the
            vote they are served by; None: the twin.
        around: what the file is served by, around whatever runs it.
    """

    target: Target
    checked: CheckedOnnx | None
    twin: Callable[[], nn.Module | None]
    naive: Callable[[], nn.Module] | None = None
    around: Callable[[Target], Target] = lambda target: target


@dataclass(frozen=True, eq=False)
class DenseModel:
    """An uncompressed model: the plain one, or one hardened by a training defense; the parent of candidates.

    Args:
        state: given weights; None when the audit trains it.
        shadows_differ: shadow models are not known to be trained as it was.
        notes: sentences about what had to be changed of the model before it could be audited.
        file: the ONNX file it was given as, which is what is deployed; None: it is exported.
        undefended: the architecture before a defense changed it; None: none did.
        claim: what a plan claims of its training; None: nothing.
        together: the answer of `stacks` where the module is not at hand; None: it is asked.
    """

    name: str
    architecture: Architecture
    trainer: Trainer
    hardened: TrainingDefense | None = None
    state: dict[str, Tensor] | None = None
    shadows_differ: bool = False
    notes: tuple[str, ...] = ()
    file: OpenedFile | None = None
    undefended: Architecture | None = None
    claim: PrivacyClaim | None = None
    together: tuple[int, int] | None = None
    recipe: None = None
    control: bool = False
    undeclared: bool = False
    draws: tuple[Recipe, ...] = ()

    def side_by_side(self, device: torch.device) -> int:
        """How many models like it are trained as one piece of work."""
        return self.stacks(device)[0]

    def stacks(self, device: torch.device) -> tuple[int, int]:
        """How many models like it are trained, and how many have the trainings of a recipe, as one piece of work."""
        return _stacks(self.trainer, self.architecture, device) if self.together is None else self.together

    @property
    def promise(self) -> Any:
        """What decides what its defense promises of its training, or the plan claims; None: nothing."""
        if self.hardened is not None:
            return self.hardened.model_dump(mode="json") if self.hardened.private else None
        if self.claim is None:
            return None
        return [
            getattr(self.claim, name) for name in ("epsilon", "delta", "noise_multiplier", "sampling_rate", "steps")
        ]

    def privacy(self, records: int) -> PrivacyClaim | None:
        return self.claim if self.hardened is None else self.hardened.privacy(records)

    @property
    def plain(self) -> Architecture:
        """The architecture as the user built it, which a defense may have changed."""
        return self.undefended or self.architecture

    @property
    def parent(self) -> DenseModel:
        return self

    @property
    def is_dense(self) -> bool:
        return True

    @property
    def defense(self) -> Defense | None:
        return self.hardened

    @property
    def baselines(self) -> tuple[str, ...]:
        return () if self.name == DENSE else (DENSE,)

    @property
    def void(self) -> str | None:
        return None

    @property
    def kind(self) -> Kind:
        return "onnx" if self.file is None else self.file.kind

    def opened(self, stored: Stored, data: Data) -> Opened:
        return _exported(self.architecture, stored) if self.file is None else _file(self.file, stored, data)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a recipe makes of a dense model.

    Args:
        defense: in its making: of its parent's training, or of the recipe.
        draws: a random defense's other draws of the recipe, each audited beside the one that is shipped.
        kind: of the file that is made of it.
    """

    name: str
    parent: DenseModel
    recipe: Recipe
    defense: Defense | None = None
    control: bool = False
    draws: tuple[Recipe, ...] = ()
    kind: Kind = "onnx"
    file: None = None
    is_dense: bool = False
    undeclared: bool = False

    @property
    def baselines(self) -> tuple[str, ...]:
        return _baselines(self.parent)

    @property
    def void(self) -> str | None:
        return _void(self.parent, self.recipe)

    def opened(self, stored: Stored, data: Data) -> Opened:
        return _exported(self.parent.architecture, stored, self.kind)


@dataclass(frozen=True, eq=False)
class FinishedFile:
    """A file that somebody else compressed.

    Args:
        parent: the dense model it came from; None where nothing is known about that.
        recipe: how it is declared to have been made, which is what shadow models are compressed by.
    """

    name: str
    file: OpenedFile
    parent: DenseModel | None = None
    recipe: Recipe | None = None
    control: bool = False
    defense: None = None
    draws: tuple[Recipe, ...] = ()
    is_dense: bool = False

    @property
    def kind(self) -> Kind:
        return self.file.kind

    @property
    def undeclared(self) -> bool:
        return self.recipe is None

    @property
    def baselines(self) -> tuple[str, ...]:
        return () if self.parent is None else _baselines(self.parent)

    @property
    def void(self) -> str | None:
        return None if self.parent is None or self.recipe is None else _void(self.parent, self.recipe)

    def opened(self, stored: Stored, data: Data) -> Opened:
        return _file(self.file, stored, data)


AuditedModel = DenseModel | Candidate | FinishedFile


@lru_cache(maxsize=32)  # it builds the model
def _stacks(trainer: Trainer, architecture: Architecture, device: torch.device) -> tuple[int, int]:
    try:
        return trainer.side_by_side(architecture, device), group_size(architecture.blank(), 1, device)
    except NotApplicable:  # there is no such model, which the piece of work says
        return 1, 1


def _baselines(parent: DenseModel) -> tuple[str, ...]:
    """Its own parent first, then the plain dense model."""
    return (parent.name,) if parent.name == DENSE else (parent.name, DENSE)


def _void(parent: DenseModel, recipe: Recipe) -> str | None:
    """Compression that looks at members voids what a private training promised, unless their noise can be counted."""
    spent = recipe.spends(1)
    if spent == () or (spent is not None and (parent.hardened is None or parent.hardened.counts)):
        return None
    if parent.hardened is not None:
        return parent.hardened.void if parent.hardened.private else None
    return None if parent.claim is None else parent.claim.void


def _exported(architecture: Architecture, stored: Stored, kind: Kind = "onnx") -> Opened:
    """What this package exported."""

    def module() -> nn.Module:
        arrays = {name: array for name, array in stored.arrays.items() if not name.startswith("evidence/")}
        return load_module(architecture.blank(), stored.document["description"], arrays)

    return exported(stored.files[f"model.{kind}"], kind, module, limits_answers(stored.document["description"]))


def exported(content: bytes, kind: Kind, module: Callable[[], nn.Module], limited: bool = False) -> Opened:
    """A file that was made of a module, as it runs.

    The attacker's twin comes from the bytes that ship; the module stands in where it cannot. It also does where a last
    layer limits the answers, without that layer.

    Args:
        limited: the module is a `LimitedAnswers`.
    """
    if kind == "onnx":
        checked = check_onnx(content)
        if (vote := vote_of(checked.model)) is not None:
            base = partial(_or_module, lambda: twin_of(checked), lambda: behind(module()))
            around = partial(Voted, vote=vote)
            return Opened(around(OnnxTarget(checked)), checked, lambda: softened(vote, base()), base, around)
        if limited:
            naive = partial(_or_module, lambda: twin_of(checked), module)
            return Opened(OnnxTarget(checked), checked, lambda: behind(module()), naive)
        return Opened(OnnxTarget(checked), checked, lambda: _or_module(lambda: twin_of(checked), module))
    digest = hashlib.sha256(content).hexdigest()
    if (file := _read.get(digest)) is None:  # with suspicion: what lies in an output folder may have been put there
        file = read_model(content, "model.tflite")
        _read.put(digest, file, len(content))
    data = file.data
    if limited:
        naive = partial(_or_module, lambda: twin_of_tflite(data), module)
        return Opened(LiteRtTarget(data), None, lambda: behind(module()), naive)
    return Opened(LiteRtTarget(data), None, lambda: _or_module(lambda: twin_of_tflite(data), module))


_read: Recent[ModelFile] = Recent(2**24)


def _or_module(twin: Callable[[], nn.Module], module: Callable[[], nn.Module]) -> nn.Module:
    try:
        return twin()
    except NotApplicable:
        return module()


def _file(file: OpenedFile, stored: Stored, data: Data) -> Opened:
    def twin() -> nn.Module | None:
        return None if stored.document["certificate"] is None else file.differentiable(data)

    return Opened(file.deployed(), file.file.checked if file.kind == "onnx" else None, twin)
