"""What each cell computes: train, compress, shadow, attack. Every function is pure in its arguments and the seed.

Models travel between cells as named arrays (safetensors) and a JSON description, never as pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.attack import Attack, Case, Evidence, MembershipCase, ShadowSignals, frozen_copy
from ..attacks.membership.blind import blind_scores
from ..attacks.membership.population import PopulationPlan
from ..attacks.membership.signals import shadow_signals
from ..compression.export import to_onnx
from ..compression.fake_quantize import native
from ..compression.footprint import footprint, footprint_of_file, peak_resident_bytes
from ..compression.lineage import check_lineage, not_read
from ..compression.payload import encode
from ..compression.recipe import Recipe
from ..compression.structure import load_module, save_module
from ..defenses.stochastic_rounding import ExpectationTwin
from ..targets.certificate import certify
from ..targets.data import Data
from ..targets.errors import CrushproofError, InputError, NotApplicable, UnsafeInput, user_error
from ..targets.finished_model import Deployed
from ..targets.model import Target, TorchTarget
from ..targets.model_checks import check_model
from ..targets.model_file import CheckedOnnx, check_onnx
from ..targets.onnx import OnnxTarget, integer_kernels
from ..targets.preprocessing import Preprocessing
from ..targets.records import Records
from ..targets.runtime import Runtime
from ..targets.seeds import derive, generator
from ..targets.steadiness import variation
from ..targets.twin import Twin, twin_of
from .cells import Result
from .files import FinishedFile
from .lineup import Contender, Dense
from .statistics import clopper_pearson
from .subject import DenseModel

Arrays = dict[str, np.ndarray[Any, Any]]
AGREEMENT = 0.995  # label agreement below which white-box results through the twin are flagged


def members(data: Data) -> Records:
    """The training records.

    Raises:
        NotApplicable: the data has none.
    """
    if data.members is None:
        raise NotApplicable("this needs training records (x_train, y_train), and the data has none")
    return data.members


def seen_by(recipe: Recipe, data: Data) -> Records:
    """The records a recipe is given: the members; none when there are none and the recipe looks at none."""
    if data.members is None and recipe.touches_records:
        raise NotApplicable(
            "the recipe calibrates or trains on training records (x_train, y_train), and the data has none; "
            "quantize can do without: calibration_inputs: noise"
        )
    return data.members if data.members is not None else data.attacker.take(torch.arange(0))


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def check_finite(module: nn.Module, what: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise NotApplicable(f"{what} gave weights that are not finite: the training diverged; lower its learning rate")


def train_dense(dense: Dense, data: Data, model: DenseModel, seed: int, device: torch.device) -> Result:
    """Trains a dense model (or takes the given weights of the plain one)."""
    statement, notes = {}, []
    if model.state is not None and dense.defense is None:
        module = dense.architecture.blank()
        module.load_state_dict(model.state)
    else:
        records = members(data)
        subset = torch.arange(len(records))
        module = dense.trainer.fit(dense.architecture, records, [subset], [derive(seed, dense.name)], device)[0]
        if dense.defense is not None:
            check_finite(module, f"the defense {dense.defense.kind}")
            statement = dense.defense.statement(len(records))
            if has_batch_norm(model.architecture.blank()) and not has_batch_norm(module):
                statement["architecture"] = "batch norm was replaced by group norm"
    if dense.defense is None:  # a hardened model may well be at chance: that is a finding, with a flag, not a mistake
        notes = [*model.notes, *check_model(TorchTarget(module), data.evaluation, data.bounds, data.outputs)]
    return Result(arrays=_state(module), document={"statement": statement, "notes": notes})


def load_dense(dense: Dense, result: Result, device: torch.device) -> nn.Module:
    module = dense.architecture.blank()
    _load(module, result.arrays)
    return frozen_copy(module.to(device))


def make_candidate(contender: Contender, recipe: Recipe | None, parent: nn.Module, data: Data, seed: int) -> Result:
    """Compresses, exports and weighs one candidate, and certifies its twin on clean and on random inputs."""
    module = parent
    if recipe is not None:
        with one_row(f"the recipe {recipe.kind} cannot be applied to this model"):
            records = seen_by(recipe, data)
            module = recipe.apply(parent, records, data.bounds, seed=derive(seed, "recipe", contender.name))
        check_finite(module, f"the recipe {recipe.kind}")
    with one_row("it cannot be deployed"):
        model = to_onnx(module, data.shape)
        payload = encode(module)
        weights = footprint(module, model, payload, data.shape)
        checked = check_onnx(model)
        result = _deployed(OnnxTarget(checked), _twin(module, checked), data, seed)
    description, arrays = save_module(module)
    with one_row("what the recipe made cannot be stored and rebuilt"):
        load_module(contender.dense.architecture.blank(), description, arrays)
    document = {"description": description, "footprint": weights, "digest": hashlib.sha256(model).hexdigest()}
    return Result(
        arrays={**arrays, **result.arrays},
        document={**result.document, **document, "kernels": kernels(checked)},
        files={"model.onnx": model, "payload.bin": payload},
    )


@contextmanager
def one_row(what: str) -> Iterator[None]:
    """A candidate that cannot be made is a row of its own: what the user gave is not to blame, and the audit goes on.

    What the machine lacks (memory, disk, a package) still fails the cell, which is then tried again.
    """
    try:
        yield
    except (InputError, UnsafeInput) as error:
        raise NotApplicable(f"{what}: {error}") from error
    except (CrushproofError, MemoryError, ImportError, OSError):
        raise
    except Exception as error:  # torch, the exporter or the user's own forward, on layers of other sizes
        raise NotApplicable(f"{what}: {user_error(error)}") from error


def take_file(file: FinishedFile, data: Data, seed: int) -> Result:
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


def _twin(module: nn.Module, model: CheckedOnnx) -> nn.Module:
    """The attacker's twin comes from the bytes that ship; the module it was exported from stands in where it cannot."""
    try:
        return twin_of(model)
    except NotApplicable:
        return module


