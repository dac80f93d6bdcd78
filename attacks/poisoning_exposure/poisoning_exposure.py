"""Poisoning exposure: the user's own training and calibration, repeated with a share of the records poisoned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NoReturn

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from ...compression.chain import Chain
from ...compression.quantization.quantize import Quantize
from ...compression.recipe import Recipe
from ...targets.data.data import Data
from ...targets.errors import InputError, NotApplicable, nearest_hint
from ...targets.form import Array, Arrays, Count, Document, Form, Layout, require
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Measurement
from ..preparation import Audited, Basis, Inputs, Need, Results, Scope
from ..risk import Metric, Risk
from .calibration import BITS, Method
from .measure import CALIBRATION, FLIPS, PATCHED, measure_exposure
from .planting import PATCH, RANDOM, TARGETED, Pair, Poisoning, can_be_patched, count_of
from .preparations import Poisoned, PoisonedAnswers, PoisonedCalibration, chunks_of
from .risk import CALIBRATED_ACCURACY, PATCH_SUCCESS, POISONING_EXPOSURE, RANDOM_ACCURACY, TARGETED_ERROR

COUNTS = (0, 1, 2, 4, 8, 16)  # of poisoned calibration records
NO_RECORDS = "no training records"
Portion = Annotated[float, Field(gt=0, le=0.5)]


class Summary(Document):
    """`Evidence.summary`: by sort how many records each share is; the calibration methods, the model's own first."""

    pair: tuple[Count, Count]
    counts: dict[str, tuple[Count, ...]]
    methods: tuple[str, ...]
    calibration: Count


@dataclass(frozen=True)
class ExposureCase:
    """What the poisoned trainings gave, as in `PoisonedAnswers` and `PoisonedCalibration`."""

    arrays: dict[str, np.ndarray[Any, Any]]
    summary: Summary


@ATTACKS.register
class PoisoningExposure(Attack):
    """How a model moves as 1, 3, 10 % of its training records are poisoned, dense and compressed.

    The dense model's training is repeated with labels flipped at random, with labels of one class flipped to another
    (Biggio et al. 2012, arXiv:1206.6389; the pair that the dense model confuses most), and with a patch on images
    (BadNets, Gu et al. 2017, arXiv:1708.06733); every recipe is replayed on the same poisoned models with the same
    poisoned records, so that what compression cures or amplifies is a paired change. Activation ranges of static
    quantisation are calibrated again with a few records many times beyond their range.

    Evidence arrays, n evaluation records, m trainings in the order of `Poisoning.models`: `ids` int64 [n];
    `predicted` int64 [m, n]; of images `triggered` int64 [m, n], with the patch; where activations are calibrated
    `calibrated` bool [bits, methods, counts, n] and `float` bool [n]: what the dense model gets right with activations
    of 8 and of 4 bits, and unrounded.
    """

    kind: Literal["poisoning-exposure"] = "poisoning-exposure"
    risk: ClassVar[Risk] = POISONING_EXPOSURE
    metrics: ClassVar[tuple[Metric, ...]] = (TARGETED_ERROR, RANDOM_ACCURACY, PATCH_SUCCESS, CALIBRATED_ACCURACY)

    shares: tuple[Portion, ...] = Field(
        (0.01, 0.03, 0.1), min_length=1, max_length=10, description="of the training records, ascending"
    )
    judged: Portion = Field(0.03, description="the share that figures are of; one of `shares`")
    pair: tuple[str, str] | None = Field(
        None,
        description="names of two classes: labels of the first are flipped to the second; default: those that the "
        "dense model confuses most",
    )
    repetitions: int = Field(
        3,
        ge=2,
        le=100,
        description="trainings for each sort and share, each with other poisoned records; where no figure is of it, "
        "random flips and patches get one less",
    )
    records: PositiveInt = Field(1000, le=10_000_000, description="evaluation records, at most")
    calibration: int = Field(200, ge=20, le=100_000, description="calibration records, at most")
    times: float = Field(10.0, ge=1, le=1e6, description="how many times its range a poisoned calibration record has")

    @model_validator(mode="after")
    def _makes_sense(self) -> PoisoningExposure:
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError("`shares` ascend, and none stands twice")
        if self.judged not in self.shares:
            raise ValueError(f"`judged` is {self.judged:g}, which is none of `shares`: name one of them")
        return self

    def unfit(self, scope: Scope) -> str | None:
        return NO_RECORDS if scope.data.members is None else None

    def usual(self, data: Data) -> bool:
        return data.members is not None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        answers, why = self._answers(model, scope), why_not(model, scope)
        if answers is None or why is not None:
            return (Run(uses_parent=False, prepare=partial(_refuse, why)),)
        calibrated = self._calibrated(model, scope)
        needs: list[Need] = [*answers.poisoned.needs, answers, *([] if calibrated is None else [calibrated])]
        return (
            Run(
                needs=tuple(needs),
                prepare=partial(_case, self.shares, answers, calibrated),
                identity=self.judged,
                uses_parent=False,
                effort=Effort(),
            ),
        )

    def smaller(self) -> Attack | None:
        """First without the shares that no figure is of, then with two trainings of each sort."""
        if len(self.shares) > 1:
            return self.model_copy(update={"shares": (self.judged,)})
        return self.model_copy(update={"repetitions": 2}) if self.repetitions > 2 else None

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", FLIPS, PATCHED, CALIBRATION)

    def form(self, model: Audited, scope: Scope) -> Form:
        answers, calibrated = self._answers(model, scope), self._calibrated(model, scope)
        if answers is None:
            return Form()
        n = min(self.records, len(scope.data.evaluation_ids))

        def layout(summary: Summary) -> Layout:
            shape = (len(answers.poisoned.poisoning.models), n)
            names = ["predicted", *(["triggered"] if can_be_patched(scope.data.shape) else [])]
            arrays = {"ids": Array("int64", (n,))}
            arrays |= {name: Array("int64", shape, 0, scope.data.classes - 1) for name in names}
            if calibrated is not None:
                methods, counts = len(calibrated.methods), len(calibrated.counts)
                arrays |= {"calibrated": Array("bool", (len(BITS), methods, counts, n)), "float": Array("bool", (n,))}
            return arrays

        def holds(summary: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
            require(np.array_equal(arrays["ids"], scope.data.evaluation_ids.numpy()[:n]), "ids are of other records")
            require(max(summary.pair) < scope.data.classes, "the pair is of classes that there are not")

        return Form(Summary, layout, holds=holds)

    def run(self, case: Case, *, seed: int) -> Evidence:
        found = case.prepared
        if not isinstance(found, ExposureCase):
            raise NotApplicable("the model's training is repeated with poisoned records, and none was declared")
        ids = np.asarray(case.ids[: found.arrays["predicted"].shape[1]], np.int64)
        return Evidence({"ids": ids, **found.arrays}, found.summary.model_dump(mode="json"))

    def measure(self, results: Results) -> list[Measurement]:
        model, scope = results.model, results.scope
        answers, why = self._answers(model, scope), why_not(model, scope)
        poisoning = self._poisoning(scope) if answers is None else answers.poisoned.poisoning
        return measure_exposure(results, poisoning, self.shares.index(self.judged), COUNTS, why)

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        found = basis.prepared()
        if not isinstance(found, ExposureCase):
            return []
        stored = evidence.arrays
        same = all(name in stored and np.array_equal(stored[name], array) for name, array in found.arrays.items())
        same &= evidence.summary == found.summary.model_dump(mode="json")
        return [] if same else ["its answers are not those of the poisoned models"]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Poisoning exposure says what these poisons do to this training, compressed and exported as ONNX "
            "files; that the training data at hand is clean it does not say."
        ]

    def _poisoning(self, scope: Scope) -> Poisoning:
        sorts = (RANDOM, TARGETED, *((PATCH,) if can_be_patched(scope.data.shape) else ()))
        return Poisoning(sorts, self.shares, self.repetitions, self.shares.index(self.judged))

    def _answers(self, model: Audited, scope: Scope) -> PoisonedAnswers | None:
        if model.parent is None or scope.data.members is None:
            return None
        pair = None if self.pair is None else self._named(scope.data)
        poisoned = Poisoned(model.parent, self._poisoning(scope), pair, scope.reference.name)
        return PoisonedAnswers(poisoned, model.recipe, chunks_of(poisoned, scope.device), self.records)

    def _named(self, data: Data) -> Pair:
        assert self.pair is not None
        for name in self.pair:
            if name not in data.class_names:
                hint = nearest_hint(name, list(data.class_names))
                raise InputError(f"poisoning-exposure: pair: {name!r} is no class of these records.{hint}")
        source, target = (data.class_names.index(name) for name in self.pair)
        if source == target:
            raise InputError(f"poisoning-exposure: pair: names {self.pair[0]!r} twice; flips go from one to another.")
        return Pair(source, target)

    def _calibrated(self, model: Audited, scope: Scope) -> PoisonedCalibration | None:
        """Where activations are calibrated on records of numbers; the model's own method first."""
        static = None if scope.data.structure.tokens else static_of(model.recipe)
        if static is None or model.parent is None or scope.data.members is None:
            return None
        own = Method(static.calibration, static.percentile)
        usual = (Method("min-max"), Method("percentile"), Method("percentile", 99.9), Method("entropy"))
        methods = (own, *(one for one in usual if one.words != own.words))
        size = min(self.calibration, len(scope.data.members))
        counts = tuple(one for one in COUNTS if one < size)
        return PoisonedCalibration(model.parent.name, methods, counts, size, self.times, self.records)


