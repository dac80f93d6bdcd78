"""From an attack's measurements to findings: intervals, ids, evidence, and how to get each again."""

from __future__ import annotations

import traceback

from ...attacks.access import Flag
from ...attacks.attack import Attack
from ...attacks.measurement import Measurement
from ...attacks.statistics.rates import LEVEL
from ...targets.errors import InputError, NotApplicable, user_error
from ...targets.seeds import derive
from ..engine.cells import Cell
from ..engine.schedule import Outcome
from ..paths import without_paths
from ..schema.rows import Change, Estimate, Finding, GroupEstimate, ThreatModel
from ..subject.audited import AuditedModel
from ..suite.attack_cells import attack_cell
from ..suite.suite import Reached, Suite
from .estimates import change, curves, estimate, fragile, part, pattern, quantity, transfer
from .results import AttackResults, AuditResults, Finished

FAR_SAFER = 0.2  # of the records, surely: more than compression was ever seen to give


def findings_of(
    results: AuditResults, model: AuditedModel, attack: Attack, label: str, outcome: Outcome, store: Finished
) -> tuple[list[Finding], list[tuple[Measurement, float]]]:
    """The findings of an attack on one model; what it measured of a random recipe's draws, each with its level.

    Where the attack's own code (another package's, perhaps) fails, that is its one finding, and an entry in `outcome`.
    """
    try:
        position, one = results.round_of(label, model.name)
        level = results.suite.level(label, position)
        measured = measurements(results, model, one.attack, results.suite.round_label(label, position), level)
        found = [finding_row(results, model, attack, label, one) for one in measured if one.draw is None]
        return found, [(one, level) for one in measured if one.draw is not None]
    except NotApplicable as error:
        why = str(error)
    except Exception as error:
        told = str(error) if isinstance(error, InputError) else user_error(error)
        name, why = f"measure/{label}/{model.name}", f"failed: {told}"
        outcome.failed[name] = told
        store.keep_failure(Cell(name, ""), traceback.format_exc())
    blank = Measurement(attack.metrics[0], label, None, reason=without_paths(why))
    return [finding_row(results, model, attack, label, blank)], []


def measurements(
    results: AuditResults, model: AuditedModel, attack: Attack, label: str, level: float = LEVEL
) -> list[Measurement]:
    """What an attack says of one model; a row that nothing was measured where it says nothing.

    Args:
        level: of the intervals.

    Raises:
        InputError: its figures cannot be told apart, or are none that it declares.
        Exception: whatever its `measure` raises.
    """
    found = list(attack.measure(AttackResults(results, results.suite.scope(label), model, level)))
    details = [one.detail for one in found if one.draw is None]
    if len(set(details)) < len(details) or not set(details) <= set(attack.details(model)):
        raise InputError(
            f"The attack {label} gives findings of {model.name} with the details {details}: each is to be one of those "
            f"it announces ({', '.join(map(repr, attack.details(model)))}), and none twice."
        )
    undeclared = [one.metric.name for one in found if one.metric not in attack.metrics]
    if undeclared:
        raise InputError(f"The attack {label} measures {undeclared[0]!r}, which is not among its `metrics`.")
    if details:
        return found
    return [
        *found,
        Measurement(attack.metrics[0], attack.kind, None, reason=results.why(attack_cell(label, model.name))),
    ]


