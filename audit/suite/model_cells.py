"""What the cells of models compute: train, compress, take a file, run elsewhere. Pure in their arguments and the seed.

Models travel between cells as named arrays (safetensors) and a JSON description, never as pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...attacks.statistics.rates import clopper_pearson
from ...compression.answers import LimitedAnswers
from ...compression.chain import Chain, flat
from ...compression.deployment.onnx_export import to_onnx
from ...compression.deployment.structure import load_module, save_module
from ...compression.deployment.tflite_export import to_tflite
from ...compression.footprint.footprint import footprint, footprint_of_file
from ...compression.footprint.payload import encode
from ...compression.footprint.timing import peak_resident_bytes
from ...compression.lineage.lineage import UNDECLARED, Declared, check_lineage, not_read
from ...compression.recipe import Recipe
from ...compression.smoothed import SmoothedAnswers
from ...targets.certificate import certify
from ...targets.data.data import Data
from ...targets.data.records import Bounds, Records
from ...targets.errors import InputError, NotApplicable, failing_as_not_applicable
from ...targets.interface.finished_model import Deployed
from ...targets.interface.preprocessing import Preprocessing
from ...targets.model import Target, TorchTarget, frozen_copy
from ...targets.model_checks import check_model
from ...targets.runtimes.onnx import integer_kernels
from ...targets.runtimes.runtime import Runtime
from ...targets.seeds import derive, generator
from ...targets.steadiness import variation
from ...targets.untrusted.model_file import CheckedOnnx, Kind
from ...training.loop import TrainingJob
from ..engine.cells import Result
from ..subject.audited import AuditedModel, Candidate, DenseModel, Opened, exported
from ..subject.finished_file import OpenedFile
from ..subject.preflight import seen_by

Arrays = dict[str, np.ndarray[Any, Any]]
RANGE_RECORDS = 256  # on which the dense model's activations are looked at


def members(data: Data) -> Records:
    """The training records.

    Raises:
        NotApplicable: the data has none.
    """
    if data.members is None:
        raise NotApplicable("this needs training records (x_train, y_train), and the data has none")
    return data.members


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def check_finite(module: nn.Module, what: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise NotApplicable(f"{what} gave weights that are not finite: the training diverged; lower its learning rate")


def train_dense(dense: DenseModel, data: Data, seed: int, device: torch.device) -> Result:
    """Trains a dense model, or takes its given weights."""
    statement, notes = {}, []
    if dense.state is not None:
        module = dense.architecture.blank()
        module.load_state_dict(dense.state)
    else:
        records = members(data)
        job = TrainingJob.of_one(dense.architecture, records, derive(seed, dense.name), device)
        module = dense.trainer.of_shipped.fit(job)[0]
        if dense.hardened is not None:
            check_finite(module, f"the defense {dense.hardened.kind}")
            statement = dense.hardened.statement(len(records))
            if has_batch_norm(dense.plain.blank()) and not has_batch_norm(module):
                statement["architecture"] = "batch norm was replaced by group norm"
    if dense.hardened is None:  # a hardened model may well be at chance: that is a finding, with a flag, not a mistake
        notes = [*dense.notes, *check_model(TorchTarget(module), data.evaluation, data.bounds, data.outputs)]
    return Result(arrays=_state(module), document={"statement": statement, "notes": notes})


def load_dense(dense: DenseModel, result: Result, device: torch.device) -> nn.Module:
    module = dense.architecture.blank()
    _load(module, result.arrays)
    return frozen_copy(module.to(device))


def make_candidate(model: Candidate, recipe: Recipe, parent: nn.Module, data: Data, seed: int) -> Result:
    """Compresses one candidate, or one draw of it, and deploys the result."""
    with failing_as_not_applicable(f"the recipe {recipe.kind} cannot be applied to this model"):
        records = seen_by(recipe, data)
        module = recipe.apply(parent, records, data.bounds, seed=derive(seed, "recipe", model.name))
    check_finite(module, f"the recipe {recipe.kind}")
    return deploy(module, model.parent, data, seed, model.kind)


def deploy(module: nn.Module, dense: DenseModel, data: Data, seed: int, kind: Kind = "onnx") -> Result:
    """Exports and weighs a module, and certifies its twin on clean and on random inputs.

    Args:
        dense: the model it came from, or is.
        kind: of the file.
    """
    with failing_as_not_applicable("it cannot be deployed"):
        if kind != "onnx" and isinstance(module, SmoothedAnswers):
            raise NotApplicable("that it is served by vote under noise is written in ONNX files alone")
        model = to_onnx(module, data.shape)
        model = model if kind == "onnx" else to_tflite(model)
        payload = encode(module)
        weights = footprint(module, model, payload, data.shape)
        opened = exported(model, kind, lambda: module, isinstance(module, LimitedAnswers))
        result = _deployed(opened.target, opened.twin(), data, seed)
    description, arrays = save_module(module)
    with failing_as_not_applicable("what the recipe made cannot be stored and rebuilt"):
        load_module(dense.architecture.blank(), description, arrays)
    document = {"description": description, "footprint": weights, "digest": hashlib.sha256(model).hexdigest()}
    return Result(
        arrays={**arrays, **result.arrays},
        document={**result.document, **document, "kernels": opened.checked and kernels(opened.checked)},
        files={f"model.{kind}": model, "payload.bin": payload},
    )


def take_file(file: OpenedFile, data: Data, seed: int) -> Result:
    """A finished file as a candidate: weighed, and its twin certified where it has one."""
    twin, why = None, None
    try:
        twin = file.differentiable(data)
    except NotApplicable as error:
        why = str(error)
    target, everything = file.deployed(), data.non_members
    try:
        notes = check_model(target, data.evaluation, data.bounds, data.outputs)
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from None
    right = int((target.logits(everything.x).argmax(1) == everything.y).sum())
    share = clopper_pearson(right, len(everything))
    notes.append(
        f"It is right on {100 * share.estimate:.2f} % [{100 * share.low:.1f}, {100 * share.high:.1f}] of all "
        f"{len(everything)} test records."
    )
    result = _deployed(target, twin, data, seed)
    document = {
        "footprint": footprint_of_file(file.file, file.assumptions.record),
        "digest": file.digest,
        "no_twin": why,
        "notes": notes,
        "kernels": kernels(file.file.checked) if file.kind == "onnx" else None,
    }
    return Result(
        arrays=result.arrays, document={**result.document, **document}, files={f"model.{file.kind}": file.content}
    )


def kernels(model: CheckedOnnx) -> dict[str, Any]:
    """How many products ONNX Runtime computes in integers and in floats once it has optimised the file."""
    found = integer_kernels(model)
    integer, floating = found["integer"], found["float"]
    return {
        "integer": sum(integer.values()),
        "floating": sum(floating.values()),
        "operators": dict(sorted({**integer, **floating}.items())),
    }


def _deployed(target: Target, twin: nn.Module | None, data: Data, seed: int) -> Result:
    """What a deployed model answers on all non-members, and how far its twin agrees.

    The attacker's own are among them: how well a model does its task is no attack, and nothing of it was tuned on them.
    """
    records = data.non_members
    answers = target.logits(records.x)
    random = torch.rand(records.x.shape, generator=generator(seed, "certificate"))
    random.mul_(data.bounds.scale).add_(data.bounds.low)  # in place: large records are held once more, not three times
    inputs = {"clean": records.x, "random": random}
    certificate = None if twin is None else asdict(certify(target, TorchTarget(twin), inputs, {"clean": answers}))
    document = {"certificate": certificate, "varies": variation(target, records.x, answers)}
    return Result(arrays=task_evidence(answers, data), document=document)


def task_evidence(answers: Tensor, data: Data) -> dict[str, np.ndarray[Any, Any]]:
    """How well a model does its task, from its answers on all non-members: by record."""
    y = data.non_members.y
    if data.regression:
        return {"evidence/error": ((answers - y).double().square().mean(1) / data.variance).numpy()}
    predicted = answers.argmax(1)
    return {"evidence/predicted": predicted.numpy(), "evidence/correct": (predicted == y).numpy()}


def in_runtime(model: AuditedModel, runtime: Runtime, stored: Result, data: Data) -> Result:
    """The same file in another runtime: how far that agrees with ONNX Runtime on the evaluation records.

    Raises:
        NotApplicable: it is no ONNX file, or the runtime does not take it.
    """
    opened = model.opened(stored, data)
    other = opened_in(model, runtime, opened)
    with failing_as_not_applicable(f"{runtime.phrase} cannot run it"):
        certificate = certify(opened.target, other, {"clean": data.evaluation.x})
    return Result(document=asdict(certificate.overall))


def opened_in(model: AuditedModel, runtime: Runtime, opened: Opened) -> Target:
    """A model's file as another runtime runs it.

    Raises:
        NotApplicable, Unavailable: as `Runtime.open`; it is no ONNX file.
    """
    if opened.checked is None:
        raise NotApplicable("it is no ONNX file")
    runtime.check()
    with failing_as_not_applicable(f"{runtime.phrase} cannot run it"):
        other = runtime.open(opened.checked, output=None if model.file is None else model.file.assumptions.output)
    return opened.around(other) if model.file is None else Deployed(other, model.file.assumptions)


def lineage(dense: DenseModel, opened: Opened, model: AuditedModel, file: Opened, data: Data) -> Result:
    """Whether a file is the dense model, compressed as it is declared: weights, operators, ranges of activations.

    Ranges are held against the dense model's activations on the attacker's own records.

    Args:
        opened, file: the two as they run.
    """
    if opened.checked is None or file.checked is None:
        found = not_read("tflite")
    else:
        records = data.attacker.x[:RANGE_RECORDS].float().cpu()
        if dense.file is not None:
            records = Preprocessing(dense.file.assumptions)(records)
        recipe = model.recipe
        declared = UNDECLARED
        if recipe is not None:
            declared = Declared(
                recipe.bits, recipe.promise is None, _own_choices(recipe), keeps_operators=recipe.keeps_operators
            )
        found = check_lineage(opened.checked, file.checked, declared, records.numpy())
    layers = [{**asdict(layer), "shape": list(layer.shape)} for layer in found.layers]
    return Result(
        document={
            "verdict": found.verdict,
            "sentences": list(found.sentences),
            "layers": layers,
            "unmatched": [*found.unmatched_artifact, *found.unmatched_dense],
            "reason": found.reason,
            "found": found.found,
            "structure": found.structure,
            "differences": [{**asdict(one), "nodes": list(one.nodes)} for one in found.differences],
            "ranges": [asdict(one) for one in found.ranges],
        }
    )


def _own_choices(recipe: Recipe) -> tuple[bytes, ...]:
    """What a recipe that chooses between activations makes of small models, with and without convolutions."""
    steps = [
        step for step in (flat(recipe.steps) if isinstance(recipe, Chain) else [recipe]) if step.counts_activations
    ]
    found = []
    for step in steps:
        plain = step.model_copy(update={"fine_tune": None, "layers": ()})
        for net, shape in (
            (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)), (6,)),
            (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4)), (1, 8, 8)),
        ):
            records = Records(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.long))
            made = plain.apply(net.eval(), records, Bounds.of(0.0, 1.0), seed=0)
            found.append(to_onnx(made, shape))
    return tuple(found)


def serve_memory(model: CheckedOnnx | None, shape: tuple[int, ...]) -> Result:
    """Resident bytes of a fresh process serving a model: a host fact, kept under `environment`."""
    if model is None:
        raise NotApplicable("its memory is measured in ONNX Runtime only")
    return Result(document={"peak_bytes": peak_resident_bytes(model, shape)})


def _state(module: nn.Module) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def _load(module: nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    state: dict[str, Tensor] = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    module.load_state_dict(state)
