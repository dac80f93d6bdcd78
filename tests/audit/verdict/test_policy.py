"""Policies: verdicts follow from intervals and limits, and never from a gap in the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_rows import KNOWN, candidate, change, estimate, finding, findings
from scipy.stats import norm

from crushproof.audit.schema.file_rows import Lineage
from crushproof.audit.schema.rows import Finding
from crushproof.audit.verdict.gate_sentences import records_needed
from crushproof.audit.verdict.judging import apply_policy, beyond, judge
from crushproof.audit.verdict.policy import BUILT_IN, Policy, load_policy
from crushproof.compression.recipe import RECIPES
from crushproof.targets.errors import InputError, UnsafeInput

RELEASE = BUILT_IN["release"]
WORST = {"fail": 0, "inconclusive": 1, "pass": 2}


def test_the_three_verdicts_of_an_interval() -> None:
    assert judge(-0.04, 0.0, -0.05, "higher") == "pass"
    assert judge(-0.06, 0.0, -0.05, "higher") == "inconclusive"
    assert judge(-0.10, -0.06, -0.05, "higher") == "fail"
    assert judge(0.0, 0.04, 0.05, "lower") == "pass"
    assert judge(0.0, 0.06, 0.05, "lower") == "inconclusive"
    assert judge(0.06, 0.1, 0.05, "lower") == "fail"
    assert judge(-0.05, 0.0, -0.05, "higher") == "pass"  # a limit is kept by its very value
    assert judge(1 - 0.95 - 0.1, 0.0, -0.05, "higher") == "pass"  # ... in floating point too


def test_a_flag_spoils_a_pass_and_never_softens_a_fail() -> None:
    assert judge(-0.01, 0.0, -0.05, "higher", ["no-gradient"]) == "inconclusive"
    assert judge(-0.10, -0.06, -0.05, "higher", ["no-gradient"]) == "fail"


@settings(max_examples=300, deadline=None)
@given(
    st.floats(-1, 1),
    st.floats(0, 1),
    st.floats(-1, 1),
    st.floats(0, 1),
    st.sampled_from(["higher", "lower"]),
    st.booleans(),
)
def test_tightening_a_limit_never_helps(
    low: float, width: float, limit: float, tighter: float, better: str, flagged: bool
) -> None:
    flags = ["x"] if flagged else []
    harder = limit + tighter if better == "higher" else limit - tighter
    assert WORST[judge(low, low + width, harder, better, flags)] <= WORST[judge(low, low + width, limit, better, flags)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-0.2, 0.1), st.floats(0.001, 0.1)), min_size=1, max_size=5),
    st.floats(-0.15, 0),
    st.floats(0, 0.1),
)
def test_tightening_a_policy_never_turns_a_fail_into_a_pass(
    rows: list[tuple[float, float]], limit: float, tighter: float
) -> None:
    names = [f"c{position}" for position in range(len(rows))]
    candidates = [candidate(name) for name in names]
    found = [finding(name, "robust_accuracy", *row) for name, row in zip(names, rows, strict=True)]
    loose, tight = (
        apply_policy(
            candidates, found, Policy(changes={"robust_accuracy": max(-1.0, value)}, absolutes={}), names, KNOWN
        )
        for value in (limit, min(0.0, limit + tighter))
    )
    for before, after in zip(loose.candidates, tight.candidates, strict=True):
        assert WORST[after.verdict] <= WORST[before.verdict]
    assert WORST[tight.verdict] <= WORST[loose.verdict]


@settings(max_examples=200, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.001, 0.2), st.floats(-0.5, 0.5), st.sampled_from(["higher", "lower"]))
def test_the_p_value_is_the_normal_one_and_agrees_with_the_interval(
    value: float, half: float, limit: float, better: str
) -> None:
    error = half / norm.ppf(0.975)
    expected = norm.sf((limit - value) / error) if better == "higher" else norm.sf((value - limit) / error)
    p_value = beyond(value, value - half, value + half, limit, better)
    assert p_value == pytest.approx(expected, rel=1e-6, abs=1e-12)
    if judge(value - half, value + half, limit, better) == "fail":
        assert p_value < 0.025


def test_a_candidate_passes_only_if_every_gate_does() -> None:
    good = apply_policy([candidate("a")], findings("a"), RELEASE, ["a"], KNOWN)
    assert (good.verdict, good.candidates[0].verdict) == ("pass", "pass")
    assert {gate.rule for gate in good.gates} == {"accuracy", "robust_accuracy", "tpr_at_1_percent_fpr", "auc"}
    bad = apply_policy([candidate("a")], findings("a", auc=0.2), RELEASE, ["a"], KNOWN)
    assert (bad.verdict, bad.candidates[0].worst_risk) == ("fail", "a/auc")
    assert [one.verdict for one in bad.findings] == ["pass", "pass", "fail"]
    worse = apply_policy([candidate("a", -0.1)], findings("a"), RELEASE, ["a"], KNOWN)
    assert worse.candidates[0].verdict == "fail"
    assert worse.deciding == [f"a may not ship{worse.gates[0].sentence.removeprefix('a')}"]


def test_sentences_name_figures_and_limit() -> None:
    low = finding("int8", "robust_accuracy", -0.123, 0.04, setting={"norm": "linf", "epsilon": 0.1})
    judged = apply_policy(
        [candidate("int8")], [low], Policy(changes={"robust_accuracy": -0.05}, absolutes={}), ["int8"], KNOWN
    )
    sentence = judged.gates[0].sentence.replace("\u00a0", " ").replace("\u2212", "-")
    assert sentence == (
        "int8: robust accuracy at eps 0.1 is 50.0 % [46.0, 54.0], 12.3 points below its parent's [-16.3, -8.3]; "
        "the policy allows at most 5.0 points less."
    )
    absolute = Policy(changes={}, absolutes={"robust_accuracy": 0.6})
    sentence = (
        apply_policy([candidate("int8")], [low], absolute, ["int8"], KNOWN).gates[0].sentence.replace("\u00a0", " ")
    )
    assert sentence.endswith("[46.0, 54.0]; the policy asks for at least 60.0 %.")


def test_what_was_not_measured_cannot_pass() -> None:
    missing = finding("a", "robust_accuracy", estimate=None, changes=[], reason="it failed")
    for rows in ([missing, *findings("a")[1:]], findings("a")[1:]):
        judged = apply_policy([candidate("a")], rows, RELEASE, ["a"], KNOWN)
        assert judged.verdict == "inconclusive"
        assert "robust accuracy was not measured" in judged.deciding[0]
    bare = finding("a", "robust_accuracy", changes=[])
    assert apply_policy([candidate("a")], [bare, *findings("a")[1:]], RELEASE, ["a"], KNOWN).verdict == "inconclusive"


def test_a_flagged_finding_makes_its_candidate_inconclusive() -> None:
    rows = [finding("a", "robust_accuracy", flags=["no-gradient"]), *findings("a")[1:]]
    judged = apply_policy([candidate("a")], rows, RELEASE, ["a"], KNOWN)
    assert (judged.verdict, judged.findings[0].verdict) == ("inconclusive", "inconclusive")
    assert "no-gradient" in judged.deciding[0]


QUANTIZE: dict[str, Any] = {"kind": "quantize", "weight_bits": 8, "rounding": "nearest", "fine_tune": None}
TRAINED = {**QUANTIZE, "fine_tune": {"epochs": 1}}
CHANNELS = {"kind": "prune", "structure": "channels"}
LINEAGES = (
    *("confirmed", "not nearest", "not a rounding of the dense model", "not comparable", None),
    *("other structure", "not as declared"),
)


@pytest.mark.parametrize(
    ("recipe", "verdicts"),
    [
        (QUANTIZE, ["pass", "inconclusive", "fail", "inconclusive", "inconclusive"]),
        ({**QUANTIZE, "rounding": "adaptive"}, ["pass", "pass", "fail", "inconclusive", "inconclusive"]),
        ({"kind": "mixed-precision", "quantize": QUANTIZE}, ["pass", "inconclusive", "fail", *["inconclusive"] * 2]),
        ({"kind": "mixed-precision", "quantize": TRAINED}, ["pass", *["inconclusive"] * 4]),
        (TRAINED, ["pass", *["inconclusive"] * 4]),
        ({"kind": "prune", "structure": "weights"}, ["pass", *["inconclusive"] * 4]),
        ({"kind": "share"}, ["pass", *["inconclusive"] * 4]),
        (
            {"kind": "chain", "steps": [{"kind": "prune", "structure": "n:m"}, QUANTIZE]},
            ["pass", *["inconclusive"] * 4],
        ),
        (
            {"kind": "chain", "steps": [CHANNELS, QUANTIZE]},
            ["pass", "inconclusive", "inconclusive", None, "inconclusive"],
        ),
        ({"kind": "distill"}, ["pass", "inconclusive", "inconclusive", None, "inconclusive"]),
        (None, ["pass", *["inconclusive"] * 4]),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_what_a_declared_recipe_promises_of_a_file(recipe: dict[str, Any] | None, verdicts: list[str | None]) -> None:
    """None among the verdicts: no gate. A lineage of None was not checked. Another graph is open whatever is said."""
    for lineage, verdict in zip(LINEAGES, [*verdicts, *["inconclusive"] * 2], strict=True):
        told = {
            "sentences": ["All of it."],
            "layers": [],
            "reason": "Other shapes." if "compar" in str(lineage) else None,
        }
        row = candidate("a").model_copy(
            update={
                "file": "a.onnx",
                "recipe": recipe,
                "promise": None if recipe is None else RECIPES.parse(recipe).promise,
                "recipe_words": "finished ONNX file, declared as 8-bit weights",
                "lineage": None if lineage is None else Lineage.model_validate({"verdict": lineage, **told}),
            }
        )
        judged = apply_policy([row], findings("a"), RELEASE, ["a"], KNOWN)
        assert [gate.verdict for gate in judged.gates if gate.rule == "lineage"] == ([verdict] if verdict else [])
        assert judged.verdict == (verdict or "pass")
        if verdict and (lineage is None or lineage == "not comparable"):
            declared = "" if recipe is None else 'is declared as "8-bit weights" and '
            assert f"it {declared}cannot be compared with the dense model" in judged.deciding[0]
            assert ("The check did not run." if lineage is None else "Other shapes.") in judged.deciding[0]
        lite = apply_policy([row.model_copy(update={"file": "a.tflite"})], [], RELEASE, ["a"], KNOWN).gates
        unread = recipe is None and lineage in ("not comparable", None)  # the weights of such a file are not read
        assert [gate.verdict for gate in lite if gate.rule == "lineage"] == (
            [verdict] if verdict and not unread else []
        )
    made_here = candidate("a").model_copy(update={"recipe": recipe})
    assert not any(gate.rule == "lineage" for gate in apply_policy([made_here], [], RELEASE, ["a"], KNOWN).gates)


def test_a_file_of_another_model_is_called_so_before_its_layers_are_listed() -> None:
    lines = [f"Layer {at}: 99.4 % of 324 codes are neither neighbour of the dense weight." for at in range(30)]
    lineage = Lineage(verdict="not a rounding of the dense model", sentences=lines, layers=[], found=0.0)
    row = candidate("a").model_copy(
        update={"lineage": lineage, "file": "a.onnx", "promise": "nearest", "recipe": QUANTIZE, "parent": "dense"}
    )
    judged = apply_policy([row], findings("a"), RELEASE, ["a"], KNOWN)
    assert judged.verdict == "fail"
    assert judged.deciding[0].startswith("a may not ship: it is no compressed copy of the dense model. Layer 0: 99")
    assert len(judged.deciding[0]) < 700


def test_a_confirmed_lineage_stands_beside_what_a_policy_limits() -> None:
    lineage = Lineage(verdict="confirmed", sentences=["All codes are the nearest rounding."], layers=[])
    row = candidate("a").model_copy(update={"lineage": lineage, "file": "a.onnx", "promise": "nearest"})
    rest = Policy(changes={"accuracy": -0.02})
    judged = apply_policy([row], [], rest, ["a"], KNOWN)
    assert (judged.verdict, [gate.rule for gate in judged.gates]) == ("pass", ["lineage", "accuracy"])
    errors = Policy(changes={"mean_squared_error": 0.02})  # of what a classifier has not
    judged = apply_policy([row], [], errors, ["a"], KNOWN)
    assert [(gate.rule, gate.verdict) for gate in judged.gates] == [
        ("lineage", "pass"),
        ("mean_squared_error", "not-measured"),
    ]
    assert judged.verdict == "inconclusive"
    both = apply_policy([row], findings("a"), RELEASE, ["a"], KNOWN)
    assert "Nearest to its limit: a: accuracy" in both.deciding[0]


def test_a_weak_fail_among_many_gates_does_not_survive_holm() -> None:
    """One of 12 intervals 2.1 standard errors beyond its limit: p = .018 alone, .21 corrected."""
    names = [f"c{number}" for number in range(12)]
    policy = Policy(changes={"robust_accuracy": -0.05}, absolutes={})
    rows = [finding(name, "robust_accuracy") for name in names]
    half = 0.05
    rows[3] = finding("c3", "robust_accuracy", -0.05 - 2.1 * half / norm.ppf(0.975), half)
    judged = apply_policy([candidate(name) for name in names], rows, policy, names, KNOWN)
    assert judged.candidates[3].verdict == "inconclusive"
    assert judged.gates[3].p_value == pytest.approx(12 * norm.sf(2.1), rel=1e-6)
    assert "Holm" in judged.gates[3].sentence
    alone = apply_policy([candidate("c3")], [rows[3]], policy, ["c3"], KNOWN)
    assert alone.verdict == "fail"


def test_the_verdict_covers_the_release_only() -> None:
    rows = [candidate("dense", role="dense"), candidate("good"), candidate("bad"), candidate("control", role="control")]
    found = [*findings("good"), *findings("bad", auc=0.3), *findings("control", auc=0.3)]
    assert apply_policy(rows, found, RELEASE, ["good"], KNOWN).verdict == "pass"
    both = apply_policy(rows, found, RELEASE, ["good", "bad"], KNOWN)
    assert both.verdict == "fail"
    assert [row.verdict for row in both.candidates] == ["not-gated", "pass", "fail", "fail"]
    gone = apply_policy(rows, found, RELEASE, ["good", "gone"], KNOWN)
    assert (gone.verdict, "gone" in gone.deciding[0]) == ("inconclusive", True)
    assert apply_policy(rows, found, RELEASE, [], KNOWN).verdict == "inconclusive"


def test_another_policy_judges_what_the_first_did_not() -> None:
    rows = [*findings("a"), finding("a", "fidelity")]
    first = apply_policy([candidate("a")], rows, Policy(changes={"accuracy": -0.02}, absolutes={}), ["a"], KNOWN)
    assert [one.verdict for one in first.findings] == ["not-gated"] * 4
    assert not any(one.gated for one in first.findings)
    second = apply_policy(first.candidates, first.findings, RELEASE, ["a"], KNOWN)
    assert [one.verdict for one in second.findings] == ["pass", "pass", "pass", "not-gated"]
    assert all(one.reason is None for one in second.findings[:3])
    copies = Policy(changes={}, absolutes={"fidelity": 0.3})
    third = apply_policy(second.candidates, second.findings, copies, ["a"], KNOWN)
    assert [one.verdict for one in third.findings] == ["not-gated", "not-gated", "not-gated", "fail"]


def test_policies_from_files_and_plans(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text("changes: {accuracy: -1/100}\nabsolutes: {auc: 0.6}\n")
    strict = load_policy("strict.yaml", tmp_path, KNOWN)
    assert (strict.name, strict.changes, strict.absolutes) == ("strict", {"accuracy": -0.01}, {"auc": 0.6})
    assert load_policy({"changes": {"auc": 0.1}}, tmp_path, KNOWN).changes == {"auc": 0.1}
    assert load_policy("release", tmp_path, KNOWN) is RELEASE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("changes: {acuracy: -0.02}", "line 1: changes.acuracy: is not a metric; did you mean 'accuracy'"),
        ("name: x\nchanges: {accuracy: 0.02}", "line 2.*write -0.02"),
        ("changes: {auc: -0.05}", "write 0.05"),
        ("changes: {accuracy: -2}", "as a share it is -0.02"),
        ("absolutes: {auc: -0.1}", "under `changes`"),
        ("limits: {}", "limits: is not a key"),
        ("name: x", "limits nothing"),
        ("[]", "expected a mapping"),
        ("changes: {auc: .nan}", "not a finite number"),
        ("changes: {auc: 0.1, auc: 0.2}", "already given"),
    ],
)
def test_bad_policies(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_policy("p.yaml", tmp_path, KNOWN)


def test_unknown_and_unsafe_policies(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'release'"):
        load_policy("relaese", tmp_path, KNOWN)
    with pytest.raises(InputError, match="does not exist"):
        load_policy("gone.yaml", tmp_path, KNOWN)
    (tmp_path / "p.yaml").write_text("changes: !!python/object:os.system {}")
    with pytest.raises(UnsafeInput):
        load_policy("p.yaml", tmp_path, KNOWN)


# --- what the parent's figure allows to say


def verdict_of(one: Finding, policy: Policy = BUILT_IN["robustness"]) -> tuple[str, str]:
    """The verdict on one candidate with one finding, and the sentence that decides it."""
    judged = apply_policy([candidate("int8")], [one], policy, ["int8"], KNOWN)
    return judged.verdict, judged.deciding[0]


def test_a_flag_on_the_parents_figure_leaves_a_change_open() -> None:
    lost = change(-0.68, 0.05, 1.0)
    assert verdict_of(finding("int8", "robust_accuracy", changes=[lost]))[0] == "fail"
    flagged = lost.model_copy(update={"flags": ["no-gradient"]})
    verdict, why = verdict_of(finding("int8", "robust_accuracy", changes=[flagged]))
    assert verdict == "inconclusive"
    assert "dense may be too optimistic (no-gradient)" in why
    kept = change(0.0, 0.01, 1.0).model_copy(update={"flags": ["no-gradient"]})
    assert verdict_of(finding("int8", "robust_accuracy", changes=[kept]))[0] == "inconclusive"
    absolute = Policy(absolutes={"robust_accuracy": 0.6})  # of the candidate alone: its parent's flag is none of it
    assert verdict_of(finding("int8", "robust_accuracy", changes=[flagged]), absolute)[0] == "fail"


@pytest.mark.parametrize(
    ("value", "high", "floor", "room"),
    [
        (0.005, 0.01, 0.0, False),
        (0.027, 0.052, 0.0, False),  # 8 of 300: its interval leaves the limit, its figure does not
        (0.06, 0.12, 0.0, True),
        (0.06, 0.12, 0.1, False),
        (0.16, 0.2, 0.1, True),
    ],
)
def test_no_worse_than_a_parent_on_the_floor_says_nothing(value: float, high: float, floor: float, room: bool) -> None:
    fields = {"baseline_high": high, "floor": floor, "instead": "at epsilon 0.013 dense keeps 48 %"}
    nothing = change(0.0, 0.01, value).model_copy(update=fields)
    one = finding("int8", "robust_accuracy", changes=[nothing])
    verdict, why = verdict_of(one)
    assert verdict == ("pass" if room else "inconclusive")
    assert ("at epsilon 0.013" in why) is not room


@settings(max_examples=60, deadline=None)
@given(st.integers(50, 400), st.floats(0.02, 0.3), st.floats(-0.15, 0.15))
def test_so_many_records_settle_it(n: int, discordant: float, value: float) -> None:
    """With the proposed number an interval of the same spread lies on one side of the limit; with fewer it does not."""
    limit, half = -0.05, 1.96 * (discordant / n) ** 0.5
    needed = records_needed(value, value - half, value + half, limit, n)
    if needed is None or needed == n + 1 or needed > 1000 * n:  # said otherwise there
        return
    narrowed = half * (n / needed) ** 0.5
    assert judge(value - narrowed, value + narrowed, limit, "higher") != "inconclusive"
    wider = half * (n / (needed * 0.9)) ** 0.5
    assert judge(value - wider, value + wider, limit, "higher") == "inconclusive"


def test_inconclusive_says_what_would_settle_it() -> None:
    open_ = finding("int8", "robust_accuracy", changes=[change(-0.02, 0.06)], available=900)
    verdict, why = verdict_of(open_)
    assert verdict == "inconclusive"
    assert "records instead of 300" in why
    assert "the data has 900" in why


def test_a_limit_on_what_an_audit_does_not_know_is_refused_and_not_passed_over() -> None:
    """A file that names fewer figures than a built-in policy limits would else pass it."""
    fewer = {name: metric for name, metric in KNOWN.items() if name != "robust_accuracy"}
    with pytest.raises(InputError, match="'release' limits 'robust_accuracy'"):
        apply_policy([candidate("a")], findings("a"), RELEASE, ["a"], fewer)


def test_other_words_for_accuracy_leave_it_judged() -> None:
    reworded = {**KNOWN, "accuracy": KNOWN["accuracy"].model_copy(update={"meaning": "of another release"})}
    judged = apply_policy([candidate("a", -0.1)], findings("a"), RELEASE, ["a"], reworded)
    assert judged.verdict == "fail"


def test_the_records_that_settle_it_are_a_number_however_wide_the_interval() -> None:
    assert records_needed(0.0, -1e100, 1e100, 1e-3, 5) is not None


def test_a_setting_of_another_attack_may_be_a_text() -> None:
    rows = [row.model_copy(update={"setting": {"epsilon": "by class"}}) for row in findings("a")]
    assert apply_policy([candidate("a")], rows, RELEASE, ["a"], KNOWN).verdict == "pass"


@pytest.mark.parametrize(
    ("value", "fails"), [(0.62, False), (0.7, True), (0.5, False)], ids=["perhaps", "surely", "forgotten"]
)
def test_a_limit_on_the_recovery_leaves_what_fails_anyway(value: float, fails: bool) -> None:
    """Deleted records that a parent knows as well are no recovery, and known all the same."""
    row = finding("a", "forget_auc", 0.0, estimate=estimate(value))
    for policy in (Policy(changes={"forget_auc": 0.05}), RELEASE):
        judged = apply_policy([candidate("a")], [row, *findings("a")], policy, ["a"], KNOWN)
        assert (judged.verdict == "fail") == fails
    own = Policy(absolutes={"forget_auc": 0.8})
    assert apply_policy([candidate("a")], [row], own, ["a"], KNOWN).verdict == "pass"


@pytest.mark.parametrize(
    ("statement", "verdict", "told"),
    [
        ({"epsilon": 7.99, "delta": 1e-5}, "pass", "the promised epsilon is 7.99 at delta 1e-05"),
        ({"epsilon": 8.01, "delta": 1e-5}, "fail", "the policy asks for at most 8."),
        ({"epsilon": "void", "why": "members were touched"}, "fail", "is void, because members were touched"),
        ({}, "fail", "no epsilon is promised of its training"),
    ],
    ids=["kept", "larger", "void", "missing"],
)
def test_a_limit_on_epsilon_is_kept_by_a_promise_alone(statement: dict[str, Any], verdict: str, told: str) -> None:
    row = candidate("a").model_copy(update={"statement": statement})
    judged = apply_policy([row], [], Policy(absolutes={"epsilon": 8.0}), ["a"], KNOWN)
    assert judged.verdict == verdict
    assert told in judged.gates[0].sentence
    assert judged.gates[0].p_value is None


@pytest.mark.parametrize(("kind", "limit", "told"), [("changes", 1, "under `absolutes`"), ("absolutes", 0, "write 8")])
def test_a_limit_on_epsilon_that_makes_no_sense_is_refused(kind: str, limit: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_policy({kind: {"epsilon": limit}}, Path(), KNOWN)
