"""Rebuilding: the dense model's weights and decisions, read back out of the compressed file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ...targets.errors import NotApplicable, failing_as_not_applicable
from ...targets.form import Array, Arrays, Count, Document, Form, require
from ...targets.model import Target
from ...training.loop import Training, train
from ..access import Access, Ledger
from ..attack import ATTACKS, Attack, Run
from ..case import Case, Evidence
from ..effort import Effort
from ..measurement import Found, MeasuredPart, Measurement, Rate, ThreatModel
from ..preparation import Audited, Deployed, Inputs, Ran, Results, Scope
from ..risk import Metric, Risk
from .rebuild import Layer, Rebuilt, dense_tensors_in, rebuild, rebuilt_model
from .risk import DENSE_WEIGHTS, REBUILDING, REBUILT_FIDELITY

UNUSED = "dense-weights"  # detail of a finding
UNFOUND = "weights as float16, encrypted, or changed in any bit"
NAMED = 5
LABELS = ("dense", "shipped", "rebuilt", "tuned")
NUMBERS = ("error", "rounding", "kept", "norm")

Text = Annotated[str, Field(max_length=400)]


class Held(Document):
    """A weight of the file, as `rebuild.Layer`."""

    name: Text
    dense: Text
    how: Literal["integers", "code book", "mask", "float"]
    bits: Annotated[int, Field(ge=1, le=64)]
    weights: Annotated[int, Field(ge=1)]


class Lying(Document):
    """A dense weight that lies in the file, where, and whether the file computes with it."""

    name: Text
    place: Text
    used: bool


class Summary(Document):
    """`Evidence.summary`. `missing`: dense weights without a counterpart; `looked_for`: dense tensors that were."""

    layers: Annotated[tuple[Held, ...], Field(min_length=1)]
    missing: Count
    looked_for: Count
    lying: tuple[Lying, ...]


@dataclass(frozen=True)
class Dense:
    """What is compared with: the dense model's file and its answers."""

    shipped: bytes
    target: Target


