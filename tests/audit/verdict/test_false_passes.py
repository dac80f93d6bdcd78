"""Ways to a pass that says nothing, by table: what is done, and the flag, verdict and sentence that must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from judged_rows import KNOWN, audit_of, candidate, change, estimate, finding, findings
from repeated_records import Array, data, images
from torch import nn

from crushproof.attacks.access import Flag
from crushproof.attacks.case import Evidence
from crushproof.attacks.evasion.compare import found_on, free_share
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.membership.likeness import masked
from crushproof.attacks.membership.measure import _test_known
from crushproof.attacks.membership.signals import margin
from crushproof.audit.engine.cells import Result
from crushproof.audit.findings.finding_rows import _beyond_parent
from crushproof.audit.findings.results import AuditResults
from crushproof.audit.report.terminal import as_text
from crushproof.audit.schema import wording
from crushproof.audit.schema.rows import Candidate, Classes, Finding, GroupEstimate
from crushproof.audit.verdict.beside import _same
from crushproof.audit.verdict.judging import Judgement, apply_policy, rejudge
from crushproof.audit.verdict.policy import BUILT_IN, load_policy
from crushproof.targets.data.copies.repeats import REPEATED_MEMBERS, REPEATED_RECORDS
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.errors import InputError

# -- models -----------------------------------------------------------------------------------------------------------


def flags_of(correct: Array, parents: Array, file: bool, doubts: Any = (), trains: bool = False) -> set[str]:
    """What is said of a model that is right on some records, beside the model it came from."""
    parent = SimpleNamespace(name="dense")
    model = SimpleNamespace(name="a", file=SimpleNamespace(doubtful=False) if file else None, void=None)
    model.is_dense, model.parent, model.recipe = False, parent, SimpleNamespace(trains=trains)
    stored = {
        name: Result(arrays={"evidence/correct": right}, document={"varies": None})
        for name, right in (("a", correct), ("dense", parents))
    }
    labels = torch.arange(len(correct)) % 2
    subject = SimpleNamespace(data=SimpleNamespace(non_members=Records(labels, labels), doubts=doubts))
    suite: Any = SimpleNamespace(subject=subject, model_cell=lambda name: name)
    whole: Any = model
    return AuditResults(suite, stored.get, str, lambda name: ("", ""), "").flags(whole)


def right(share: float, n: int = 1000) -> Array:
    return np.arange(n) < round(share * n)


@pytest.mark.parametrize(
    ("own", "parents", "file", "flagged"),
    [
        (0.997, 0.507, True, True),
        (1.0, 0.96, True, True),
        (0.95, 0.8, True, True),
        (0.97, 0.95, True, False),  # distilled with care
        (0.85, 0.82, True, False),
        (0.99, 0.99, True, False),
        (0.93, 0.5, False, False),  # trained further by the audit itself, on members alone
    ],
)
def test_a_file_far_better_than_its_parent(own: float, parents: float, file: bool, flagged: bool) -> None:
    assert flags_of(right(own), right(parents), file) == ({Flag.BEYOND_PARENT} if flagged else set())


@pytest.mark.parametrize(("own", "parents", "flagged"), [(0.976, 0.95, False), (1.0, 0.95, False), (0.95, 0.8, True)])
def test_a_file_declared_to_be_trained_further_may_be_a_little_better(
    own: float, parents: float, flagged: bool
) -> None:
    assert flags_of(right(own), right(parents), True, trains=True) == ({Flag.BEYOND_PARENT} if flagged else set())


@pytest.mark.parametrize(("low", "file", "flagged"), [(0.45, True, True), (0.1, True, False), (0.45, False, False)])
def test_a_file_far_more_robust_than_its_parent(low: float, file: bool, flagged: bool) -> None:
    model: Any = SimpleNamespace(file=object() if file else None, is_dense=False)
    measured: Any = SimpleNamespace(metric=KNOWN["robust_accuracy"])
    moved = change(low + 0.02, 0.02, 0.5)
    assert _beyond_parent(model, measured, [moved]) == ([Flag.BEYOND_PARENT] if flagged else [])
    measured.metric = KNOWN["auc"]
    assert not _beyond_parent(model, measured, [moved])


def test_what_is_doubtful_of_the_records_is_doubtful_of_every_model() -> None:
    doubts = ((REPEATED_RECORDS, "."), (REPEATED_MEMBERS, "."))
    assert flags_of(right(0.9), right(0.9), False, doubts) == {REPEATED_RECORDS}


MASKS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "as they are": (lambda z: z, False),
    "probabilities of 8 bits": (lambda z: (z.softmax(1) * 255).round().clamp(1) / 255, True),
    "a temperature of 2": (lambda z: z / 2, False),
    "arg-max": (lambda z: 10 * nn.functional.one_hot(z.argmax(1), 4), True),
    "arg-max and 1 % of the logits": (lambda z: 10 * nn.functional.one_hot(z.argmax(1), 4) + 0.01 * z, True),
    "arg-max and 10 % of the logits": (lambda z: nn.functional.one_hot(z.argmax(1), 4) + 0.1 * z, True),
    "a temperature of 10": (lambda z: z / 10, True),
    "100 times": (lambda z: 100 * z, True),
}


@pytest.mark.parametrize("name", MASKS)
def test_masked_scores(name: str) -> None:
    def logits(seed: int) -> torch.Tensor:
        noise = torch.randn(400, 4, generator=torch.Generator().manual_seed(seed))
        return 2 * noise + 5 * nn.functional.one_hot(y, 4)

    y = torch.arange(400) % 4
    shadows = np.stack([margin(logits(seed), y) for seed in range(1, 5)])
    mask, flagged = MASKS[name]
    assert masked(margin(mask(logits(0)), y), shadows, y.numpy()) is flagged


@pytest.mark.parametrize(
    ("shift", "untrained", "known"),
    [(0.5, 0.5, False), (0.0, 0.5, False), (-0.3, 0.5, True), (-0.3, None, True), (-0.3, 0.42, False), (-2, 0.1, True)],
)
def test_a_model_that_knows_its_test_records(shift: float, untrained: float | None, known: bool) -> None:
    rng = np.random.default_rng(0)
    is_member = np.arange(2000) < 1000
    scores = rng.standard_normal(2000) + shift * is_member
    summary = {"headline_auc": "loss", "pseudo_targets": {"loss": {"untrained_auc": untrained}}}
    found = _test_known(Evidence(arrays={"score/loss": scores}, summary=summary, flags={}), is_member)
    assert (found is not None) is known
    assert found is None or "look more like members than the members do" in found


# -- attacks ----------------------------------------------------------------------------------------------------------

PGD = {"kind": "pgd", "steps": 10}


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"epsilon": 0.05, "parts": [PGD]}, None),
        ({"epsilon": "8/255/255"}, Flag.EPSILON_TINY),
        ({"epsilon": 0.0005, "parts": [PGD]}, Flag.EPSILON_TINY),
        ({"epsilons": [0.0001, 0.1], "gate_epsilon": 0.0001, "parts": [PGD]}, Flag.EPSILON_TINY),
        ({"epsilon": 0.005, "norm": "l2", "parts": [PGD]}, Flag.EPSILON_TINY),
        ({"epsilon": 0.5, "norm": "l2", "parts": [PGD]}, None),
        ({"epsilon": 0.05, "parts": [{"kind": "pgd", "steps": 1}]}, Flag.WEAK_ATTACK),
        ({"epsilon": 0.05, "parts": [{"kind": "pgd", "steps": 20, "step_size": 1e-6}]}, Flag.WEAK_ATTACK),
        ({"epsilon": 0.05, "parts": [{"kind": "pgd", "steps": 1}, PGD | {"label": "more"}]}, None),
    ],
)
def test_attacks_that_cannot_find_anything(settings: dict[str, Any], flag: Flag | None) -> None:
    if isinstance(settings["epsilon" if "epsilon" in settings else "epsilons"], str):
        settings = {"epsilon": 8 / 255 / 255, "parts": [PGD]}
    found = flags_of_attack(settings, (1, 6, 6))
    assert {Flag.EPSILON_TINY, Flag.WEAK_ATTACK} & found == ({flag} if flag else set())


@pytest.mark.parametrize(("epsilon", "flagged"), [(0.25, False), (0.06, False), (0.03, True)])
def test_an_l2_epsilon_of_large_images(epsilon: float, flagged: bool) -> None:
    found = flags_of_attack({"epsilon": epsilon, "norm": "l2", "parts": [PGD]}, (3, 224, 224))
    assert (Flag.EPSILON_TINY in found) is flagged


def flags_of_attack(settings: dict[str, Any], shape: tuple[int, ...]) -> set[str]:
    """What is said of an attack on small images, were records of that shape."""
    attack = Evasion(records=30, **settings)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval().requires_grad_(False)
    made = data(None, images(300, 1))
    evidence = attack.run(case_of(made, model), seed=0)
    seen = SimpleNamespace(shape=shape, structure=made.structure, bounds=made.bounds, bounds_doubt="")
    results: Any = SimpleNamespace(
        evidence=lambda ran: evidence,
        scope=SimpleNamespace(data=seen, label="evasion", runtimes={}, compared_with=lambda name: []),
        without_twin=lambda name: None,
    )
    found = found_on(results, "a", attack)
    assert found is not None
    return set(found.flags)


@pytest.mark.parametrize(
    ("declared", "share"),
    [
        (Structure(), 1.0),
        (Structure(immutable=(0, 1)), 0.8),
        (Structure(immutable=tuple(range(9))), 0.1),
        (Structure(immutable=tuple(range(1, 10)), integer=(0,)), 0.0),
        (Structure(one_hot=((0, 1, 2), (3, 4, 5)), immutable=(6,)), 0.75),
        (Structure(integer=tuple(range(10))), 0.0),
    ],
)
def test_how_much_of_a_record_can_change(declared: Structure, share: float) -> None:
    made: Any = SimpleNamespace(shape=(10,), structure=declared)
    made.bounds = replace(Bounds.of(0, 4), whole=declared.whole_in((10,)), held=declared.held_in((10,)))
    assert free_share(made, 0.1) == pytest.approx(share)
    made.bounds = replace(made.bounds, high=torch.tensor(100.0))
    assert free_share(made, 0.1) == pytest.approx(share if not declared.integer else len(declared.integer) / 10)


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"absolutes": {"accuracy": 0}}, "allows every value, so that nothing can fail"),
        ({"absolutes": {"robust_accuracy": 0.0}}, "nothing can fail"),
        ({"absolutes": {"auc": 1}}, "nothing can fail"),
        ({"absolutes": {"tpr_at_1_percent_fpr": 1.0}}, "nothing can fail"),
        ({"absolutes": {"mean_squared_error": 1.0}}, "nothing can fail"),
        ({"changes": {"accuracy": -1}}, "allows any loss, so that nothing can fail"),
        ({"changes": {"auc": 1}}, "nothing can fail"),
        ({"changes": {"accuracy": 0.02}}, "asks for more than the parent has"),
        ({"changes": {"auc": -0.05}}, "asks for more than the parent has"),
        ({"changes": {"accuracy": -2}}, "is no fraction"),
        ({"name": "release", "changes": {"accuracy": -0.3}}, "as one of the built-in ones is"),
        ({"name": " Robustness", "absolutes": {"accuracy": 0.3}}, "as one of the built-in ones is"),
        ({}, "limits nothing"),
    ],
)
def test_policies_that_are_refused(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_policy(policy, Path(), KNOWN)


def classes() -> Classes:
    """Two classes, of which one has 80 % of the records."""
    recalls = [GroupEstimate(name=name, estimate=0.9, low=0.8, high=0.95, n=n) for name, n in (("a", 800), ("b", 200))]
    return Classes(balanced_accuracy=estimate(0.9, 0.02), change=None, recalls=recalls, uneven=True)


def judged(policy: dict[str, Any], rows: list[Candidate], release: list[str], **fields: Any) -> Judgement:
    found = [one for row in rows for one in findings(row.name, **fields)]
    return apply_policy(rows, found, load_policy(policy, Path(), KNOWN), release, KNOWN)


@pytest.mark.parametrize(
    ("policy", "verdict", "words"),
    [
        ({"absolutes": {"accuracy": 0.9}}, "pass", ""),
        ({"absolutes": {"accuracy": 0.8}}, "inconclusive", "always answers the commonest class keeps this limit"),
        ({"absolutes": {"accuracy": 0.01}}, "inconclusive", "it can hardly fail"),
        ({"absolutes": {"balanced_accuracy": 0.5}}, "inconclusive", "it can hardly fail"),
        ({"absolutes": {"balanced_accuracy": 0.8}}, "pass", ""),
        ({"changes": {"accuracy": -0.02}}, "pass", ""),
        ({"changes": {"accuracy": -0.2}}, "inconclusive", "always answers the commonest class"),
        ({"changes": {"robust_accuracy": -0.6}}, "inconclusive", "allows 0.0 % and so can hardly fail"),
        ({"changes": {"auc": 0.5}}, "inconclusive", "can hardly fail"),
        ({"changes": {"robust_accuracy": -0.05}}, "pass", ""),
        ({"changes": {"tpr_at_1_percent_fpr": 0.6}}, "inconclusive", "can hardly fail"),
        ({"absolutes": {"auc": 0.99}}, "pass", ""),
    ],
)
def test_limits_that_cannot_fail(policy: dict[str, Any], verdict: str, words: str) -> None:
    row = candidate("a").model_copy(update={"classes": classes()})
    found = judged(policy, [row], ["a"])
    assert found.verdict == verdict
    assert words in " ".join(found.deciding).replace("\u00a0", " ")


# candidates with the change of their robust accuracy and their role; up for release; what stands beside a pass
BESIDE: dict[str, tuple[dict[str, tuple[float, str]], list[str], list[str]]] = {
    "all is well": ({"a": (0.0, "candidate")}, ["a"], []),
    "a failing control": (
        {"a": (0.0, "candidate"), "b": (-0.3, "control")},
        ["a"],
        ["Not up for release (a control), and fails: b: robust accuracy is"],
    ),
    "a failing candidate that release leaves out": (
        {"a": (0.0, "candidate"), "b": (-0.3, "candidate")},
        ["a"],
        ["Not up for release, and fails: b: robust accuracy is"],
    ),
    "five of them": (
        {"a": (0.0, "candidate"), **dict.fromkeys("bcdef", (-0.3, "candidate"))},
        ["a"],
        [
            *(f"Not up for release, and fails: {name}" for name in "bcd"),
            "Not up for release, and failing too: e and f.",
        ],
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_a_verdict_leaves_out_stands_beside_it(name: str) -> None:
    models, release, told = BESIDE[name]
    rows = [candidate("dense", role="dense"), *(candidate(one, role=role) for one, (_, role) in models.items())]
    found = [one for model, (moved, _) in models.items() for one in findings(model, robust_accuracy=moved)]
    found = [
        one.model_copy(update={"estimate": estimate(0.02, 0.01), "changes": [change(0.0, baseline=0.02)]})
        if one.metric == "tpr_at_1_percent_fpr"
        else one
        for one in found
    ]
    verdict = apply_policy(rows, found, BUILT_IN["release"], release, KNOWN)
    assert verdict.verdict == "pass"
    assert len(verdict.beside) == len(told)
    assert all(sentence.startswith(start) for sentence, start in zip(verdict.beside, told, strict=True))


def of_parent(metric: str, value: float, **fields: Any) -> Finding:
    """The parent's own figure, from which the interval comes."""
    return finding("dense", metric, estimate=estimate(value), changes=[], gateable=False, **fields)