def finding_row(
    results: AuditResults, model: AuditedModel, attack: Attack, label: str, measured: Measurement
) -> Finding:
    """A measurement with its intervals, its id, its evidence and how to get it again; no verdict yet."""
    suite = results.suite
    identifier = finding_id(model.name, label, measured.detail)
    position, _ = results.round_of(label, model.name)
    level, own_label = suite.level(label, position), suite.round_label(label, position)
    gateable = measured.gateable and not model.is_dense and suite.task in attack.tasks
    own = None if measured.outcome is None else estimate(measured.outcome, level)
    seed = derive(suite.plan.seed, "bootstrap")
    groups = [GroupEstimate(name=name, **estimate(one, level).model_dump()) for name, one in measured.groups.items()]
    changes = [change(one, seed=seed, level=level) for one in measured.comparisons]
    sign = 1 if measured.metric.better == "higher" else -1
    found = Finding(
        id=identifier,
        candidate=model.name,
        risk=attack.risk.name,
        attack=measured.attack,
        metric=measured.metric.name,
        better=measured.metric.better,
        setting=measured.setting,
        chosen=measured.chosen,
        threat_model=ThreatModel(
            access="none" if measured.threat.access is None else measured.threat.access.value,
            knowledge=measured.threat.knowledge,
            budget=measured.threat.budget,
        ),
        estimate=own,
        available=measured.available,
        changes=changes,
        gateable=gateable,
        gated=gateable,
        verdict="not-measured" if own is None else "not-gated",
        reason=measured.reason,
        flags=sorted({*measured.flags, *_beyond_parent(model, measured, changes)}),
        notes=[*measured.notes, *_rounds(suite, label, position, own)],
        parts=[part(one, level) for one in measured.parts],
        curves=curves(measured, level),
        who_is_hit=sorted(groups, key=lambda row: (sign * row.estimate, row.name)),
        worse=list(measured.worse),
        transfers=[transfer(name, one, level) for name, one in measured.transfers.items()],
        quantities=[quantity(one, seed=seed, level=level) for one in measured.quantities],
        fragile=fragile(measured.fragile),
        pattern=pattern(measured.pattern),
        taxonomy={framework: list(ids) for framework, ids in attack.risk.taxonomy.items()},
        reproduce=reproduce(results.command, identifier),
    )
    cell = attack_cell(own_label, model.name, measured.run)
    return found if results.get(cell) is None else _with_evidence(results, found, cell)


def _beyond_parent(model: AuditedModel, measured: Measurement, changes: list[Change]) -> list[str]:
    """Of a file that withstands far more than the model it is said to come from."""
    comparable = measured.metric.unit == "percent" and measured.metric.better == "higher"
    if model.file is None or model.is_dense or not comparable or not changes or changes[0].low <= FAR_SAFER:
        return []
    return [Flag.BEYOND_PARENT.value]


def _rounds(suite: Suite, label: str, position: int, own: Estimate | None) -> list[str]:
    """What several looks at growing data did to the figure."""
    counts = [one.records for one in suite.rounds[label]]
    if len(counts) == 1 or own is None:
        return []
    return [
        f"Records were attacked in rounds (of {', '.join(map(str, counts))}) until the gates were decided; this figure "
        f"is of round {position + 1}. Its intervals are the {100 * suite.level(label, position):.1f} % ones, so that "
        "those of all rounds together hold with 95 % (error spending of Lan and DeMets, Pocock type)."
    ]


def finding_id(model: str, label: str, detail: str = "") -> str:
    """The model and the attack, and what tells it from another finding of the same attack."""
    return f"{model}/{label}" + (f"/{detail}" if detail else "")


def reproduce(command: str, identifier: str) -> str:
    """How to get a finding again; an audit from Python has no command."""
    if command:
        return f"{command} --only {identifier}"
    return "call crushproof.audit_model again with the same arguments and out=..., which keeps what is computed"


def _with_evidence(results: AuditResults, finding: Finding, cell: str) -> Finding:
    result = results.get(cell)
    assert result is not None, "asked only where there is evidence"
    path, digest = results.evidence(cell)
    return finding.model_copy(update={"evidence": path, "evidence_digest": digest, **result.document["ledger"]})


def cells_of(suite: Suite, finding: str, reached: Reached) -> list[str]:
    """Names of the cells a finding rests on, in the round it has reached: the candidate's own and its baselines'.

    Raises:
        InputError: the plan gives no such finding.
    """
    known = []
    for model in suite.models.values():
        for attack, label in suite.lineup.attacks:
            own = [finding_id(model.name, label, detail) for detail in attack.details(model)]
            known += own
            if finding in own:
                lineage = suite.lineage_cell(model.name)
                position = reached.get((label, model.name), 0)
                cells = suite.cells_read(
                    suite.rounds[label][position].attack, suite.round_label(label, position), model
                )
                return [*cells, *([lineage] if suite.has(lineage) else [])]
    raise InputError(f"There is no finding {finding!r} in this plan. Known: {', '.join(known)}.")
