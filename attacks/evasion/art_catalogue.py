"""Any evasion attack of the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv:1807.01069), by class name."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...targets.data.records import Bounds
from ...targets.errors import NotApplicable, nearest_hint
from ...targets.model import frozen_copy
from ...targets.quiet import away_from_home
from ...targets.seeds import derive, global_seed
from ...training.ball import Ball
from ..access import Access, Ledger
from ..case import Case
from .engine import PERTURBERS, Perturber, Search

# Which of ART's classes work on answers alone. The rest get gradients: several of them use some without declaring it.
LABELS_ONLY = frozenset({"BoundaryAttack", "GeoDA", "GRAPHITEBlackbox", "HopSkipJump", "SignOPTAttack"})
SCORES_ONLY = frozenset(
    {"PixelAttack", "SimBA", "SpatialTransformation", "SquareAttack", "ThresholdAttack", "ZooAttack"}
)

LARGEST = 1_000_000  # any number among an attack's parameters: iterations, queries, ...


@PERTURBERS.register
class Art(Perturber):
    """Any evasion attack of ART by its class name, e.g. `{kind: art, name: HopSkipJump, parameters: {max_iter: 10}}`.

    A class that wants gradients gets the twin's, any other only the deployed model's scores. It works on inputs in
    [0, 1]; `eps`, `eps_step` (a quarter of it) and `norm` follow the audit unless `parameters` sets them. What it
    returns is projected into the ball, and counts only if that fools the deployed model. Some of these classes treat
    the records of a batch together: the batches (`blocks.seek`) are part of what the attack is.
    """

    kind: Literal["art"] = "art"
    at: Literal["all", "gate"] = "gate"
    name: str = Field(description="a class of art.attacks.evasion")
    parameters: dict[str, Any] = Field({}, description="keyword arguments of the class")

    @model_validator(mode="after")
    def _known(self) -> Art:
        classes = evasion_classes()
        if self.name not in classes:
            raise ValueError(f"ART has no evasion attack {self.name!r}.{hint(self.name, classes)}")
        accepted = keywords(classes[self.name])
        for key in self.parameters:
            if key not in accepted:
                raise ValueError(f"ART's {self.name} takes no parameter {key!r}.{hint(key, accepted)}")
        for key, value in self.parameters.items():
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise ValueError(f"{value} is too large for ART's {key}: at most {LARGEST:,} is tried.")
        return self

    @property
    def part(self) -> str:
        return self.label or self.name

    @property
    def access(self) -> Access:
        if self.name in LABELS_ONLY:
            return Access.LABELS
        return Access.SCORES if self.name in SCORES_ONLY else Access.WHITE_BOX

    def why_not(self, case: Case) -> str | None:
        if self.access is Access.WHITE_BOX and case.twin is None:
            return f"ART's {self.name} needs gradients, and there is no differentiable twin of this candidate"
        return None

    def perturb(self, search: Search, case: Case) -> None:
        ball = search.ball
        if not isinstance(ball, Ball) or search.goal == "targeted":
            raise NotApplicable("ART's classes are run without a target, within one distance and one pair of bounds")
        labels = np.eye(case.classes, dtype=np.float32)[search.y.cpu().numpy()]
        bounds = ball.bounds
        clean = (ball.center - bounds.low) / bounds.scale
        try:
            with seeded(search.seed):
                attack = evasion_classes()[self.name](self._classifier(search, case, bounds), **self._keywords(search))
                found = attack.generate(x=clean.cpu().numpy(), y=labels)
        except (MemoryError, ImportError, OSError):
            raise  # not ART's answer but this machine's: the cell fails and is tried again
        except Exception as error:  # a long tail of third-party classes, some made for other tasks than this one
            reason = " ".join(str(error).split())[:200]
            raise NotApplicable(f"ART's {self.name} failed: {type(error).__name__}: {reason}") from error
        x = torch.as_tensor(np.asarray(found, dtype=np.float32)).to(clean.device).reshape(clean.shape)
        search.query(ball.project(bounds.low + x * bounds.scale), math.nan)

    def _keywords(self, search: Search) -> dict[str, Any]:
        ball = search.ball
        defaults = {
            "eps": ball.epsilon,
            "eps_step": ball.epsilon / 4,
            "norm": np.inf if ball.norm == "linf" else 2,
            "targeted": False,  # some default to True and then do nothing without target labels
            "verbose": False,
        }
        accepted = keywords(evasion_classes()[self.name])
        return {key: value for key, value in defaults.items() if key in accepted} | self.parameters

    def _classifier(self, search: Search, case: Case, bounds: Bounds) -> Any:
        with away_from_home():
            from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

        shape = tuple(search.ball.center.shape[1:])
        device = search.ball.center.device
        if self.access is Access.WHITE_BOX:
            assert case.twin is not None  # why_not came first
            return PyTorchClassifier(
                model=UnitInputs(case.twin, bounds, search.ledger),
                loss=nn.CrossEntropyLoss(),
                input_shape=shape,
                nb_classes=case.classes,
                clip_values=(0.0, 1.0),
                device_type="gpu" if device.type == "cuda" else "cpu",
            )

        def predict(inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            x = torch.from_numpy(np.asarray(inputs, dtype=np.float32)).to(device)
            search.ledger.queries += len(x)
            return case.deployed.logits(bounds.low + x * bounds.scale).cpu().numpy()

        return BlackBoxClassifierNeuralNetwork(predict, shape, case.classes, clip_values=(0.0, 1.0))


class UnitInputs(nn.Module):
    """A module that takes inputs in [0, 1] of any float type, and counts its passes in a ledger."""

    def __init__(self, module: nn.Module, bounds: Bounds, ledger: Ledger) -> None:
        super().__init__()
        self.module = frozen_copy(module)
        self._bounds, self._ledger = bounds, ledger

    def forward(self, x: Tensor) -> Tensor:
        self._ledger.forwards += len(x)
        self._ledger.backwards += len(x) if x.requires_grad else 0  # ART asks for gradients only to follow them
        logits: Tensor = self.module(self._bounds.low + x.float() * self._bounds.scale)
        return logits


@cache
def evasion_classes() -> dict[str, type]:
    """ART's evasion attacks by class name; nothing else can be named by a plan."""
    with away_from_home():
        from art.attacks import EvasionAttack, evasion

    found = {name: getattr(evasion, name) for name in sorted(dir(evasion))}
    return {name: item for name, item in found.items() if isinstance(item, type) and issubclass(item, EvasionAttack)}


def keywords(attack: type) -> list[str]:
    """The keyword parameters of an ART class, without the model it attacks."""
    return list(inspect.signature(attack).parameters)[1:]


def hint(word: str, known: Any) -> str:
    """What the user may have meant."""
    return nearest_hint(word, known) or f" Known: {', '.join(known)}."


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch inside the block and restores them: ART takes no seed.

    Some of its attacks make a `RandomState` from the operating system's entropy; inside the block that is seeded too.
    """

    class Seeded(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(np.random.randint(2**31) if seed is None else seed)

    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(derive(seed, "numpy") % 2**32)
    random.seed(derive(seed, "python"))
    try:
        with global_seed(seed, "torch"), patch.object(np.random, "RandomState", Seeded):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