def test_a_weak_parent_is_named_beside_what_is_no_worse() -> None:
    rows = [candidate("dense", role="dense"), candidate("a")]
    found = findings("a")
    leaky = [finding("a", "auc").model_copy(update={"estimate": estimate(0.81), "changes": [change(0, baseline=0.8)]})]
    fragile = [
        finding("a", "robust_accuracy").model_copy(
            update={
                "estimate": estimate(0.15, 0.01),
                "changes": [change(0, baseline=0.12)],
                "setting": {"norm": "linf", "epsilon": 0.05},
            }
        )
    ]
    parents = [of_parent("robust_accuracy", 0.12, setting=fragile[0].setting), of_parent("auc", 0.8)]
    verdict = apply_policy(rows, [*parents, *fragile, found[1], *leaky], BUILT_IN["release"], ["a"], KNOWN)
    told = [one.replace("\u00a0", " ") for one in verdict.beside]
    assert verdict.verdict == "pass"
    assert told[0] == (
        "What passes is judged relative to a parent that is fragile itself: robust accuracy of dense 12.0 % "
        "[8.0, 16.0] at eps 0.05 and a 15.0 % [14.0, 16.0] at eps 0.05; advised is at least 20.0 %."
    )
    assert told[2].startswith("What passes is judged relative to a parent that leaks itself: ")
    assert told[2].endswith("of dense 0.800 [0.760, 0.840] and a 0.810 [0.770, 0.850]; advised is at most 0.600.")


