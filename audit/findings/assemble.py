"""From what is in the store to an audit: a row per model, a finding per measurement, and what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...attacks.attack import ATTACKS, Attack
from ...attacks.preparation import Scope
from ...attacks.risk import PROMISES, QUALITIES, Metric, Risk
from ...attacks.statistics.power import unseen_loss
from ...targets.errors import InputError
from ..engine.cells import Result
from ..engine.schedule import Outcome
from ..paths import without_paths
from ..plan.plan import DENSE
from ..schema.rows import (
    SCHEMA,
    Audit,
    Candidate,
    Environment,
    Finding,
    NotMeasured,
)
from ..subject.audited import AuditedModel
from ..suite.model_suite import LATENCY
from ..suite.suite import Reached, Suite
from ..verdict.judging import apply_policy
from ..verdict.policy import Policy
from .candidates import candidate_row
from .data_summary import data_summary
from .finding_rows import findings_of
from .results import AuditResults, Finished

UNMADE = "the candidate itself"


def assemble(
    suite: Suite,
    store: Finished,
    outcome: Outcome,
    policy: Policy,
    command: str,
    only: str | None = None,
    reached: Reached | None = None,
) -> Audit:
    """The audit from what is in the store; what is missing becomes rows that say so.

    Args:
        reached: the round of each attack on each model; default: the first.
        outcome: where an attack's own `measure` fails, `measure/<attack>/<model>` is added to the failed.
    """
    results = replace(results_of(suite, store, outcome, command), reached=reached or {})
    rows: list[Candidate] = []
    findings: list[Finding] = []
    missing: list[NotMeasured] = []
    for model in suite.models.values():
        if only is not None and model.name != only.partition("/")[0]:
            continue
        made = results.of(model.name)
        if made is None:
            why = results.why(suite.model_cell(model.name))
            missing.append(NotMeasured(candidate=model.name, what=UNMADE, reason=why))
            continue
        told = [findings_of(results, model, *one, outcome, store) for one in suite.lineup.attacks]
        found = [one for new, _ in told for one in new if only is None or one.id == only]
        draws = [one for _, other in told for one in other]
        if only is not None and not found:
            missing.append(NotMeasured(candidate=model.name, what=only, reason="its attack gave no such finding"))
        rows.append(candidate_row(results, model, made, draws))
        findings += found
        missing += not_measured(model.name, found)
        missing += missing_draws(results, model)
        missing += missing_runtimes(results, model.name)
    made_names = {row.name for row in rows}
    release = [name for name in suite.plan.up_for_release if only is None or name in made_names]
    unmade = [f"{row.candidate}: {row.reason}" for row in missing if row.what == UNMADE and row.candidate in release]
    metrics = known_metrics(suite.lineup.attacks)
    judged = apply_policy(rows, findings, policy, release, metrics)
    data = suite.subject.data
    return Audit(
        schema_=SCHEMA,
        name=suite.plan.name,
        verdict=judged.verdict,
        deciding=[*judged.deciding, *unmade],
        beside=judged.beside,
        plan=suite.plan.shown,
        plan_digest=suite.plan.digest,
        seed=suite.plan.seed,
        data=data_summary(data),
        candidates=judged.candidates,
        findings=judged.findings,
        risks=known_risks(suite),
        metrics=metrics,
        policy=judged.gates,
        policy_name=policy.name,
        policy_limits=policy.limits,
        release=release,
        not_measured=missing,
        power=power_of(suite),
        limits=[*data.notes, *model_notes(results), *limits_of(suite)],
        declared=dict(suite.plan.declared),
        environment=environment_measured(results),
    )


def environment_measured(results: AuditResults) -> Environment:
    """The host, and what the models took of its time and memory: what of it is stored as results."""
    served = {name: results.get(f"memory/{name}") for name in results.suite.models}
    timed = results.get(LATENCY)
    return Environment(
        versions=dict(results.suite.setup.versions),
        machine=results.suite.setup.machine,
        latency={} if timed is None else timed.document["latency"],
        candidate_peak_bytes={name: one.document["peak_bytes"] for name, one in served.items() if one is not None},
    )


def results_of(suite: Suite, store: Finished, outcome: Outcome, command: str) -> AuditResults:
    def get(name: str) -> Result | None:
        if not suite.has(name) or not store.has(suite.cell(name).key):
            return None
        result = store.get(suite.cell(name).key)
        return None if "not_applicable" in result.document else result

    def why(name: str) -> str:
        if name in outcome.failed:
            return without_paths(f"failed: {outcome.failed[name]}")
        if name in outcome.unavailable:
            return without_paths(outcome.unavailable[name])
        if suite.has(name) and store.has(suite.cell(name).key):
            return without_paths(str(store.get(suite.cell(name).key).document.get("not_applicable", "unknown")))
        return "something it needs failed"

    def evidence(name: str) -> tuple[str, str]:
        return store.evidence(suite.cell(name).key)

    return AuditResults(suite, get, why, evidence, command)


# -- what was not measured --------------------------------------------------------------------------------------------


def not_measured(model: str, findings: list[Finding]) -> list[NotMeasured]:
    """A row for each finding that has no estimate and each part of an attack that did not run."""
    rows = []
    for finding in findings:
        if finding.estimate is None:
            rows.append(NotMeasured(candidate=model, what=finding.id, reason=finding.reason or "unknown"))
        rows += [
            NotMeasured(candidate=model, what=f"{finding.id}: {one.name}", reason=one.skipped)
            for one in finding.parts
            if one.skipped
        ]
    return rows


def missing_draws(results: AuditResults, model: AuditedModel) -> list[NotMeasured]:
    """A row for each draw of a random recipe that could not be made."""
    cells = [results.suite.model_cell(model.name, draw) for draw in range(1, len(model.draws) + 1)]
    return [
        NotMeasured(candidate=model.name, what=cell, reason=results.why(cell))
        for cell in cells
        if results.get(cell) is None
    ]


def missing_runtimes(results: AuditResults, model: str) -> list[NotMeasured]:
    """A row for each runtime of the plan in which the file could not be run."""
    cells = {label: results.suite.runtime_cell(model, label) for _, label in results.suite.lineup.runtimes}
    return [
        NotMeasured(candidate=model, what=f"in {label}", reason=results.why(cell))
        for label, cell in cells.items()
        if results.get(cell) is None
    ]


def model_notes(results: AuditResults) -> list[str]:
    """What the check of the dense model noticed and did not refuse."""
    cell = results.suite.training_cell(DENSE)
    trained = results.get(cell)
    return [] if trained is None else list(trained.document["notes"])


# -- what the whole audit says ----------------------------------------------------------------------------------------


def known_metrics(planned: Sequence[tuple[Attack, str]]) -> dict[str, Metric]:
    """Every figure there is, by name: of models, of the plan's attacks, of the other attacks.

    Raises:
        InputError: an attack of the plan gives another figure, or another risk, the name of one that is taken.
    """
    known = {metric.name: metric for metric in (*QUALITIES, *PROMISES)}
    risks: dict[str, Risk] = {}
    for attack, label in planned:
        for metric in attack.metrics:
            if known.setdefault(metric.name, metric) != metric:
                raise InputError(f"The attack {label} calls its figure {metric.name!r}, and so is another one called.")
        if risks.setdefault(attack.risk.name, attack.risk) != attack.risk:
            raise InputError(f"The attack {label} calls its risk {attack.risk.name!r}, and so is another one called.")
    for kind in ATTACKS.kinds().values():
        for metric in kind.metrics:
            known.setdefault(metric.name, metric)
    return known


def known_risks(suite: Suite) -> dict[str, Risk]:
    """The risks of the plan's attacks, by name, in the order of the plan."""
    return {attack.risk.name: attack.risk for attack, _ in suite.lineup.attacks}


def power_of(suite: Suite) -> list[str]:
    """Which loss or leak would have gone unseen, at 80 % power and 95 % confidence."""
    n, sentences = len(suite.subject.data.non_members), []
    if not suite.subject.data.regression:  # an error's interval says what it could have shown
        sentences = [f"Accuracy: {unseen_loss('a loss', n)} (less churn assumed than there may be)."]
    return sentences + _said(suite, lambda attack, scope: attack.power(scope) if suite.task in attack.tasks else [])


def limits_of(suite: Suite) -> list[str]:
    """What a pass does not prove."""
    return [
        *_said(suite, lambda attack, scope: attack.limits(scope)),
        "Every figure holds for records like the evaluated ones and for the deployed bytes named by their digest. "
        "Recompressing, retraining or another runtime makes another model.",
        "Energy is modelled from operation counts and published figures per operation, not measured.",
    ]


def _said(suite: Suite, ask: Callable[[Attack, Scope], list[str]]) -> list[str]:
    """What each attack says of itself, each sentence once."""
    said = [sentence for attack, label in suite.lineup.attacks for sentence in ask(attack, suite.scope(label))]
    return list(dict.fromkeys(said))
