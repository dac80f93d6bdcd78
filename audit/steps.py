"""What each cell computes: train, compress, shadow, attack. Every function is pure in its arguments and the seed.

Models travel between cells as named arrays (safetensors) and a JSON description, never as pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.attack import Attack, Case, Evidence, MembershipCase, ShadowSignals, frozen_copy
from ..attacks.evasion.evasion import Evasion
from ..attacks.evasion.pgd import craft
from ..attacks.membership.blind import blind_scores
from ..attacks.membership.population import PopulationPlan
from ..attacks.membership.signals import shadow_signals
from ..compression.export import to_onnx
from ..compression.fake_quantize import QuantizedLayer, native
from ..compression.footprint import footprint, peak_resident_bytes
from ..compression.payload import encode
from ..compression.recipe import Recipe
from ..compression.structure import load_module, save_module
from ..defenses.stochastic_rounding import ExpectationTwin
from ..targets.certificate import certify
from ..targets.checks import check_model
from ..targets.data import Data, Records
from ..targets.errors import InputError, NotApplicable, UnsafeInput
from ..targets.model import TorchTarget
from ..targets.onnx import OnnxTarget
from ..targets.seeds import derive, generator
from .cells import Result
from .lineup import Contender, Dense
from .subject import Subject

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
            "quantize can do without: calibration: range-free"
        )
    return data.members if data.members is not None else data.attacker.take(torch.arange(0))


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def check_finite(module: nn.Module, what: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise NotApplicable(f"{what} gave weights that are not finite: the training diverged; lower its learning rate")


def train_dense(dense: Dense, subject: Subject, seed: int, device: torch.device) -> Result:
    """Trains a dense model (or takes the given weights of the plain one)."""
    data, statement, notes = subject.data, {}, []
    if subject.state is not None and dense.defense is None:
        module = dense.architecture.blank()
        module.load_state_dict(subject.state)
    else:
        records = members(data)
        subset = torch.arange(len(records))
        module = dense.trainer.fit(dense.architecture, records, [subset], [derive(seed, dense.name)], device)[0]
        if dense.defense is not None:
            check_finite(module, f"the defense {dense.defense.kind}")
            statement = dense.defense.statement(len(records))
            if has_batch_norm(subject.architecture.blank()) and not has_batch_norm(module):
                statement["architecture"] = "batch norm was replaced by group norm"
    if dense.defense is None:  # a hardened model may well be at chance: that is a finding, with a flag, not a mistake
        notes = check_model(TorchTarget(module), data.evaluation, data.bounds, data.classes)
    return Result(arrays=_state(module), document={"statement": statement, "notes": notes})


def load_dense(dense: Dense, result: Result, device: torch.device) -> nn.Module:
    module = dense.architecture.blank()
    _load(module, result.arrays)
    return frozen_copy(module.to(device))


def make_candidate(contender: Contender, recipe: Recipe | None, parent: nn.Module, data: Data, seed: int) -> Result:
    """Compresses, exports and weighs one candidate, and certifies its twin on clean and on random inputs."""
    module = parent
    if recipe is not None:
        module = recipe.apply(parent, seen_by(recipe, data), data.bounds, seed=derive(seed, "recipe", contender.name))
        check_finite(module, f"the recipe {recipe.kind}")
    evaluation = data.evaluation
    try:
        model = to_onnx(module, data.shape)
        payload = encode(module)
        deployed = OnnxTarget(model)
        logits = deployed.logits(evaluation.x)
        weights = footprint(module, model, payload, data.shape)
    except (InputError, UnsafeInput) as error:  # about our own artefact: one candidate's row, not the end of the audit
        raise NotApplicable(f"it cannot be deployed: {error}") from error
    noise = torch.rand(evaluation.x.shape, generator=generator(seed, "certificate"))
    random = data.bounds.low + noise * data.bounds.scale
    certificate = certify(deployed, TorchTarget(module), {"clean": evaluation.x, "random": random})
    description, arrays = save_module(module)
    arrays = {**arrays, "evidence/correct": (logits.argmax(1) == evaluation.y).numpy()}
    return Result(
        arrays=arrays,
        document={
            "description": description,
            "footprint": weights,
            "certificate": asdict(certificate),
            "digest": hashlib.sha256(model).hexdigest(),
        },
        files={"model.onnx": model, "payload.bin": payload},
    )


def load_candidate(contender: Contender, result: Result, device: torch.device) -> nn.Module:
    """The candidate's torch module: differentiable, straight-through where it rounds."""
    arrays = {name: array for name, array in result.arrays.items() if not name.startswith("evidence/")}
    fresh = contender.parent.architecture.blank()
    return frozen_copy(load_module(fresh, result.document["description"], arrays).to(device))


def craft_transfer(parent: nn.Module, data: Data, attack: Evasion, seed: int) -> Result:
    """Adversarial inputs made on a parent, which every candidate of it is asked."""
    records = data.evaluation.take(torch.arange(min(attack.records, len(data.evaluation))))
    crafted = craft(parent, records, attack.epsilons, attack.norm, data.bounds, seed=derive(seed, "transfer"))
    return Result(arrays={f"{epsilon!r}": x.cpu().numpy() for epsilon, x in crafted.items()}, document={})


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
    answers = shadow_signals(population, modules, recipe=recipe, bounds=data.bounds)
    return Result(arrays={"inside": answers.inside, "phi": answers.phi}, document={})


def blind(population: PopulationPlan, seed: int) -> Result:
    """Scores of a classifier that sees the attacked records and never a model."""
    scores = blind_scores(population.targets, population.is_member, seed=derive(seed, "blind"))
    return Result(arrays={"scores": scores}, document={})


def membership_case(
    population: PopulationPlan, own: Result, dense: Result | None, blind: Result, shadows: int | None
) -> MembershipCase:
    """What the membership attacker has; `shadows` leaves it the first so many of its own, None all."""

    def of(result: Result) -> ShadowSignals:
        return ShadowSignals(result.arrays["inside"][:shadows], result.arrays["phi"][:shadows])

    return population.case(of(own), None if dense is None else of(dense), blind.arrays["scores"])


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
    module = load_candidate(contender, candidate, device)
    rounds = any(isinstance(layer, QuantizedLayer) for layer in module.modules())
    twin: nn.Module = module
    hard: nn.Module = frozen_copy(native(module)) if rounds else module
    if other_draws:
        twin = hard = ExpectationTwin(list(other_draws))
    return Case(
        deployed=OnnxTarget(candidate.files["model.onnx"]),
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
        twin_agrees=candidate.document["certificate"]["overall"]["label_agreement"] >= AGREEMENT,
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


def serve_memory(candidate: Result, data: Data) -> Result:
    """Resident bytes of a fresh process serving the candidate: a host fact, kept under `environment`."""
    return Result(arrays={}, document={"peak_bytes": peak_resident_bytes(candidate.files["model.onnx"], data.shape)})


def _state(module: nn.Module) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def _load(module: nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    state: dict[str, Tensor] = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    module.load_state_dict(state)