@pytest.mark.parametrize("metric", ["auc", "tpr_at_1_percent_fpr"])
@pytest.mark.parametrize("policy", ["release", {"changes": {"auc": 0.06, "tpr_at_1_percent_fpr": 0.06}}])
def test_a_parent_that_gives_all_away_is_named_beside_the_pass(metric: str, policy: Any) -> None:
    found = [one for one in findings("a") if one.metric != metric]
    leak = finding("a", metric).model_copy(update={"estimate": estimate(0.96), "changes": [change(0, baseline=0.96)]})
    limits, rows = load_policy(policy, Path(), KNOWN), [candidate("dense", role="dense"), candidate("a")]
    verdict = apply_policy(rows, [of_parent(metric, 0.96), *found, leak], limits, ["a"], KNOWN)
    assert verdict.verdict == "pass"
    assert any(
        "a parent that leaks itself" in told and "0.96" in told.replace("96.0", "0.96") for told in verdict.beside
    )


@pytest.mark.parametrize(("commonest", "told"), [(950, 1), (800, 0)])
def test_accuracy_in_lopsided_data_is_judged_and_said_to_mean_little(commonest: int, told: int) -> None:
    recalls = [
        GroupEstimate(name=name, estimate=0.5, low=0.4, high=0.6, n=n)
        for name, n in (("a", commonest), ("b", 1000 - commonest))
    ]
    ours = Classes(balanced_accuracy=estimate(0.5, 0.02), change=change(0), recalls=recalls, uneven=True)
    own = {"accuracy": estimate(0.965, 0.01), "accuracy_change": change(0, 0.005, baseline=0.965), "classes": ours}
    row = candidate("a").model_copy(update=own)
    for policy in (BUILT_IN["release"], load_policy({"changes": {"accuracy": -0.02}}, Path(), KNOWN)):
        verdict = apply_policy([row], findings("a"), policy, ["a"], KNOWN)
        assert verdict.verdict == "pass"
        assert sum("A policy can limit balanced_accuracy" in one for one in verdict.beside) == told
    both_limited = load_policy({"changes": {"accuracy": -0.02, "balanced_accuracy": -0.05}}, Path(), KNOWN)
    verdict = apply_policy([row], findings("a"), both_limited, ["a"], KNOWN)
    assert not any("A policy can limit balanced_accuracy" in one for one in verdict.beside)


