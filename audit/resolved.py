"""The resolved plan: an audit's plan with all that a probe or the time decides, settled before the first attack.

The same resolved plan gives the same findings on any machine; the plan it came from may be resolved otherwise on a
slower one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import yaml
from pydantic import TypeAdapter

from ..attacks.attack import ATTACKS, Attack
from ..attacks.effort import Costs
from ..attacks.preparation import Preparation, Prepared
from ..targets.errors import CrushproofError
from . import shadow_numbers
from .engine.cells import Result, cell_key
from .engine.driver import run
from .engine.progress import QUIET, Progress
from .engine.store import Store
from .engine.work import forms_of
from .findings.results import Finished
from .forecast import Forecast, duration, forecast
from .plan.plan import Plan
from .plan.sections import MemoryData
from .plan.shadow_plan import ShadowPlan
from .subject.preflight import preflight
from .suite.environment import versions
from .suite.suite import Suite
from .writing import write_together

FILE = "resolved-plan.yaml"
ENOUGH = ShadowPlan(training_free=16, trained=16)  # with fewer, figures that rest on shadow models carry a flag
LEAST = ShadowPlan(training_free=8, trained=4)
SPARE = 0.85  # of a budget is given away: a forecast errs


def resolve_plan(suite: Suite, store: Store, *, workers: int, started: float, progress: Progress) -> Suite:
    """The suite of the plan with its open settings decided, or as an earlier run into this folder decided them.

    Args:
        suite: of the plan as it is.
        store: entered; what is computed for a probe stays in it.
        workers: how many cells are computed at once.
        started: when the audit began, on the monotonic clock: a budget counts from there.

    Raises:
        InputError: the model, its training or its data cannot be audited.
        CrushproofError: as a cell raised it.
    """
    plan, subject = suite.plan, suite.subject
    key = cell_key("resolved", plan.digest, subject.identity, subject.data.digest, versions())
    store.expect(forms_of(suite.cells()))
    known = _known(key, suite, store)
    if known is not None:
        suite = known
    else:
        if store.damaged.pop(key, None):
            progress.note("the settings that an earlier run decided were changed; they are decided anew")
        with _pulse(progress):
            checked = preflight(plan, subject, suite.device)
        for note in checked.notes:
            progress.note(note)
        suite = Suite(plan, subject, checked.costs)
        found = _probe(suite, store, progress)
        costs = _corrected(suite, store)
        attacks = [attack.settled(found) for attack, _ in suite.lineup.attacks]
        suite = Suite(_with(plan, _written(attacks), plan.shadows), subject, costs)
        shadows, told = shadow_numbers.settled(suite, workers)
        for sentence in told:
            progress.note(sentence)
        if shadows != plan.shadows:
            suite = Suite(suite.plan.model_copy(update={"shadows": shadows}), subject, costs)
        if plan.budget_seconds is not None:
            left = SPARE * plan.budget_seconds - (time.monotonic() - started)
            suite = _within(left, suite, store, workers, progress)
        decided = {"attacks": suite.plan.attacks, "shadows": suite.plan.shadows.model_dump(mode="json")}
        store.put(key, Result(document={**decided, "costs": asdict(costs)}))
    if not isinstance(plan.data, MemoryData):
        write_together({store.folder / FILE: resolved_text(suite.plan)}, store.half)
    expected = forecast(suite, _stored(suite, store), workers)
    if expected.most:
        progress.note(f"forecast: {expected.sentence(workers)}.{_cheaper(suite, expected, workers)}")
        for sentence in _unseen(suite, workers):
            progress.note(f"at this size: {sentence}")
    return suite


def _unseen(suite: Suite, workers: int) -> list[str]:
    """What the audit could not see at its size, and what its models for the attackers' sake take: asked for before it
    runs, since more of them cost time.
    """
    shared = suite.shared_trainings()
    if not shared:
        return []
    scopes = [(attack, suite.scope(label)) for attack, label in suite.lineup.attacks if suite.task in attack.tasks]
    told = dict.fromkeys(sentence for attack, scope in scopes for sentence in attack.power(scope))
    took = duration(sum(suite.cell(name).weight for name in shared) / workers)
    return [*told, f"Models trained for the attackers' sake take about {took} of the whole."]


@contextlib.contextmanager
def _pulse(progress: Progress) -> Iterator[None]:
    """A line every 30 seconds, in which no step is under way yet that would tell of itself."""
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(QUIET - 1):
            seconds = duration(time.monotonic() - began)
            progress.note(f"still trying model, training and recipes on a few records ({seconds} so far)")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _fewer(some: ShadowPlan, most: ShadowPlan) -> bool:
    """Whether a budget may have made the one of the other."""
    numbers = ([getattr(one, name) for one in (LEAST, some, most)] for name in ("training_free", "trained"))
    return all(min(least, high) <= one <= high for least, one, high in numbers)


def _known(key: str, suite: Suite, store: Store) -> Suite | None:
    """As an earlier run into this folder decided it; None: none did, or somebody changed what it wrote."""
    if not store.has(key):
        return None
    document = store.get(key).document
    try:
        attacks = _written([ATTACKS.parse(one) for one in document["attacks"]])  # in the order of their own fields
        settled = _with(suite.plan, attacks, ShadowPlan.model_validate(document["shadows"]))
        if not departures(suite, settled, store):
            return Suite(settled, suite.subject, TypeAdapter(Costs).validate_python(document["costs"]))
    except (KeyError, TypeError, ValueError, CrushproofError):
        pass
    store.damaged[key] = "it is not what the probes decide"
    store.drop(key)
    return None


def resolved_text(plan: Plan) -> str:
    """The plan as YAML."""
    fields = plan.model_dump(mode="json", exclude_defaults=True, exclude={"engine"}) | {"attacks": plan.attacks}
    head = (
        "# Written by crushproof before the first attack: the plan with all that a probe or the time decided\n"
        "# (radii, numbers of records and of shadow models). It gives the same findings on any machine. Paths and\n"
        "# modules in it are looked up in the folder it lies in: lay it beside the plan it came from, and audit it.\n"
    )
    return head + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)


def _with(plan: Plan, attacks: list[dict[str, Any]], shadows: ShadowPlan) -> Plan:
    return plan.model_copy(update={"attacks": attacks, "shadows": shadows, "budget": None})


def _written(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    return [attack.model_dump(mode="json") for attack in attacks]


def _probe(suite: Suite, store: Store, progress: Progress) -> dict[Preparation, Prepared]:
    """What the attacks' probes say, of those that apply; one training is done with them, to see what it takes."""
    probes = _probes(suite)
    cells = suite.closure([probe.name for probe in probes])
    trained = [cell for cell in cells if suite.effort(cell.name).trainings]
    one = next((cell for cell in suite.cells() if suite.effort(cell.name).trainings == 1), None)
    if one is not None and not trained:
        cells = suite.closure([*(probe.name for probe in probes), one.name])
    if cells:
        run(suite, store, cells=cells, progress=progress)
    return _found(suite, store)


