"""How many shadow models there are to be where a plan names the leak that is to be seen, and the time they may take."""

from __future__ import annotations

from ..attacks.preparation import Scope
from .forecast import duration
from .plan.settings import seconds_of
from .plan.shadow_plan import ShadowPlan
from .suite.suite import Suite

LEAST, ENOUGH, MOST = 4, 16, 256  # shadow models; with fewer than ENOUGH, figures that rest on them carry a flag


def needed(suite: Suite) -> int | None:
    """The fewest that show the plan's leak, an even number.

    Where no number does, since the records are too few, `ENOUGH`. None: no attack of the plan can say.
    """
    leak, scopes = suite.plan.shadows.leak, _scopes(suite)
    if leak is None or not scopes:
        return None
    return next((count for count in range(LEAST, MOST + 1, 2) if _seen(suite, count) <= leak), ENOUGH)


def settled(suite: Suite, workers: int) -> tuple[ShadowPlan, list[str]]:
    """The plan's shadow models with numbers in place of a leak, and what is to be known of them, in sentences."""
    shadows, wanted = suite.plan.shadows, needed(suite)
    if shadows.leak is None:
        return shadows, []
    if wanted is None:
        return ShadowPlan(), [
            f"shadow models: no attack of this plan tells how many show a leak of {_percent(shadows.leak)}, since none "
            f"needs them or the records are too few; they are {ShadowPlan().training_free}"
        ]
    each = max(_clock(suite, 2 * ENOUGH) - _clock(suite, ENOUGH), 1e-6) / ENOUGH / workers
    count = wanted
    if shadows.within is not None:
        count = max(LEAST, min(wanted, int(seconds_of(shadows.within) / each) // 2 * 2))
    told = f"shadow models: {count} show a leak of {_percent(_seen(suite, count))} or more"
    told += f" (as a true positive rate at 1 % false positives) and take about {duration(count * each)}"
    if _seen(suite, MOST) > shadows.leak:
        told += f"; one of {_percent(shadows.leak)} takes more records, whatever the number of shadow models"
    elif count < wanted:
        told += (
            f"; one of {_percent(shadows.leak)} takes {wanted} and about {duration(wanted * each)}, more than "
            f"{shadows.within}"
        )
    if count < ENOUGH:
        told += f". With fewer than {ENOUGH}, figures that rest on them carry a flag"
    return ShadowPlan(training_free=count, trained=count), [told]


def could_be(found: ShadowPlan, suite: Suite) -> bool:
    """Whether the suite's plan, which names a leak, may have got these numbers on some machine."""
    plan, wanted = suite.plan, needed(suite)
    if wanted is None:
        return found == ShadowPlan()
    numbers = (found.training_free, found.trained)
    shorter = plan.shadows.within is not None or plan.budget is not None
    in_range = all(LEAST <= one <= wanted for one in numbers) if shorter else numbers == (wanted, wanted)
    return in_range and found.leak is None and found.within is None


def _scopes(suite: Suite) -> list[Scope]:
    found = [(attack, suite.scope(label)) for attack, label in suite.lineup.attacks if suite.task in attack.tasks]
    return [scope for attack, scope in found if attack.leak_seen(scope, ENOUGH) is not None]


def _seen(suite: Suite, count: int) -> float:
    """The smallest leak that every attack that can say sees with so many."""
    scopes = [(attack, suite.scope(label)) for attack, label in suite.lineup.attacks if suite.task in attack.tasks]
    found = [attack.leak_seen(scope, count) for attack, scope in scopes]
    return max(one for one in found if one is not None)


def _clock(suite: Suite, count: int) -> float:
    """CPU seconds of all that is trained for the attackers' sake, with so many."""
    plan = suite.plan.model_copy(update={"shadows": ShadowPlan(training_free=count, trained=count)})
    other = Suite(plan, suite.subject, suite.costs)
    return sum(other.cell(name).weight for name in other.shared_trainings())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