def test_a_mild_policy_is_told_by_the_built_in_one() -> None:
    rows = [candidate("dense", role="dense"), candidate("a", -0.1)]
    verdict = judged({"name": "mild", "changes": {"accuracy": -0.3}}, rows, ["a"], robust_accuracy=-0.4)
    assert verdict.verdict == "pass"
    assert verdict.beside[-2].startswith("By the built-in policy release it would fail: a: robust accuracy is")
    assert verdict.beside[-1] == (
        "The policy mild does not limit robust accuracy, members exposed and membership AUC, measured all the same."
    )


def test_a_built_in_policy_that_leaves_out_what_fails_is_told_by_the_other() -> None:
    rows = [candidate("dense", role="dense"), candidate("a")]
    verdict = apply_policy(rows, findings("a", auc=0.3), BUILT_IN["robustness"], ["a"], KNOWN)
    assert verdict.verdict == "pass"
    assert any("By the built-in policy release it would fail: a: " in one for one in verdict.beside)


def test_what_was_not_attacked_and_is_not_limited_is_named() -> None:
    policy = load_policy({"name": "short", "changes": {"accuracy": -0.02}}, Path(), KNOWN)
    rows = [candidate("dense", role="dense"), candidate("a")]
    verdict = apply_policy(rows, findings("a")[:1], policy, ["a"], KNOWN)
    assert verdict.beside[-1] == (
        "The policy short does not limit members exposed and membership AUC, which nothing here measures."
    )