@ATTACKS.register
class Rebuilding(Attack):
    """The dense weights read off the shipped file, and the float model that they make, held against the dense one.

    Codes times scales, code books and masks give the weights back but for their rounding; biases and batch norms come
    along. The float model rounds nothing between its layers. A second one is fine-tuned on the attacker's own records
    and labels. The attacker never has the dense model: it is what the result is measured against.

    Evidence on all evaluation records, n of them: `ids`, and the labels of the dense model, the file, the float model
    and the fine-tuned one, `dense`, `shipped`, `rebuilt`, `tuned` int64 [n]. Of the k weights of `Summary.layers`:
    `error`, `rounding` (-1: not held in integers), `kept`, `norm` float64 [k].
    """

    kind: Literal["rebuilding"] = "rebuilding"
    epochs: PositiveInt = Field(5, le=1000, description="of the fine-tuning on the attacker's records")
    learning_rate: float = Field(5e-4, gt=0, le=1, description="of the fine-tuning, at its peak")
    risk: ClassVar[Risk] = REBUILDING
    metrics: ClassVar[tuple[Metric, ...]] = (REBUILT_FIDELITY, DENSE_WEIGHTS)

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        if model.is_dense or model.parent is None:
            return ()
        need, prepare = Deployed(model.parent.name), partial(_dense, model.parent.name)
        return (Run(needs=(need,), prepare=prepare, uses_parent=False, effort=Effort(seconds=2.0)),)

    def reads(self, model: Audited, scope: Scope) -> tuple[Ran, ...]:
        return (Ran(model.name),) if self.runs(model, scope) else ()

    def details(self, model: Audited) -> tuple[str, ...]:
        return ("", UNUSED)

    def form(self, model: Audited, scope: Scope) -> Form:
        n, classes = len(scope.data.evaluation_ids), scope.data.classes
        layout = {"ids": Array("int64", (n,)), **{name: Array("int64", (n,), 0, classes - 1) for name in LABELS}}
        layout |= {name: Array("float64", ("k",), -1) for name in NUMBERS}
        return Form(Summary, layout, holds=partial(_holds, scope))

    def run(self, case: Case, *, seed: int) -> Evidence:
        dense: Dense | None = case.prepared
        if dense is None or not dense.shipped or not case.shipped:
            raise NotApplicable("the bytes of the file, or of its dense model, are not at hand")
        with failing_as_not_applicable("the file's weights cannot be read beside the dense model's"):
            found = rebuild(case.shipped, dense.shipped)
            lying, looked_for = dense_tensors_in(case.shipped, dense.shipped)
        with failing_as_not_applicable("no float model can be made of the file"):
            model = rebuilt_model(case.shipped, case.twin).to(case.attacker.x.device)
            training = Training(epochs=self.epochs, learning_rate=self.learning_rate, weight_decay=0.0)
            tuned = train(model, case.attacker, training, seed=seed)
            answers = [dense.target.logits(case.evaluation.x), case.deployed.logits(case.evaluation.x)]
            with torch.no_grad():
                answers += [one.eval()(case.evaluation.x) for one in (model, tuned)]
        labels = {name: _labels(one) for name, one in zip(LABELS, answers, strict=True)}
        return _evidence(found, lying, looked_for, labels, case, self.epochs)

    def measure(self, results: Results) -> list[Measurement]:
        if not self.runs(results.model, results.scope):
            why = "it is the dense model itself" if results.model.is_dense else "its dense model is not known"
            return [Measurement(REBUILT_FIDELITY, "weights read off the file", None, reason=why)]
        ran = Ran(results.model.name)
        evidence = results.evidence(ran)
        if evidence is None:
            return [Measurement(REBUILT_FIDELITY, "weights read off the file", None, reason=results.why(ran))]
        return measured(evidence, Summary.model_validate(evidence.summary))

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        again = self.run(case, seed=0)
        same = Summary.model_validate(again.summary) == Summary.model_validate(evidence.summary)
        same = same and all(np.allclose(again.arrays[name], evidence.arrays[name], rtol=1e-6) for name in NUMBERS)
        changed = np.mean(again.arrays["rebuilt"] != evidence.arrays["rebuilt"])
        return [] if same and changed <= 0.01 else ["the weights that the file holds are others"]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Weights are read where the file's layers are the dense model's; factors, fewer channels and students give "
            "it away in other ways (extraction). Fine-tuning had one setting: more of it may come nearer."
        ]


def _dense(name: str, inputs: Inputs) -> Dense:
    case = inputs.case(name)
    return Dense(case.shipped, case.deployed)


def _labels(logits: Tensor) -> np.ndarray[Any, Any]:
    if torch.isnan(logits).any():
        raise NotApplicable("a model answers some records with NaN")
    return logits.argmax(1).cpu().numpy().astype(np.int64)


def _holds(scope: Scope, found: Summary, arrays: Arrays, files: Mapping[str, Any]) -> None:
    require(np.array_equal(arrays["ids"], scope.data.evaluation_ids.numpy()), "ids are not those of the records")
    require(len(arrays["error"]) == len(found.layers), "not a figure per layer")
    require(bool((arrays["norm"] > 0).all() and (arrays["error"] >= 0).all()), "a weight without a norm")
    require(bool((arrays["kept"] <= 1).all()), "more weights kept than there are")
    require(len(found.lying) <= found.looked_for, "more was found than looked for")


def _evidence(
    found: Rebuilt,
    lying: Mapping[str, str],
    looked_for: int,
    labels: Mapping[str, np.ndarray[Any, Any]],
    case: Case,
    epochs: int,
) -> Evidence:
    arrays = {"ids": np.asarray(case.ids, dtype=np.int64), **labels}
    arrays |= {
        name: np.array([_number(getattr(one, name)) for one in found.layers], dtype=np.float64) for name in NUMBERS
    }
    layers = [
        {"name": one.name[:400], "dense": one.dense[:400], "how": one.how, "bits": one.bits, "weights": one.weights}
        for one in found.layers
    ]
    places = [
        {"name": name[:400], "place": place[:400], "used": name in found.uncompressed} for name, place in lying.items()
    ]
    passes, n = len(case.attacker) * epochs, len(case.ids)
    ledger = Ledger(queries=n, forwards=passes + 2 * n, backwards=passes)
    summary = {"layers": layers, "missing": found.missing, "looked_for": looked_for, "lying": places}
    return Evidence(arrays, summary, ledger=ledger)


