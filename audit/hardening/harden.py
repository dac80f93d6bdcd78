"""`crushproof harden`: what would mend the candidates that fail, tried from the cheapest on, and a plan of what passes.

A candidate is tried as it would ship: its recipe done in a way that costs less robustness, its dense model trained with
a defense, and both. Each trial is audited in full, against its own parent by the policy, and against the plain dense
model too, so that no defense passes because its own parent was made worse. Recipes and defenses say themselves what
they can do about which figure (`Recipe.hardened`, `TrainingDefense.proposed`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...compression.recipe import RECIPES, Recipe
from ...compression.words import spelled
from ...defenses.chain import parse_defenses, steps_of
from ...defenses.defense import DEFENSES, TrainingDefense
from ...targets.errors import InputError
from ...targets.serving.statement import RowVerdict
from ...targets.technique import Technique
from ..engine.driver import workers_of
from ..engine.progress import Progress
from ..plan.plan import Plan
from ..plan.sections import CandidatePlan, LocalEngine
from ..run import run_audit
from ..schema.policy_rows import Gate
from ..schema.rows import Audit, Candidate
from ..search import short_recipe
from ..verdict.judging import judge
from .time_limit import TimeUp, Until

DENSE = "dense"


@dataclass(frozen=True)
class Trial:
    """One way to make a candidate so that it should pass.

    Args:
        name: of the candidate it becomes.
        of: the one that fails, whose other settings it keeps.
        defense: of its dense model's training; None: as `of` has it.
    """

    name: str
    of: CandidatePlan
    recipe: Recipe
    defense: TrainingDefense | None

    @property
    def words(self) -> str:
        how = f"{self.defense.phrase({})}, then " if self.defense is not None else ""
        return how + self.recipe.phrase


@dataclass
class Hardening:
    """What came of it.

    Args:
        found: by failing candidate, the trial that passes.
        missed: by failing candidate, a sentence that says what could not be reached.
        open: by candidate that neither fails nor passes, a sentence: there is nothing to mend, and it may not ship.
        audit: of the last round: all candidates and all trials.
        text: a plan with what passes in place of what fails; "": nothing was found for one of them, or nothing passes.
    """

    found: dict[str, Trial] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    audit: Audit | None = None
    text: str = ""


def harden(
    plan: Plan,
    folder: Path,
    out: Path,
    *,
    names: Sequence[str] = (),
    minutes: float = 10.0,
    workers: int | None = None,
    progress: Progress | None = None,
    command: str = "crushproof harden",
    tell: Callable[[str], None] = lambda line: None,
) -> Hardening:
    """Audits the plan, then trial after trial until each failing candidate has one that passes, or the time is up.

    Args:
        folder: where the plan lies. out: of the audit; what lies there is not computed again.
        names: of the candidates concerned, which alone are audited; empty: all of the plan.
        minutes: by the clock, the first audit included. A round is begun only if it fits, by its forecast and as long
            as the longest did, and is given up when the time is up.
        tell: told in a sentence what is tried and what came of it.

    Raises:
        InputError: the plan has no dense model to harden, or no such candidate.
        Incomplete: cells failed, another run holds `out`, or the first audit does not fit into the time (`TimeUp`).
    """
    started, longest = time.monotonic(), 0.0
    plan = _concerned(plan, names)
    done = Hardening()
    engine = plan.engine if workers is None else LocalEngine(workers=workers)
    until = Until(minutes, workers_of(engine), progress)

    def audited(candidates: dict[str, CandidatePlan]) -> Audit:
        nonlocal longest
        begun = time.monotonic()
        asked = plan.model_copy(update={"candidates": candidates, "release": None})
        asked = Plan.model_validate(asked.model_dump(mode="json", exclude_defaults=True, exclude={"file"}))
        done.audit = run_audit(asked, folder, out, workers=workers, progress=until, command=command)
        longest = max(longest, time.monotonic() - begun)
        return done.audit

    tried = dict(plan.candidates)
    audit = audited(tried)
    for failing in _failing(audit, plan.candidates):
        ladder = _trials(failing, plan.candidates[failing.name], audit)
        tell(f"{failing.name} fails: {failing.deciding}")
        left = list(ladder)
        while left and failing.name not in done.found:
            if time.monotonic() - started + longest > 60 * minutes:
                break
            trial = left.pop(0)
            tell(f"trying {trial.name}: {trial.words}")
            tried[trial.name] = CandidatePlan.model_validate(fields(trial))
            try:
                audit = audited(tried)
            except TimeUp as error:
                tell(f"{trial.name} is not audited to its end. {error}")
                tried.pop(trial.name)
                left.insert(0, trial)
                break
            row = next(one for one in audit.candidates if one.name == trial.name)
            worse = against_dense(audit, row)
            if row.verdict == "pass" and not worse:
                done.found[failing.name] = trial
                perhaps = against_dense(audit, row, "inconclusive")
                tell(
                    f"{trial.name} passes against its own parent, and against the plain dense model "
                    + (f"it is inconclusive: {perhaps[0]}" if perhaps else "too")
                )
            else:
                tell(
                    f"{trial.name}: {row.verdict if row.verdict != 'pass' else 'worse than the plain model'}. "
                    f"{worse[0] if row.verdict == 'pass' else row.deciding}"
                )
        if failing.name not in done.found:
            done.missed[failing.name] = _missed(failing, audit, [one for one in ladder if one not in left], left)
    rows = {row.name: row for row in audit.candidates}
    for name, candidate in plan.candidates.items():
        if name not in rows:
            why = [one for one in audit.deciding if one.startswith(f"{name}: ")]
            done.open[name] = why[0] if why else f"{name}: it could not be made."
            continue
        verdict, told = rows[name].verdict, rows[name].deciding or ""
        if verdict == "fail" and candidate.file is not None:
            done.missed[name] = f"{name}: it is a finished file, which is not made anew. {told}".rstrip()
        elif verdict not in ("pass", "fail"):
            done.open[name] = f"{name}: {verdict}, neither failing nor passing. {told}".rstrip()
    if not done.missed and len(done.open) < len(plan.candidates):
        done.text = _plan_text(plan, done)
    return done


def against_dense(audit: Audit, row: Candidate, verdict: RowVerdict = "fail") -> list[str]:
    """What a candidate of a hardened parent surely loses against the plain dense model, beyond the policy's limits.

    A sentence each; empty where nothing is, or where its parent is the plain model.

    Args:
        verdict: "inconclusive": what it loses perhaps.
    """
    beyond = "beyond" if verdict == "fail" else "which may be beyond"
    sentences = []
    for limit in audit.policy_limits:
        if limit.compares != "change" or limit.left_out is not None or limit.metric not in audit.metrics:
            continue
        metric = audit.metrics[limit.metric]
        changes = [row.quality_change_dense] if limit.metric == row.quality_metric.name else []
        for one in audit.findings:
            if one.candidate == row.name and one.metric == limit.metric and one.gateable:
                changes += [change for change in one.changes if change.baseline == DENSE]
        sentences += [
            f"Against the plain dense model its {metric.title.lower()} changes by {points(change.difference)} points "
            f"[{points(change.low)}, {points(change.high)}], {beyond} the policy's {points(limit.limit)}."
            for change in changes
            if change is not None and judge(change.low, change.high, limit.limit, metric.better) == verdict
        ]
    return sentences


def points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _concerned(plan: Plan, names: Sequence[str]) -> Plan:
    unknown = sorted(set(names) - set(plan.candidates))
    if unknown:
        raise InputError(f"The plan has no candidate {unknown[0]!r}; it has {', '.join(plan.candidates)}.")
    if plan.model is None:
        raise InputError("Hardening makes candidates anew, and this plan has no dense model: name it under model.")
    wanted = names or plan.release or ()
    chosen = {
        name: candidate
        for name, candidate in plan.candidates.items()
        if (name in wanted if wanted else not candidate.control)
    }
    return plan.model_copy(update={"candidates": chosen, "release": None})


def _failing(audit: Audit, candidates: dict[str, CandidatePlan]) -> list[Candidate]:
    """Rows of the candidates that fail and can be made anew."""
    return [
        row
        for row in audit.candidates
        if row.verdict == "fail" and row.name in candidates and candidates[row.name].file is None
    ]


def _gates(audit: Audit, name: str) -> list[Gate]:
    return [gate for gate in audit.policy if gate.candidate == name and gate.verdict != "pass"]


def _trials(failing: Candidate, of: CandidatePlan, audit: Audit) -> list[Trial]:
    """The ladder: other ways of the recipe, then each defense of the dense model, by itself and with those ways."""
    findings = {finding.id: finding for finding in audit.findings}
    word = of.recipe  # as it was before a defense hardened it
    recipe = RECIPES.parse(spelled(word))
    known = () if of.defense is None else steps_of(parse_defenses(of.defense))
    trained = any(one.stage == "training" for one in known)
    ways: list[Recipe] = []
    defenses: list[TrainingDefense] = []
    for gate in _gates(audit, failing.name):
        if gate.finding is None or gate.verdict != "fail":
            continue
        finding = findings[gate.finding]
        ways += [way for way in recipe.hardened(finding.metric, finding.setting) if way not in ways]
        for kind in DEFENSES.kinds().values():
            if issubclass(kind, TrainingDefense) and not trained:
                proposed = kind.proposed(finding.metric, finding.setting)
                defenses += [one for one in proposed if one not in defenses]
    pairs: list[tuple[Recipe, TrainingDefense | None]] = [(way, None) for way in ways]
    for one in defenses:  # all that comes of one dense model before another is trained
        pairs += [(recipe, one), *((way, one) for way in ways)]
    return [Trial(f"{failing.name}-hardened-{number}", of, way, one) for number, (way, one) in enumerate(pairs, 1)]


def fields(trial: Trial) -> dict[str, Any]:
    """Of the candidate as a plan has it: its defense stands before those that the failing one has."""
    given = trial.of.defense
    before = given if isinstance(given, list) else [] if given is None else [given]
    chain = [] if trial.defense is None else [_short(trial.defense), *before]
    defense = {"defense": chain if before else chain[0]} if chain else {}
    kept = trial.of.model_dump(mode="json", exclude_defaults=True, exclude={"recipe"})
    return {"recipe": short_recipe(trial.recipe.model_dump(mode="json")), **kept, **defense}


def _short(technique: Technique) -> dict[str, Any]:
    own = technique.model_dump(mode="json", exclude_defaults=True)
    return {"kind": technique.model_dump(mode="json")["kind"], **own}


def _missed(failing: Candidate, audit: Audit, tried: Sequence[Trial], left: Sequence[Trial]) -> str:
    """What could not be reached, and how near the nearest trial came."""
    names = {trial.name: trial for trial in tried}
    asked = [gate.rule for gate in _gates(audit, failing.name) if gate.verdict == "fail"]
    words = f"{failing.name}: no trial of {len(tried)} passes."
    for rule in asked:
        gates = [
            gate for gate in audit.policy if gate.candidate in names and gate.rule == rule and gate.value is not None
        ]
        if gates and rule in audit.metrics:
            better = -1 if audit.metrics[rule].better == "lower" else 1
            best = max(gates, key=lambda gate: better * (gate.value or 0.0))
            how = names[best.candidate].words
            words += f" The best {audit.metrics[rule].title.lower()} came by {how}: {best.sentence}"
            row = next(one for one in audit.candidates if one.name == best.candidate)
            if row.deciding and row.deciding != best.sentence:
                words += f" It is {row.verdict} all the same. {row.deciding}"
    if not tried and not left:
        words += " No recipe and no defense says that it would help: compress less, or mend what fails by hand."
    if left:
        words += (
            f" The time ended with {len(left)} ways not tried, {left[0].words} the next of them: the same command with "
            "more --minutes goes on from here."
        )
    return words


def new_name(plan: Plan) -> str:
    """Of the plan that is written."""
    return f"{plan.name}, hardened"


def _plan_text(plan: Plan, done: Hardening) -> str:
    """The plan with a trial that passes in the place of each candidate that fails."""
    head = plan.model_dump(mode="json", exclude_defaults=True, exclude={"candidates", "release"})
    head["name"] = new_name(plan)
    lines = [
        "# Found by crushproof harden: every candidate passes, as it was audited there.",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "candidates:",
    ]
    for name, candidate in plan.candidates.items():
        if name in done.found:
            trial = done.found[name]
            lines.append(f"  # in place of {name}, which fails: {trial.words}")
            lines.append(f"  {trial.name}: {json.dumps(fields(trial))}")
        elif name in done.open:
            lines.append(f"  # {name} is left out: it does not pass")
        else:
            own = candidate.model_dump(mode="json", exclude_defaults=True)
            lines.append(f"  {name}: {json.dumps(own)}")
    return "\n".join(lines) + "\n"
