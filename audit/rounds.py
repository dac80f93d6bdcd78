"""Attacks in rounds of ever more records, until each gate is decided or the data are spent."""

from __future__ import annotations

from dataclasses import replace

from .engine.driver import Executor, run
from .engine.progress import Progress
from .engine.schedule import Outcome
from .engine.store import Store
from .findings.assemble import assemble, results_of
from .findings.finding_rows import cells_of, finding_id
from .findings.pictures import Pictures, pictures_of
from .schema.rows import Audit
from .suite.suite import Reached, Suite
from .verdict.policy import Policy


def run_rounds(
    suite: Suite,
    store: Store,
    executor: Executor | None,
    policy: Policy,
    command: str,
    only: str | None,
    progress: Progress,
) -> tuple[Audit, Outcome, Pictures]:
    """Computes what is not stored, round by round, and judges after each.

    Args:
        executor: one that several runs may share; None: this process.
        only: a finding's id; just what it rests on is computed, and it alone decides whether there is a next round.

    Returns:
        The audit as it stands after the last round, what became of the cells of all rounds, and the pictures that the
        plan asks for.
    """
    reached: Reached = {}
    computed: list[str] = []
    peak = 0
    while True:
        cells = suite.cells_until(reached) if only is None else suite.closure(cells_of(suite, only, reached))
        outcome = run(suite, store, executor, cells=cells, progress=progress)
        computed += outcome.computed
        peak = max(peak, outcome.peak_bytes)
        audit = assemble(suite, store, outcome, policy, command, only, reached)
        after = None if outcome.failed else suite.further(reached, undecided(suite, audit))
        if after is None:
            break
        progress.note(going_on(suite, reached, after))
        reached = after
    outcome.stored = [name for name in outcome.stored if name not in set(computed)]
    outcome.computed, outcome.peak_bytes = computed, peak
    if only is not None:
        return audit, outcome, {}
    return audit, outcome, pictures_of(replace(results_of(suite, store, outcome, command), reached=reached))


def undecided(suite: Suite, audit: Audit) -> set[tuple[str, str]]:
    """The attacks (by label) and models whose gates more records would decide; a model that fails is decided."""
    failed = {row.name for row in audit.candidates if row.verdict == "fail"}
    open_ = {gate.finding for gate in audit.policy if gate.needs_records is not None and gate.candidate not in failed}
    return {
        (label, model.name)
        for model in suite.models.values()
        for attack, label in suite.lineup.attacks
        if open_ & {finding_id(model.name, label, detail) for detail in attack.details(model)}
    }


def going_on(suite: Suite, before: Reached, after: Reached) -> str:
    """Which models are attacked on more records, for people."""
    told = []
    for label in suite.rounds:
        further = {name: position for (one, name), position in after.items() if one == label}
        names = [name for name, position in further.items() if position != before.get((label, name), 0)]
        candidates = [name for name in names if not suite.models[name].is_dense]
        if candidates:
            records = suite.rounds[label][further[candidates[0]]].records
            told.append(f"{label} goes on to {records} records for {', '.join(candidates)}")
    return f"not decided yet: {'; '.join(told)}"
