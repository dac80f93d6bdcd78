"""What the results of an audit's cells look like; an attack's own say so themselves (`Attack.form`)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, JsonValue, PositiveInt, model_validator

from ...attacks.access import Flag
from ...compression.deployment.structure import load_module
from ...targets.data.data import Data
from ...targets.form import Amount, Array, Arrays, Count, Document, Form, Layout, Share, require
from ...targets.untrusted.model_file import check_onnx
from ...training.architecture import Architecture, weights_layout
from ..schema.file_rows import Footprint, Kernels, Lineage
from ..schema.rows import Latency
from ..subject.audited import Candidate, DenseModel
from ..subject.finished_file import OpenedFile

Files = Mapping[str, bytes]
S = TypeVar("S")
AT_MOST = 2**28  # numbers that the layers of a description may hold, where its arrays do not say that they hold more
MOST_LAYERS = 4096  # of one recurrent layer


class Agreement(Document):
    """`targets.certificate.Agreement`."""

    n: PositiveInt
    label_agreement: Share
    max_logit_difference: Amount
    logit_difference_99: Amount


class Certificate(Document):
    """`targets.certificate.Certificate`; `overall` follows from the kinds."""

    overall: Agreement
    kinds: dict[str, Agreement]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        kinds = self.kinds.values()
        together = sum(one.n * one.label_agreement for one in kinds) / self.overall.n
        most = max((one.max_logit_difference for one in kinds), default=0.0)
        require(sum(one.n for one in kinds) == self.overall.n, "the kinds of inputs are not n together")
        require(abs(together - self.overall.label_agreement) < 1e-9, "the agreement is not that of its kinds")
        require(most == self.overall.max_logit_difference, "the difference is not that of its kinds")
        return self


def _footprint(value: dict[str, Any]) -> dict[str, Any]:
    Footprint.model_validate({**value, "ratio": 1.0})
    return value


class Trained(Document):
    """Of a dense model; see `model_cells.train_dense`."""

    statement: dict[str, str | float | int]
    notes: tuple[str, ...]


class Layer(Document):
    """`compression.deployment.structure.Description`, one entry."""

    path: str
    type: str
    arguments: dict[str, JsonValue] | list[str] | None


class Deployed(Document):
    """What every deployed model says."""

    certificate: Certificate | None
    varies: str | None
    footprint: Annotated[dict[str, JsonValue], AfterValidator(_footprint)]
    digest: str
    kernels: Kernels | None


class Exported(Deployed):
    """See `model_cells.deploy`."""

    description: tuple[Layer, ...]


class Taken(Deployed):
    """See `model_cells.take_file`."""

    no_twin: str | None
    notes: tuple[str, ...]


class Memory(Document):
    """See `model_cells.serve_memory`."""

    peak_bytes: PositiveInt


class Latencies(Document):
    """By model, a row per batch."""

    latency: dict[str, list[Latency]]


class Spent(Document):
    """`attacks.access.Ledger`."""

    forwards: Count
    backwards: Count
    queries: Count


class Told(Document, Generic[S]):
    """See `attack_cells.run_attack`."""

    summary: S
    flags: dict[str, list[Flag]]
    skipped: dict[str, str]
    ledger: Spent
    certificate: Certificate | None = None


def trained(dense: DenseModel) -> Form:
    return Form(Trained, lambda _: weights_layout(dense.architecture))


def made(model: DenseModel | Candidate, data: Data) -> Form:
    """Of a model that was exported."""
    architecture = model.architecture if isinstance(model, DenseModel) else model.parent.architecture
    name = f"model.{model.kind}"

    def holds(document: Exported, arrays: Arrays, files: Files) -> None:
        content, weights = files[name], document.footprint
        _check_deployed(data, document, arrays, content)
        sizes = weights["disk_bytes"], weights["payload_bytes"]
        require(sizes == (len(content), len(files["payload.bin"])), "the footprint is not that of the files")
        if model.kind == "onnx":
            check_onnx(content)
        _check_module(architecture, document, arrays)

    layout = {**_answers(data), "*": Array(finite=False)}
    return Form(Exported, layout, (name, "payload.bin"), holds)


def taken(file: OpenedFile, data: Data) -> Form:
    """Of a finished file."""
    name = f"model.{file.kind}"

    def holds(document: Taken, arrays: Arrays, files: Files) -> None:
        _check_deployed(data, document, arrays, files[name])
        require(document.digest == file.digest, "the file is not the one that is audited")
        require((document.certificate is None) == (document.no_twin is not None), "it has a twin and has none")

    return Form(Taken, _answers(data), (name,), holds)


def in_runtime(data: Data) -> Form:
    def holds(document: Agreement, arrays: Arrays, files: Files) -> None:
        require(document.n == len(data.evaluation_ids), "n is not the number of records")

    return Form(Agreement, {}, holds=holds)


def timed(models: Collection[str]) -> Form:
    def holds(document: Latencies, arrays: Arrays, files: Files) -> None:
        require({*document.latency} <= {*models}, "a model that there is not")

    return Form(Latencies, {}, holds=holds, declines=False)


MEMORY = Form(Memory, {})
LINEAGE = Form(Lineage, {})


def evidence(form: Form) -> Form:
    """Of an attack's run, from what the attack says of its summary and arrays."""
    layout, own = form.arrays, form.holds

    def holds(document: Told[Any], arrays: Arrays, files: Files) -> None:
        if "certificate" in document.model_fields_set:
            kinds = {} if document.certificate is None else document.certificate.kinds
            require({name: one.n for name, one in kinds.items()} == {"adversarial": len(arrays["adversarial"])},
                    "the certificate is not that of the inputs it found")  # fmt: skip
        if own is not None:
            own(document.summary, arrays, files)

    summary: Any = form.document or dict[str, JsonValue]
    told = partial(_of_summary, layout) if callable(layout) else layout
    return replace(form, document=Told[summary], arrays=told, holds=holds)