def static_of(recipe: Recipe | None) -> Quantize | None:
    """The quantisation in a recipe that calibrates activations on records; None: there is none."""
    last = recipe.steps[-1] if isinstance(recipe, Chain) else recipe
    if isinstance(last, Quantize) and last.activations == "static" and last.calibration_inputs == "records":
        return last
    return None


def why_not(model: Audited, scope: Scope) -> str | None:
    """Why a model's training cannot be repeated; None: it can."""
    if scope.data.members is None:
        return f"not applicable: {NO_RECORDS}, so that no training can be repeated with poisoned ones"
    if model.parent is None:
        return "not applicable: the training of the model that it came from is not known"
    if model.undeclared:
        return "not applicable: how the file was compressed is not known, so it is not repeated on a poisoned model"
    return None


def _refuse(why: str | None, inputs: Inputs) -> NoReturn:
    raise NotApplicable(why or "not applicable")


def _case(
    shares: tuple[float, ...], answers: PoisonedAnswers, calibrated: PoisonedCalibration | None, inputs: Inputs
) -> ExposureCase:
    arrays, members = dict(inputs.prepared(answers).arrays), inputs.scope.data.members
    assert members is not None, "declared only where there are training records"
    if calibrated is not None:
        found = inputs.prepared(calibrated).arrays
        arrays |= {"calibrated": found["correct"], "float": found["float"]}
    pair = answers.poisoned.pair_of(inputs)
    sorts = answers.poisoned.poisoning.sorts
    return ExposureCase(
        arrays,
        Summary(
            pair=(pair.source, pair.target),
            counts={sort: tuple(count_of(members, sort, share, pair) for share in shares) for sort in sorts},
            methods=() if calibrated is None else tuple(one.words for one in calibrated.methods),
            calibration=0 if calibrated is None else calibrated.calibration,
        ),
    )