def of_classes(*recalls: float, n: int = 300) -> Classes:
    rows = [
        GroupEstimate(name=f"c{at}", estimate=one, low=max(one - 0.05, 0), high=min(one + 0.05, 1), n=n)
        for at, one in enumerate(recalls)
    ]
    mean = sum(recalls) / len(recalls)
    return Classes(balanced_accuracy=estimate(mean, 0.02), change=None, recalls=rows, uneven=False)


@pytest.mark.parametrize(
    ("parents", "own", "told"),
    [
        ((0.9, 0.9), (0.95, 0.0), "has lost a class that its accuracy hides: c1 (0.0 % right instead of 90.0 %)"),
        ((0.9, 0.9), (0.9, 0.6), ""),
        ((0.1, 0.9), (0.05, 0.9), ""),
    ],
)
def test_a_class_that_is_lost_is_named(parents: tuple[float, ...], own: tuple[float, ...], told: str) -> None:
    rows = [
        candidate("dense", role="dense").model_copy(update={"classes": of_classes(*parents)}),
        candidate("a").model_copy(update={"classes": of_classes(*own)}),
    ]
    verdict = apply_policy(rows, findings("a"), BUILT_IN["robustness"], ["a"], KNOWN)
    said = " ".join(verdict.beside).replace("\u00a0", " ")
    assert verdict.verdict == "pass"
    assert (told in said) if told else "has lost" not in said