def _number(value: float | None) -> float:
    return -1.0 if value is None else value


def rebuilt_of(evidence: Evidence, found: Summary) -> Rebuilt:
    """The layers, as they were read."""
    columns = [evidence.arrays[name].tolist() for name in NUMBERS]
    layers = [
        Layer(one.name, one.dense, one.how, one.bits, one.weights, error, None if step < 0 else step, kept, norm)
        for one, error, step, kept, norm in zip(found.layers, *columns, strict=True)
    ]
    return Rebuilt(tuple(layers), found.missing)


def measured(evidence: Evidence, found: Summary) -> list[Measurement]:
    """How far the float model decides as the dense one, how near the weights came, and what lies unused in the file."""
    arrays, whole = evidence.arrays, rebuilt_of(evidence, found)
    error, rounding = whole.overall()
    coded = whole.coded_error()
    threat = ThreatModel(Access.WHITE_BOX, "has the file, and labelled records for the fine-tuning", "no query")
    agree = {name: arrays[name] == arrays["dense"] for name in LABELS[1:]}
    parts = (
        MeasuredPart("the file as it ships", Rate(agree["shipped"])),
        MeasuredPart("float model of its weights", Rate(agree["rebuilt"]), headline=True),
        MeasuredPart("fine-tuned on the attacker's records", Rate(agree["tuned"])),
    )
    notes = [f"{_how(whole.layers)} Read off it, they are {100 * error:.2g} % of their norm (L2) from the dense ones."]
    if coded is not None and rounding is not None:
        notes.append(
            f"Those held in integers are {100 * coded:.3g} % off; rounding alone, scale / sqrt(12) a weight, makes "
            f"{100 * rounding:.3g} %."
        )
    if whole.missing:
        notes.append(f"{whole.missing} of the dense model's weights have no counterpart in the file.")
    fidelity = Measurement(
        REBUILT_FIDELITY,
        "weights read off the file, as a float model",
        Rate(agree["rebuilt"]),
        threat,
        available=len(agree["rebuilt"]),
        parts=parts,
        notes=tuple(notes),
    )
    unused = [one for one in found.lying if not one.used]
    told = [f"{one.name!r} in {one.place}" for one in unused[:NAMED]]
    more = f" and {len(unused) - NAMED} more" if len(unused) > NAMED else ""
    used = len(found.lying) - len(unused)
    lines = [f"Found: {'; '.join(told)}{more}."] if told else []
    lines += [f"{used} more are what the file computes with: the recipe left them as they were."] if used else []
    about = "the dense model's weights, looked for in the shipped bytes"
    if not found.looked_for:
        why = "the dense model has no weight that is long enough to be looked for"
        return [fidelity, Measurement(DENSE_WEIGHTS, about, None, threat, detail=UNUSED, reason=why)]
    lying = Found(len(unused), found.looked_for, UNFOUND)
    return [fidelity, Measurement(DENSE_WEIGHTS, about, lying, threat, detail=UNUSED, notes=tuple(lines))]


def _how(layers: tuple[Layer, ...]) -> str:
    """How the file holds its weights, in a sentence."""
    words = []
    for how in ("integers", "code book", "mask", "float"):
        own = [one for one in layers if one.how == how]
        if own:
            bits = sorted({one.bits for one in own})
            wide = f" of {' or '.join(map(str, bits))} bits" if how in ("integers", "code book") else ""
            kept = sum(one.kept * one.weights for one in own) / sum(one.weights for one in own)
            sparse = f", {100 * kept:.0f} % of them not zero" if how == "mask" else ""
            words.append(f"{len(own)} in {how}{wide}{sparse}" if how != "mask" else f"{len(own)} masked{sparse}")
    return f"Of {len(layers)} weights it holds {'; '.join(words)}."
