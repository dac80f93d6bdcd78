"""The policy that fits the inputs of an audit: what they cannot decide is known, and said, before anything runs.

Where a plan names no policy, `release` is taken without the limits on figures that these inputs cannot give; its name
says so. A policy that is named stays as it is: what cannot be decided keeps its candidates from passing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...attacks.attack import ATTACKS, Attack, Task
from ...attacks.preparation import Scope
from ...attacks.risk import ACCURACY, MEAN_SQUARED_ERROR, PROMISES, QUALITIES, Metric
from ...targets.errors import CrushproofError, InputError, user_error
from ..schema import wording
from ..schema.policy_rows import Limit
from ..schema.rows import Audit
from .policy import BUILT_IN, FittedPolicy, Policy, load_policy

DEFAULT = BUILT_IN["release"]
NO_DENSE = "no dense model"
NOT_OF = "no attack of the plan measures that"
QUALITY_NAMES = {metric.name for metric in QUALITIES}
PROMISE_NAMES = {metric.name for metric in PROMISES}

Planned = Sequence[tuple[Attack, Scope]]


def policy_for(
    named: Any, folder: Path, metrics: Mapping[str, Metric], planned: Planned
) -> tuple[Policy, tuple[str, ...]]:
    """The policy that a plan names (None: the one that fits), and what to know of it before anything runs.

    Args:
        folder: where a policy file is looked up.
        planned: the attacks of the plan, each with its scope.

    Raises:
        InputError, UnsafeInput: as `load_policy`; an attack cannot say whether it is for these inputs.
    """
    policy = DEFAULT if named is None else load_policy(named, folder, metrics)
    gaps = undecidable(policy, planned)
    if named is None:
        policy = fitted(policy, [gap for gap in gaps if gap.left_out != NOT_OF])
        gaps = [gap for gap in gaps if gap.left_out == NOT_OF]
    notes = []
    if named is None and policy is not DEFAULT:
        notes = [f"No policy is named, so what these inputs can decide is judged: {policy.name}."]
    if (nothing := nothing_to_judge(policy)) is not None:
        return policy, (f"{nothing} Everything is measured all the same.",)
    reasons = dict.fromkeys(gap.left_out for gap in gaps)
    for reason in reasons:
        mine = [gap for gap in gaps if gap.left_out == reason]
        names = wording.enumerate_words(list(dict.fromkeys(gap.metric for gap in mine)))
        notes.append(f"The policy {policy.name} limits {names}, and nothing can pass: {_why(mine)}")
    return policy, tuple(notes)


def _why(gaps: Sequence[Limit]) -> str:
    reason, attacks = gaps[0].left_out, gaps[0].attacks
    if reason == NOT_OF:
        kinds = sorted({kind for gap in gaps for kind in gap.attacks})
        return f"{reason}. Add {' or '.join(kinds) or 'one'} to `attacks`, or name a policy without such a limit."
    if reason == NO_DENSE:
        return "there is no dense model to compare with. Name it, or a policy with `absolutes`."
    told = reason if not attacks else f"{wording.enumerate_words(attacks)} cannot run ({reason})"
    return f"{told}. Name no policy to be judged by what these inputs can decide, or one without such a limit."


def undecidable(policy: Policy, planned: Planned) -> list[Limit]:
    """The limits of a policy on figures that this audit will not have, each with the reason as `left_out`.

    Raises:
        InputError: an attack fails to say whether it is for these inputs.
    """
    scope = planned[0][1]
    without_dense = scope.reference.parent is None
    known: list[tuple[Attack, str | None]] = [(attack, why_unfit(attack, own)) for attack, own in planned]
    limited, found = {limit.metric for limit in policy.limits}, []
    for limit in policy.limits:
        mine = [(one, why) for one, why in known if limit.metric in {metric.name for metric in one.metrics}]
        reason, attacks = None, []
        if limit.metric in PROMISE_NAMES:  # which is known without a measurement
            continue
        if limit.compares == "change" and without_dense:
            reason = NO_DENSE
        elif limit.metric in QUALITY_NAMES:
            of_values = limit.metric == MEAN_SQUARED_ERROR.name
            own = MEAN_SQUARED_ERROR.name if scope.data.regression else ACCURACY.name
            if of_values != scope.data.regression and own not in limited:  # where both are limited, its own is judged
                reason = _another_task(scope)
        elif not mine:
            others = _others(limit.metric, scope)  # what could not run had the plan named it is no gap of the plan
            reason = others[0][1] if others and all(why is not None for _, why in others) else NOT_OF
            attacks = [kind for kind, why in others if reason != NOT_OF or why is None]
        elif all(why is not None for _, why in mine):
            reason, attacks = mine[0][1], list(dict.fromkeys(one.kind for one, _ in mine))
        if reason is not None:
            found.append(limit.model_copy(update={"left_out": reason, "attacks": attacks}))
    return found


def _others(metric: str, scope: Scope) -> list[tuple[str, str | None]]:
    """The attacks there are that measure it, by kind, and why each would be none for these inputs."""
    found: list[tuple[str, str | None]] = []
    for kind, cls in ATTACKS.kinds().items():
        if metric in {one.name for one in cls.metrics}:
            try:
                found.append((kind, why_unfit(cls(kind=kind), scope)))
            except (ValidationError, InputError):  # it has no defaults, or cannot say
                found.append((kind, None))
    return found


def why_unfit(attack: Attack, scope: Scope) -> str | None:
    """Why this attack is none for these inputs, in a phrase; None: it may be one."""
    if (Task.REGRESSION if scope.data.regression else Task.CLASSIFICATION) not in attack.tasks:
        return _another_task(scope)
    try:
        found = attack.unfit(scope)
    except CrushproofError:
        raise
    except Exception as error:  # perhaps another package's code
        raise InputError(
            f"The attack {scope.label} fails to say whether it is for these inputs: {user_error(error)}."
        ) from error
    return None if found is None else wording.label(found, 80)


def _another_task(scope: Scope) -> str:
    return "the model predicts values" if scope.data.regression else "the model picks a class"


def fitted(policy: Policy, left_out: Sequence[Limit]) -> Policy:
    """The policy without these limits, whose name says what it lacks."""
    if not left_out:
        return policy
    gone = {(limit.metric, limit.compares) for limit in left_out}
    attacks: dict[str, list[str]] = {}
    for limit in left_out:
        named = limit.attacks or ["changes"]
        known = attacks.setdefault(limit.left_out or "", [])
        known += [name for name in named if name not in known]
    told = "; ".join(f"without {wording.enumerate_words(names)}: {reason}" for reason, names in attacks.items())
    return FittedPolicy(
        name=f"{policy.name}, {told}"[:200],
        changes={name: limit for name, limit in policy.changes.items() if (name, "change") not in gone},
        absolutes={name: limit for name, limit in policy.absolutes.items() if (name, "absolute") not in gone},
        left_out=tuple(left_out),
    )


def nothing_to_judge(policy: Policy) -> str | None:
    """Why a policy that fits these inputs limits nothing, and what would mend it; None: it limits something."""
    if policy.changes or policy.absolutes:
        return None
    return (
        f"Nothing can be judged: the policy {DEFAULT.name} compares candidates with the dense model, and there is "
        "none. Either of two things mends it: the dense model (--dense model.onnx; `model` in a plan), or absolute "
        "limits of your own, such as a file limits.yaml with the line `absolutes: {accuracy: 0.9}` (--policy "
        "limits.yaml; `policy: limits.yaml` in a plan)."
    )


def policy_of(audit: Audit) -> Policy:
    """The policy that a finished audit was judged by, from its own rows."""
    applied = [limit for limit in audit.policy_limits if limit.left_out is None]
    return FittedPolicy(
        name=audit.policy_name[:200] or "custom",
        changes={limit.metric: limit.limit for limit in applied if limit.compares == "change"},
        absolutes={limit.metric: limit.limit for limit in applied if limit.compares == "absolute"},
        left_out=tuple(limit for limit in audit.policy_limits if limit.left_out is not None),
    )


def follows_from_plan(audit: Audit, folder: Path) -> bool:
    """Whether the limits in an audit.json are those that its plan asks for, and none was left out that it decides.

    A policy file may have moved since, and `crushproof gate` judges by any policy: those are taken as they stand.
    """
    left_out = [limit for limit in audit.policy_limits if limit.left_out is not None]
    named = audit.plan.get("policy")
    if audit.policy_from == "gate" or (isinstance(named, str) and named not in BUILT_IN):
        return not left_out
    if named is None:
        if any(_measured(audit, limit) for limit in left_out):
            return False
        policy = fitted(DEFAULT, left_out)
    elif isinstance(named, str | dict):
        policy = load_policy(named, folder, audit.metrics)
    else:
        return False
    return (policy.name, _sorted(policy.limits)) == (audit.policy_name, _sorted(audit.policy_limits))


def _sorted(limits: Sequence[Limit]) -> list[Limit]:
    return sorted(limits, key=lambda limit: (limit.metric, limit.compares, limit.limit))


def _measured(audit: Audit, limit: Limit) -> bool:
    """Whether an audit has the figure that a limit is on, after all."""
    change = limit.compares == "change"
    if limit.metric in QUALITY_NAMES:
        return any(not change or row.quality_change is not None for row in audit.candidates if row.role != "dense")
    mine = [one for one in audit.findings if one.gateable and one.metric == limit.metric]
    return any(one.changes if change else one.estimate is not None for one in mine)
