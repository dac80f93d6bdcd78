"""The policy that fits the inputs: what they cannot decide is left out and said, or a named policy does not pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from judged_rows import KNOWN, audit_of, candidate, finding, findings
from torch import nn

from crushproof.attacks.attack import Attack
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.attacks.membership.membership import Membership
from crushproof.attacks.preparation import Scope
from crushproof.audit.schema.rows import Audit
from crushproof.audit.verdict.fitting import nothing_to_judge, policy_for
from crushproof.audit.verdict.judging import apply_policy, check_verdicts, rejudge
from crushproof.audit.verdict.policy import BUILT_IN, Policy
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import InputError, UnsafeInput
from crushproof.training.architecture import Architecture


class Words(nn.Module):
    """Two classes of sequences of token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.table(x.long()).mean(1))
        return out


class Mixed(nn.Module):
    """A table whose first column is a code."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(13, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.cat([self.table(x[:, 0].long()), x[:, 1:]], 1))
        return out


class Failing(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")


def inputs(sort: str) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if sort == "tokens":
        return rng.integers(0, 20, (90, 6)).astype(np.float32)
    if sort == "one-hot":
        return np.hstack([np.eye(3)[rng.integers(0, 3, 90)], rng.random((90, 3))]).astype(np.float32)
    if sort == "mixed":
        return np.hstack([rng.integers(0, 20, (90, 1)), rng.random((90, 5))]).astype(np.float32)
    if sort == "pixels":
        return rng.integers(0, 256, (90, 6)).astype(np.float32)
    return rng.random((90, 6)).astype(np.float32)


def scope_of(
    sort: str = "values", model: Any = None, *, members: bool = True, regression: bool = False, dense: bool = True
) -> Scope:
    x = torch.from_numpy(inputs(sort))
    y = torch.arange(90) % 2
    answers = y.float().reshape(-1, 1) + torch.rand(90, 1) if regression else y
    data = Data(
        "x",
        Records(x[:30], answers[:30]) if members else None,
        Records(x[30:], answers[30:]),
        Bounds.of(0, float(x.max())),
        () if regression else ("0", "1"),
    )
    build = model or (lambda: nn.Linear(6, 2))
    parent = SimpleNamespace(architecture=Architecture("x", build)) if dense else None
    models = {"first": SimpleNamespace(parent=parent)}
    return Scope("x", data, 0, 4, 4, cast(Any, models))


def fit(named: Any, scope: Scope, *attacks: Attack) -> tuple[Policy, str]:
    policy, notes = policy_for(named, Path(), KNOWN, [(attack, scope) for attack in attacks])
    return policy, " ".join(notes)


@pytest.mark.parametrize(
    ("sort", "model", "dense", "phrase"),
    [
        ("tokens", Words, True, "token inputs"),
        ("tokens", None, True, None),  # whole numbers that a linear model adds up
        ("tokens", Words, False, None),  # nothing to ask: the run finds out
        ("one-hot", None, True, "undeclared one-hot columns"),
        ("one-hot", None, False, "undeclared one-hot columns"),
        ("mixed", Mixed, True, "undeclared codes of categories"),
        ("pixels", None, True, None),
        ("values", None, True, None),
        ("tokens", lambda: Failing(6, 2), True, None),  # refused elsewhere, in words of its own
    ],
)
def test_evasion_knows_inputs_that_are_no_pixels(sort: str, model: Any, dense: bool, phrase: str | None) -> None:
    assert Evasion().unfit(scope_of(sort, model, dense=dense)) == phrase


def test_declared_structure_is_taken_at_its_word() -> None:
    """Columns that are declared leave evasion the others; where none is left, or tokens are declared, it is none."""

    def phrase(sort: str, **declared: Any) -> str | None:
        scope = scope_of(sort)
        return Evasion().unfit(replace(scope, data=replace(scope.data, structure=Structure(**declared))))

    assert phrase("one-hot", one_hot=((0, 1, 2),)) is None
    assert phrase("tokens", tokens=True) == "token inputs"
    assert phrase("values", immutable=(0, 1, 2, 3, 4, 5)) == "no feature may change"


LEFT = {"accuracy", "mean_squared_error"}  # alternatives: a model is judged by its own
TPR, AUC = "tpr_at_1_percent_fpr", "auc"


@pytest.mark.parametrize(
    ("scope", "name", "limited"),
    [
        (scope_of(), "release", {*LEFT, "robust_accuracy", TPR, AUC}),
        (scope_of("tokens", Words), "release, without evasion: token inputs", {*LEFT, TPR, AUC}),
        (scope_of(members=False), "release, without membership: no training records", {*LEFT, "robust_accuracy"}),
        (
            scope_of("tokens", Words, members=False),
            "release, without evasion: token inputs; without membership: no training records",
            LEFT,
        ),
        (
            scope_of(regression=True),
            "release, without evasion and membership: the model predicts values",
            LEFT,
        ),
        (scope_of(dense=False), "release, without changes: no dense model", set()),
    ],
)
def test_without_a_policy_the_inputs_choose_what_is_limited(scope: Scope, name: str, limited: set[str]) -> None:
    policy, notes = fit(None, scope, Evasion(), Membership(), Extraction())
    assert (policy.name, set(policy.changes), policy.absolutes) == (name, limited, {})
    assert {limit.metric for limit in policy.limits} == set(BUILT_IN["release"].changes)  # left out, and still named
    assert (name in notes) is (name != "release" and bool(limited))
    assert (nothing_to_judge(policy) is None) is bool(limited)
    explicit, told = fit("release", scope, Evasion(), Membership(), Extraction())
    assert explicit is BUILT_IN["release"]
    for limit in policy.limits:
        if limit.left_out is not None:
            assert limit.metric in told
            assert "nothing can pass" in told
    assert bool(told) is (name != "release")


def test_what_the_plan_leaves_out_is_not_the_inputs_doing() -> None:
    policy, notes = fit(None, scope_of(), Membership())
    assert policy is BUILT_IN["release"]
    assert "robust_accuracy" in notes
    assert "Add evasion" in notes
    tokens = scope_of("tokens", Words, members=False)
    policy, _ = fit(None, tokens, Evasion(), Extraction())  # membership could not have run anyway
    assert policy.name == "release, without evasion: token inputs; without membership: no training records"
    policy, notes = fit(None, tokens, Extraction())
    assert policy.name == "release, without membership: no training records"
    assert "Add substitution to" in notes, "the one that is for such inputs"


def test_nothing_to_judge_says_what_would_mend_it() -> None:
    policy, notes = fit(None, scope_of(dense=False), Evasion())
    for words in ("Nothing can be judged", "--dense", "absolutes: {accuracy: 0.9}", "measured all the same"):
        assert words in notes
    alone = candidate("a").model_copy(update={"parent": None, "quality_change": None})
    judged = apply_policy([alone], [finding("a", "robust_accuracy", changes=[])], policy, ["a"], KNOWN)
    assert (judged.verdict, judged.candidates[0].verdict) == ("inconclusive", "not-gated")
    assert judged.deciding == [nothing_to_judge(policy)]
    absolute, notes = fit({"absolutes": {"accuracy": 0.5}}, scope_of(dense=False), Evasion())
    assert notes == ""
    assert apply_policy([alone], [], absolute, ["a"], KNOWN).verdict == "pass"


def no_findings(reason: str) -> list[Any]:
    return [
        one.model_copy(update={"estimate": None, "changes": [], "gateable": False, "reason": reason})
        for one in findings("a")
    ]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (candidate("a"), []),  # no such attack in the plan
        (candidate("a"), no_findings("not applicable: token ids")),
        (candidate("a").model_copy(update={"parent": None, "quality_change": None}), findings("a")),
        (
            candidate("a").model_copy(
                update={"accuracy": None, "mean_squared_error": candidate("a").accuracy}  # a model of values
            ),
            no_findings("not applicable: the attack is one on classifiers"),
        ),
        (candidate("a").model_copy(update={"accuracy": None, "mean_squared_error": candidate("a").accuracy}), []),
    ],
)
def test_a_named_policy_never_passes_over_what_it_cannot_judge(row: Any, found: list[Any]) -> None:
    for policy in (BUILT_IN["release"], BUILT_IN["robustness"]):
        judged = apply_policy([row], found, policy, ["a"], KNOWN)
        assert judged.verdict == "inconclusive"
        assert "not-measured" in {gate.verdict for gate in judged.gates}


def test_a_limit_on_the_figure_of_another_sort_of_model_is_said_at_once() -> None:
    for limited, regression in (("accuracy", True), ("balanced_accuracy", True), ("mean_squared_error", False)):
        _, notes = fit({"absolutes": {limited: 0.5}}, scope_of(regression=regression), Extraction())
        assert f"limits {limited}, and nothing can pass: the model" in notes
    _, notes = fit({"absolutes": {"accuracy": 0.5, "mean_squared_error": 0.5}}, scope_of(), Extraction())
    assert notes == ""


def test_an_attack_that_cannot_say_is_named() -> None:
    class Odd(Extraction):
        def unfit(self, scope: Scope) -> str | None:
            raise KeyError("odd")

    with pytest.raises(InputError, match="fails to say whether it is for these inputs: KeyError"):
        fit(None, scope_of(), Odd())


def an_audit(policy: Policy, named: Any, **gone: Any) -> Audit:
    rows = [candidate("dense", role="dense"), candidate("a")]
    found = [
        one.model_copy(update={"estimate": None, "changes": [], "reason": "no"}) if one.metric in gone else one
        for one in findings("a")
    ]
    return audit_of(rows, found, policy, {"policy": named})


def test_a_finished_audit_agrees_with_itself_and_cannot_drop_a_limit(tmp_path: Path) -> None:
    fitted, _ = fit(None, scope_of("tokens", Words), Evasion(), Membership())
    honest = an_audit(fitted, None, robust_accuracy=None)
    assert honest.verdict == "pass"
    check_verdicts(honest, tmp_path)
    again = Audit.model_validate_json(honest.model_dump_json(by_alias=True))
    check_verdicts(again, tmp_path)
    named = rejudge(honest, BUILT_IN["release"])  # what `gate --policy release` says
    assert named.verdict == "inconclusive"
    for changed in (
        an_audit(fitted, None),  # the figure is there, and its limit is not applied
        an_audit(fitted, "release", robust_accuracy=None),  # a named policy leaves out nothing
        honest.model_copy(update={"policy_limits": honest.policy_limits[:-1]}),
        honest.model_copy(update={"policy_name": "release"}),
        honest.model_copy(update={"policy_from": "gate"}),
        honest.model_copy(update={"plan": {"policy": 7}}),
        an_audit(Policy(name="release", changes={"accuracy": -0.5}), "release"),
    ):
        with pytest.raises(UnsafeInput, match="contradicts itself"):
            check_verdicts(changed, tmp_path)
