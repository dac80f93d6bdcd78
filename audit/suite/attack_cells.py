"""The cells of attacks: each run against one model, the shared work it declares, and what a run is handed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import torch
from torch import nn

from ...attacks.access import Ledger
from ...attacks.attack import Attack, Run, Task
from ...attacks.case import Case, Evidence
from ...attacks.effort import Effort
from ...attacks.preparation import Basis, Deployed, Elsewhere, Need, Preparation, Prepared, Ran, Scope, Weights
from ...compression.quantization.quantized_layer import true_gradients
from ...defenses.chain import DefenseChain, steps_of
from ...defenses.stochastic_rounding import ExpectationTwin
from ...targets.certificate import AGREEMENT, certify
from ...targets.errors import InputError, NotApplicable
from ...targets.form import Form
from ...targets.interface.preprocessing import Preprocessing
from ...targets.model import Target, TorchTarget, frozen_copy
from ...targets.seeds import derive
from ...targets.twin.twin import Twin
from ..engine.cells import Result
from ..subject.audited import AuditedModel, Opened
from ..subject.identity import class_identity, technique_identity
from . import forms
from .model_cells import opened_in
from .model_suite import ModelSuite

Get = Callable[[str], Result]


def attack_cell(label: str, model: str, detail: str = "") -> str:
    """The cell of an attack on one model, named apart from all other sorts of cells: `attack/pgd/int8`."""
    return f"attack/{label}/{model}" + (f"/{detail}" if detail else "")


def add_attack(suite: ModelSuite, attack: Attack, label: str) -> None:
    """Every run of an attack on every model, and the shared work that its measurements look at."""
    scope = suite.scope(label)
    for model in suite.models.values():
        if suite.task not in attack.tasks:
            nothing = Effort()
            suite.add(
                attack_cell(label, model.name),
                attack.kind,
                [],
                [],
                lambda get: _another_task(suite.task),
                effort=nothing,
                form=Form(),
            )
            continue
        knowing = adapted(attack, model)
        for run in knowing.runs(model, scope):
            _add_run(suite, knowing, run, suite.models[run.model or model.name], scope)
    if suite.task in attack.tasks:
        for model in suite.models.values():
            for need in (*attack.reads(model, scope), *attack.beside(model, scope)):
                if isinstance(need, Preparation):
                    _cells_for(suite, [need], scope)


def adapted(attack: Attack, model: AuditedModel) -> Attack:
    """The attack that knows the defenses in a model's making."""
    steps = steps_of(model.defense)
    hardened = model.parent.hardened if model.parent is not None else None
    if hardened is not None and hardened not in steps:
        steps = (hardened, *steps)
    return DefenseChain(kind="chain", steps=steps).adapted(attack)


def _another_task(task: Task) -> NoReturn:
    """What an attack on models of another task says of this one."""
    wanted, found = "models of values", "picks a class"
    if task is Task.REGRESSION:
        wanted, found = "classifiers", "predicts values"
    raise NotApplicable(f"not applicable: the attack is one on {wanted}, and this model {found}")


def _add_run(suite: ModelSuite, attack: Attack, run: Run, model: AuditedModel, scope: Scope) -> None:
    variant = run.attack or attack
    draws = range(len(model.draws) + 1) if run.without_draw else [run.draw or 0]
    needs = [suite.model_cell(model.name, draw) for draw in draws]
    needs += [suite.training_cell(model.parent.name)] if model.parent is not None and run.uses_parent else []
    needs += _cells_for(suite, run.needs, scope)

    def compute(get: Get) -> Result:
        return run_attack(variant, case_of(suite, run, model, scope, get), derive(suite.plan.seed, attack.kind))

    name = attack_cell(scope.label, model.name, run.detail)
    suite.add(
        name,
        attack.kind,
        [technique_identity(variant), run.identity, run.draw, run.without_draw],
        needs,
        compute,
        effort=run.effort,
        sharing=[technique_identity(variant.sharing()), run.identity, run.draw, run.without_draw],
        words=f"{scope.label.replace('@', ', records ')} on {model.name}" + (f" ({run.detail})" if run.detail else ""),
        form=forms.evidence(variant.form(model, scope)),
    )
    suite.runs[name] = run