def test_a_file_compared_with_itself_or_with_a_compressed_one_is_named() -> None:
    dense = candidate("dense", role="dense")
    same = candidate("a").model_copy(update={"digest": dense.digest, "file": "a.onnx"})
    assert "a is byte for byte the dense model" in _same([same], [dense, same])[0]
    other = same.model_copy(update={"digest": "1" * 64})
    assert not _same([other], [dense, other])
    macs = [{"weight_bits": 8, "activation_bits": 8, "macs": 90}, {"weight_bits": 32, "activation_bits": 32, "macs": 9}]
    weighed = dense.footprint.model_validate({**dense.footprint.model_dump(), "macs_by_width": macs})
    assert "computes with 8 bits itself" in _same([other], [dense.model_copy(update={"footprint": weighed}), other])[0]


@pytest.mark.parametrize(("kept", "told"), [(0.94, True), (0.6, False)])
def test_an_attack_that_hardly_touches_the_parent_is_named(kept: float, told: bool) -> None:
    rows = [candidate("dense", role="dense"), candidate("a")]
    found = [finding("a", "robust_accuracy").model_copy(update={"changes": [change(0, baseline=kept)]})]
    verdict = apply_policy(rows, found, BUILT_IN["robustness"], ["a"], KNOWN)
    assert any("leaves dense nearly all of its accuracy" in one for one in verdict.beside) is told


def test_what_stands_beside_a_verdict_is_printed_with_it() -> None:
    rows = [candidate("dense", role="dense"), candidate("a"), candidate("b", role="control")]
    found = [*findings("a"), *findings("b", robust_accuracy=-0.3)]
    audit = audit_of(rows, found, BUILT_IN["release"], {}).model_copy(update={"release": ["a"]})
    judged_again = rejudge(audit, BUILT_IN["release"])
    assert judged_again.beside[0].startswith("Not up for release (a control), and fails: b:")
    assert wording.clean(judged_again.beside[0]) in as_text(judged_again)