def _deployed(target: Target, twin: nn.Module | None, data: Data, seed: int) -> Result:
    """What a deployed model answers on the evaluation records, and how far its twin agrees."""
    evaluation = data.evaluation
    answers = target.logits(evaluation.x)
    noise = torch.rand(evaluation.x.shape, generator=generator(seed, "certificate"))
    random = data.bounds.low + noise * data.bounds.scale
    inputs = {"clean": evaluation.x, "random": random}
    certificate = None if twin is None else asdict(certify(target, TorchTarget(twin), inputs))
    document = {"certificate": certificate, "varies": variation(target, evaluation.x)}
    if data.regression:
        error = (answers - evaluation.y).double().square().mean(1) / data.variance
        return Result(arrays={"evidence/error": error.numpy()}, document=document)
    predicted = answers.argmax(1)
    arrays = {"evidence/predicted": predicted.numpy(), "evidence/correct": (predicted == evaluation.y).numpy()}
    return Result(arrays=arrays, document=document)


def checked_model(contender: Contender, candidate: Result) -> CheckedOnnx:
    """The ONNX model of a candidate: a finished file is checked once in a process, what the store holds whenever asked.

    Raises:
        NotApplicable: it is another kind of file.
    """
    if "model.onnx" not in candidate.files:
        raise NotApplicable("it is no ONNX file")
    return check_onnx(candidate.files["model.onnx"]) if contender.file is None else contender.file.file.checked


def deployed_of(contender: Contender, checked: CheckedOnnx | None) -> Target:
    """The candidate as it runs; `checked` is what `checked_model` gives, None for another kind of file."""
    if contender.file is not None:
        return contender.file.deployed()
    assert checked is not None  # what is made here is exported as ONNX
    return OnnxTarget(checked)


def in_runtime(contender: Contender, runtime: Runtime, candidate: Result, data: Data) -> Result:
    """The same file in another runtime: how far that agrees with ONNX Runtime on the evaluation records."""
    checked = checked_model(contender, candidate)
    runtime.check()
    with one_row(f"{runtime.phrase} cannot run it"):
        output = None if contender.file is None else contender.file.assumptions.output
        other = runtime.open(checked, output=output)
        if contender.file is not None:
            other = Deployed(other, contender.file.assumptions)
        certificate = certify(deployed_of(contender, checked), other, {"clean": data.evaluation.x})
    return Result(document=asdict(certificate.overall))


def twin_for(
    contender: Contender, candidate: Result, data: Data, device: torch.device, checked: CheckedOnnx | None = None
) -> nn.Module | None:
    """The differentiable stand-in of the deployed bytes, straight-through where it rounds; None: they have none.

    Args:
        checked: the candidate's `checked_model`, where it is at hand.
    """
    if contender.file is not None:
        twin = None if candidate.document["certificate"] is None else contender.file.differentiable(data)
    else:
        arrays = {name: array for name, array in candidate.arrays.items() if not name.startswith("evidence/")}
        fresh = contender.dense.architecture.blank()
        module = load_module(fresh, candidate.document["description"], arrays)
        twin = _twin(module, checked or checked_model(contender, candidate))
    return None if twin is None else frozen_copy(twin.to(device))


def native_of(twin: nn.Module | None) -> nn.Module | None:
    """The twin with the gradients that its rounding really has; the twin itself where nothing rounds."""
    if twin is None:
        return None
    hard = native(twin)
    rounds = any(hasattr(layer, "native") for layer in hard.modules())
    for layer in hard.modules():
        if isinstance(layer, Twin | Preprocessing):
            layer.straight_through = False
            rounds |= layer.rounds if isinstance(layer, Twin) else layer.assumptions.grid is not None
    return frozen_copy(hard) if rounds else twin


def lineage(parent: Contender, dense: Result, contender: Contender, candidate: Result) -> Result:
    """Whether the codes of a quantised file are roundings of the dense model's weights."""
    if "model.onnx" in dense.files and "model.onnx" in candidate.files:
        found = check_lineage(checked_model(parent, dense), checked_model(contender, candidate))
    else:
        found = not_read("tflite")
    layers = [{**asdict(layer), "shape": list(layer.shape)} for layer in found.layers]
    return Result(
        document={
            "verdict": found.verdict,
            "sentences": list(found.sentences),
            "layers": layers,
            "unmatched": [*found.unmatched_artifact, *found.unmatched_dense],
            "reason": found.reason,
        }
    )