def case_of(suite: ModelSuite, run: Run, model: AuditedModel, scope: Scope, get: Get) -> Case:
    """What a run is handed."""
    inputs = CellInputs(suite, scope, get)
    case = inputs.case(model.name, draw=run.draw or 0, without_draw=run.without_draw, uses_parent=run.uses_parent)
    return case if run.prepare is None else replace(case, prepared=run.prepare(inputs))


def _cells_for(suite: ModelSuite, needs: Iterable[Need], scope: Scope) -> list[str]:
    """The cells of some needs; those of shared work are added with all they need themselves.

    Raises:
        InputError: a run is needed that does not come before.
    """
    names: dict[str, None] = {}
    for need in needs:
        match need:
            case Deployed(model):
                parent = suite.models[model].parent
                names |= dict.fromkeys([suite.model_cell(model)])
                names |= {} if parent is None else dict.fromkeys([suite.training_cell(parent.name)])
            case Elsewhere(model, runtime):
                names |= dict.fromkeys([suite.model_cell(model), suite.runtime_cell(model, runtime)])
            case Weights(dense):
                names[suite.training_cell(dense)] = None
            case Ran(model, detail):
                cell = attack_cell(scope.label, model, detail)
                if not suite.has(cell):
                    raise InputError(
                        f"The attack {scope.label} needs a run that is not there yet ({cell}): a run may need those on "
                        "models before its own, the dense ones first; shared work for a comparison goes into `reads`."
                    )
                names[cell] = None
            case Preparation():
                names[need.name] = None
                _add_preparation(suite, need, scope)
    return list(names)


def _add_preparation(suite: ModelSuite, preparation: Preparation, scope: Scope) -> None:
    """A cell for all who name this work; the suite refuses other work of the same name."""

    def compute(get: Get) -> Result:
        prepared = preparation.compute(CellInputs(suite, scope, get))
        return Result(arrays=prepared.arrays, document=prepared.document)

    made_by = [
        type(preparation).__qualname__,
        class_identity(type(preparation)),
        *(technique_identity(technique) for technique in preparation.techniques),
    ]
    suite.add(
        preparation.name,
        preparation.phase,
        [preparation.identity, *made_by],
        _cells_for(suite, preparation.needs, scope),
        compute,
        effort=preparation.effort,
        sharing=[preparation.sharing, *made_by],
        words=preparation.words,
        form=preparation.form(scope),
    )


@dataclass(frozen=True)
class CellInputs:
    """What a run or a preparation is handed, from the results of the cells that it needs."""

    suite: ModelSuite
    scope: Scope
    get: Get

    @property
    def device(self) -> torch.device:
        return self.suite.device

    def case(self, model: str, *, draw: int = 0, without_draw: bool = False, uses_parent: bool = True) -> Case:
        audited = self.suite.models[model]
        parent = None if audited.parent is None or not uses_parent else self.weights(audited.parent.name)
        candidate = self.get(self.suite.model_cell(model, draw))
        opened = audited.opened(candidate, self.suite.subject.data)
        others = [
            self._on_device(audited.opened(self.get(self.suite.model_cell(model, other)), self.suite.subject.data))
            for other in (range(1, len(audited.draws) + 1) if without_draw else ())
        ]
        twin = self._on_device(opened)
        draws = [one for one in others if one is not None]
        naive = None if opened.naive is None else frozen_copy(opened.naive().to(self.device))
        made = make_case(self.suite, opened.target, candidate, parent, twin, draws, naive)
        return made if audited.file is None else replace(made, assumptions=audited.file.assumptions)

    def deployed(self, model: str) -> Target:
        return self._opened(model).target

    def twin(self, model: str) -> nn.Module | None:
        return self._on_device(self._opened(model))

    def elsewhere(self, model: str, runtime: str) -> Target:
        kinds = {label: one for one, label in self.suite.lineup.runtimes}
        return opened_in(self.suite.models[model], kinds[runtime], self._opened(model))

    def _opened(self, model: str) -> Opened:
        return self.suite.models[model].opened(self.get(self.suite.model_cell(model)), self.suite.subject.data)

    def weights(self, dense: str) -> nn.Module:
        return self.suite.trained(dense, self.get)

    def prepared(self, preparation: Preparation) -> Prepared:
        result = self.get(preparation.name)
        return Prepared(result.arrays, result.document)

    def evidence(self, ran: Ran) -> Evidence:
        return evidence_of(self.get(attack_cell(self.scope.label, ran.model, ran.detail)))

    def _on_device(self, opened: Opened) -> nn.Module | None:
        twin = opened.twin()
        return None if twin is None else frozen_copy(twin.to(self.device))