def _probes(suite: Suite) -> list[Preparation]:
    return [
        probe
        for attack, label in suite.lineup.attacks
        for probe in (attack.probes(suite.scope(label)) if suite.task in attack.tasks else ())
        if suite.has(probe.name)
    ]


def _found(suite: Suite, store: Finished) -> dict[Preparation, Prepared]:
    """What the probes said that are in the store."""
    found = {}
    for probe in _probes(suite):
        key = suite.cell(probe.name).key
        result = store.get(key) if store.has(key) else None
        if result is not None and "not_applicable" not in result.document:
            found[probe] = Prepared(result.arrays, result.document)
    return found


def departures(suite: Suite, settled: Plan, store: Finished) -> list[str]:
    """In what a plan is not the one of `suite` with its open settings decided by the stored probes, a phrase each.

    Only where the plan names a budget may it have fewer shadows, and attacks on fewer records; where it names a leak,
    only the shadows that show it.
    """
    plan, budget = suite.plan, suite.plan.budget is not None
    open_ = {"attacks", "shadows", "budget", "engine"}
    wanted, given = (one.model_dump(mode="json", exclude=open_) for one in (plan, settled))
    wrong = [name for name in wanted if wanted[name] != given[name]]
    if plan.shadows.leak is not None:
        wrong += [] if shadow_numbers.could_be(settled.shadows, suite) else ["shadows"]
    elif settled.shadows != plan.shadows and not (budget and _fewer(settled.shadows, plan.shadows)):
        wrong.append("shadows")
    found = _found(suite, store)
    attacks = [attack.settled(found) for attack, _ in suite.lineup.attacks]
    if len(attacks) != len(settled.attacks):
        return [*wrong, "attacks"]
    for attack, written in zip(attacks, settled.attacks, strict=True):
        one: Attack | None = attack
        while one is not None and one.model_dump(mode="json") != written:
            one = one.smaller() if budget else None
        if one is None:
            wrong.append(f"the attack {attack.kind}")
    return wrong