def _of_summary(layout: Any, document: Told[Any]) -> Layout:
    found: Layout = layout(document.summary)
    return found


def _answers(data: Data) -> Layout:
    """What a deployed model answers on all non-members."""
    n = len(data.non_members)
    if data.regression:
        return {"evidence/error": Array("float64", (n,), low=0)}
    predicted = Array("int64", (n,), 0, data.classes - 1)
    return {"evidence/predicted": predicted, "evidence/correct": Array("bool", (n,))}


def _check_deployed(data: Data, document: Deployed, arrays: Arrays, content: bytes) -> None:
    n = len(data.non_members)
    require(hashlib.sha256(content).hexdigest() == document.digest, "the digest is not that of the file")
    if document.certificate is not None:
        counts = {kind: one.n for kind, one in document.certificate.kinds.items()}
        require(counts == {"clean": n, "random": n}, "the certificate is not over all records")
    if not data.regression:
        right = arrays["evidence/predicted"] == data.non_members.y.numpy()
        require(bool((right == arrays["evidence/correct"]).all()), "what is correct does not follow from the answers")


def _check_module(architecture: Architecture, document: Exported, arrays: Arrays) -> None:
    """Builds the described module, unless it would take far more memory than its weights do."""
    weights = {name: array for name, array in arrays.items() if not name.startswith("evidence/")}
    held = 0
    for layer in document.description:
        arguments = layer.arguments if isinstance(layer.arguments, dict) else {}
        *_, second, first = sorted([1, 1, *(abs(one) for one in arguments.values() if isinstance(one, int))])
        held += first * second
        layers = arguments.get("num_layers", 1)
        require(isinstance(layers, int) and layers <= MOST_LAYERS, "more layers than a network has")
    require(held <= max(AT_MOST, 64 * sum(array.size for array in weights.values())), "layers of another size")
    description = [layer.model_dump() for layer in document.description]
    load_module(architecture.blank(), description, weights)