def make_case(
    suite: ModelSuite,
    deployed: Target,
    candidate: Result,
    parent: nn.Module | None,
    twin: nn.Module | None,
    other_draws: list[nn.Module],
    naive: nn.Module | None = None,
) -> Case:
    """What the attacker of a model has.

    Args:
        other_draws: when given, the attacker lacks the shipped draw and differentiates the mean of these instead.
        naive: what is differentiated by who does not look behind a layer that limits answers; None: there is none.
    """
    data = suite.subject.data
    hard = true_gradients_of(twin if naive is None else naive)
    if other_draws:
        twin = hard = ExpectationTwin(other_draws)
    return Case(
        deployed=deployed,
        twin=twin,
        native=hard,
        parent=parent,
        evaluation=data.evaluation,
        ids=data.evaluation_ids.numpy(),
        attacker=data.attacker,
        bounds=data.bounds,
        classes=data.classes,
        twin_agrees=twin_agrees(candidate),
        structure=data.structure,
        shipped=next((content for name, content in candidate.files.items() if name.startswith("model.")), b""),
    )


def twin_agrees(candidate: Result) -> bool:
    """On all inputs that were compared, and on clean records alone, of which one may lie on a boundary."""
    certificate = candidate.document["certificate"]
    if certificate is None or certificate["overall"]["label_agreement"] < AGREEMENT:
        return False
    clean = certificate["kinds"].get("clean")
    return clean is None or round(clean["n"] * (1 - clean["label_agreement"])) <= max(1, (1 - AGREEMENT) * clean["n"])


def basis_of(suite: ModelSuite, run: Run, model: AuditedModel, scope: Scope, get: Get) -> Basis:
    """As `case_of`, of what is stored alone."""

    def prepared() -> object:
        return None if run.prepare is None else run.prepare(CellInputs(suite, scope, get))

    made = get(suite.model_cell(model.name, run.draw or 0))
    correct = None if made.document.get("varies") else made.arrays.get("evidence/correct")
    return Basis(prepared, twin_agrees(made), correct)


def true_gradients_of(twin: nn.Module | None) -> nn.Module | None:
    """The twin with the gradients that its rounding really has; the twin itself where nothing rounds."""
    if twin is None:
        return None
    hard = true_gradients(twin)
    rounds = any(hasattr(layer, "true_gradients") for layer in hard.modules())
    for layer in hard.modules():
        if isinstance(layer, Twin | Preprocessing):
            layer.straight_through = False
            rounds |= layer.rounds if isinstance(layer, Twin) else layer.assumptions.grid is not None
    return frozen_copy(hard) if rounds else twin


def run_attack(attack: Attack, case: Case, seed: int) -> Result:
    """The evidence of one attack on one candidate, and the certificate on the inputs it found."""
    evidence = attack.run(case, seed=seed)
    if not isinstance(evidence, Evidence):
        raise TypeError(f"{type(attack).__name__}.run gives {type(evidence).__name__}, not Evidence")
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


def evidence_of(result: Result) -> Evidence:
    """The evidence that `run_attack` stored."""
    document = result.document
    certificate = document.get("certificate")
    return Evidence(
        result.arrays,
        document["summary"],
        document["flags"],
        document["skipped"],
        Ledger(**document["ledger"]),
        None if certificate is None else certificate["overall"]["label_agreement"],
    )