def train_shadows(dense: Dense, population: PopulationPlan, first: int, last: int, device: torch.device) -> Result:
    """The shadow models [first, last) of a parent's population, trained as the parent was."""
    models = population.fit(dense.trainer, dense.architecture, first=first, last=last, device=device)
    arrays: Arrays = {}
    for position, module in enumerate(models, first):
        arrays |= {f"{position}/{name}": value for name, value in _state(module).items()}
    return Result(arrays=arrays, document={})


def signals(
    dense: Dense,
    recipe: Recipe | None,
    population: PopulationPlan,
    shadows: Sequence[Arrays],
    data: Data,
    device: torch.device,
) -> Result:
    """What each shadow, compressed by the recipe as the candidate was, says of the attacked records."""
    modules = []
    for arrays in shadows:
        module = dense.architecture.blank()
        _load(module, arrays)
        modules.append(frozen_copy(module.to(device)))
    with one_row("the shadow models cannot be compressed as the candidate was"):
        answers = shadow_signals(population, modules, recipe=recipe, bounds=data.bounds)
    return Result(arrays={"inside": answers.inside, "phi": answers.phi}, document={})


def blind(population: PopulationPlan, seed: int) -> Result:
    """Scores of a classifier that sees the attacked records and never a model."""
    scores = blind_scores(population.targets, population.is_member, seed=derive(seed, "blind"))
    return Result(arrays={"scores": scores}, document={})


def membership_case(
    population: PopulationPlan, own: Result | None, dense: Result | None, blind: Result, shadows: int | None
) -> MembershipCase:
    """What the membership attacker has; `shadows` leaves it the first so many of its own, None all.

    Without own signals it has no shadow model, and compares with the records it owns.
    """

    def of(result: Result | None) -> ShadowSignals | None:
        if result is None:
            return None
        return ShadowSignals(result.arrays["inside"][:shadows], result.arrays["phi"][:shadows])

    return population.case(of(own), of(dense), blind.arrays["scores"])


def make_case(
    contender: Contender,
    candidate: Result,
    parent: nn.Module | None,
    data: Data,
    device: torch.device,
    *,
    transfer: Result | None = None,
    membership: MembershipCase | None = None,
    other_draws: Sequence[nn.Module] = (),
) -> Case:
    """What the attacker of this cell may use.

    Args:
        other_draws: when given, the attacker lacks the shipped draw and differentiates the mean of these instead.
    """
    checked = checked_model(contender, candidate) if contender.file is None else None
    twin = twin_for(contender, candidate, data, device, checked)
    hard = native_of(twin)
    if other_draws:
        twin = hard = ExpectationTwin(list(other_draws))
    certificate = candidate.document["certificate"]
    return Case(
        deployed=deployed_of(contender, checked),
        twin=twin,
        native=hard,
        parent=parent,
        evaluation=data.evaluation,
        ids=data.evaluation_ids.numpy(),
        attacker=data.attacker,
        bounds=data.bounds,
        classes=data.classes,
        parent_adversarial={}
        if transfer is None
        else {float(name): torch.from_numpy(array) for name, array in transfer.arrays.items()},
        twin_agrees=certificate is not None and certificate["overall"]["label_agreement"] >= AGREEMENT,
        membership=membership,
    )


def run_attack(attack: Attack, case: Case, seed: int) -> Result:
    """The evidence of one attack on one candidate, and the certificate on the inputs it found."""
    evidence: Evidence = attack.run(case, seed=seed)
    document: dict[str, Any] = {
        "summary": evidence.summary,
        "flags": evidence.flags,
        "skipped": evidence.skipped,
        "ledger": asdict(evidence.ledger),
    }
    if "adversarial" in evidence.arrays and case.twin is not None:
        adversarial = torch.from_numpy(evidence.arrays["adversarial"])
        certificate = certify(case.deployed, TorchTarget(case.twin), {"adversarial": adversarial})
        document["certificate"] = asdict(certificate)
    return Result(arrays=evidence.arrays, document=document)


def refuse_regression() -> Result:
    """What an attack on classes says of a model that predicts values."""
    raise NotApplicable("not applicable: the attack is one on classifiers, and this model predicts values")


def serve_memory(contender: Contender, candidate: Result, shape: tuple[int, ...]) -> Result:
    """Resident bytes of a fresh process serving the candidate: a host fact, kept under `environment`."""
    if "model.onnx" not in candidate.files:
        raise NotApplicable("its memory is measured in ONNX Runtime only")
    return Result(arrays={}, document={"peak_bytes": peak_resident_bytes(checked_model(contender, candidate), shape)})


def _state(module: nn.Module) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def _load(module: nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    state: dict[str, Tensor] = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    module.load_state_dict(state)