def _corrected(suite: Suite, store: Store) -> Costs:
    """The costs with what one whole training took, where one was done."""
    for cell in suite.cells():
        if suite.effort(cell.name).trainings == 1 and (took := sum(store.seconds([cell.key]).values())):
            return replace(suite.costs, training=took)
    return suite.costs


def _within(left: float, suite: Suite, store: Store, workers: int, progress: Progress) -> Suite:
    """The largest suite that takes at most `left` seconds, halving whatever takes most; the smallest, if none does."""
    while forecast(suite, _stored(suite, store), workers).most > left:
        smaller = _smaller(suite, ENOUGH) or _smaller(suite, LEAST)
        if smaller is None:
            progress.note("the smallest audit of this plan takes longer than its budget; it is begun all the same")
            return suite
        suite = Suite(smaller, suite.subject, suite.costs)
    return suite


def _smaller(suite: Suite, least: ShadowPlan) -> Plan | None:
    """The plan with fewer shadows, or with an attack on fewer records: whichever takes more; None: it gets no smaller.

    Args:
        least: so many shadows there are to be.
    """
    options: list[tuple[float, Plan]] = []
    plan, shadows = suite.plan, suite.plan.shadows
    fewer = _half(shadows, least)
    if fewer != shadows:
        cost = sum(suite.cell(name).weight for name in suite.shared_trainings())
        options.append((cost, plan.model_copy(update={"shadows": fewer})))
    attacks = [attack for attack, _ in suite.lineup.attacks]
    for position, (attack, label) in enumerate(suite.lineup.attacks):
        smaller = attack.smaller()
        if smaller is not None and len(suite.rounds[label]) > 1:
            cost = sum(suite.cell(name).weight for name in suite.later_rounds(label))
            changed = _written([*attacks[:position], smaller, *attacks[position + 1 :]])
            options.append((cost, plan.model_copy(update={"attacks": changed})))
    return max(options, key=lambda option: option[0], default=(0.0, None))[1]


def _half(shadows: ShadowPlan, least: ShadowPlan) -> ShadowPlan:
    """Half as many shadows, where that leaves the least there are to be."""
    return ShadowPlan(
        training_free=min(shadows.training_free, max(shadows.training_free // 2, least.training_free)),
        trained=min(shadows.trained, max(shadows.trained // 2, least.trained)),
    )


def _cheaper(suite: Suite, expected: Forecast, workers: int) -> str:
    """What half of the shadows would take, where that would save minutes."""
    shadows = suite.plan.shadows
    half = _half(shadows, ENOUGH)
    if expected.likely < 120 or half == shadows:
        return ""
    cells = {suite.cell(name).key: suite.cell(name).weight for name in suite.shared_trainings()}
    saved = sum(cells.values()) / 2 / workers
    if saved < 0.2 * expected.likely:
        return ""
    settings = f"{{training_free: {half.training_free}, trained: {half.trained}}}"
    return f" With `shadows: {settings}` it would take about {duration(expected.likely - saved)}."


def _stored(suite: Suite, store: Store) -> set[str]:
    return {cell.key for cell in suite.cells() if store.has(cell.key)}
