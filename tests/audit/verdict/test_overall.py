"""The verdict on a release says in one sentence who may ship and who may not, and relative to what."""

from __future__ import annotations

from judged_rows import KNOWN, candidate, finding, findings

from crushproof.audit.verdict.judging import Judgement, apply_policy
from crushproof.audit.verdict.policy import BUILT_IN, Policy


def release(**robust: float) -> Judgement:
    """Candidates by name with the change of their robust accuracy; 5 points are allowed, and one of them is known."""
    rows = [candidate("dense", role="dense"), *(candidate(name) for name in robust)]
    found = [one for name, change in robust.items() for one in findings(name, robust_accuracy=change)]
    return apply_policy(rows, found, BUILT_IN["release"], list(robust), KNOWN)


def plain(judged: Judgement) -> list[str]:
    return [sentence.replace("\u00a0", " ").replace("\u2212", "-") for sentence in judged.deciding]


TERMS = (
    "against the dense model at most 2.0 points less accuracy, 5.0 points less robust accuracy, 5.0 points more "
    "members exposed and 0.050 more membership AUC"
)


def test_who_may_ship_and_who_may_not() -> None:
    told = plain(release(int8=0.0, int4=0.0, prune80=-0.3))
    assert told[0] == (
        "int8 and int4 may ship; prune80 may not: robust accuracy is 50.0 % [46.0, 54.0], 30.0 points below its "
        "parent's [-31.0, -29.0]; the policy allows at most 5.0 points less."
    )
    assert told[1:] == [f"What may ship: {TERMS}."]
    assert plain(release(a=0.0, b=0.0))[0].startswith(f"a and b may ship: {TERMS}. Nearest to its limit: a: accuracy")
    assert plain(release(a=-0.3))[0].startswith("a may not ship: robust accuracy is")
    assert plain(release(a=0.0, b=-0.05))[0].startswith("a may ship; b is undecided: robust accuracy is")
    both = plain(release(a=0.0, b=-0.3, c=-0.4, d=-0.05))
    assert both[0] == "a may ship; d is undecided; b and c may not."
    assert [line[:3] for line in both[1:]] == ["b: ", "c: ", "Wha"]


def test_what_could_not_be_made_does_not_ship() -> None:
    judged = apply_policy([candidate("a")], findings("a"), BUILT_IN["release"], ["a", "gone"], KNOWN)
    assert (judged.verdict, plain(judged)[0]) == ("inconclusive", "a may ship; gone could not be made.")


def test_a_long_list_of_names_is_cut() -> None:
    names = {f"c{number:02}": 0.0 for number in range(30)}
    assert "c11 and 18 more may ship" in plain(release(**names))[0]


def test_a_pass_by_absolute_limits_says_so() -> None:
    policy = Policy(changes={"accuracy": 0.0}, absolutes={"robust_accuracy": 0.4})
    row = candidate("a", 0.1)
    judged = apply_policy([row], [finding("a", "robust_accuracy")], policy, ["a"], KNOWN)
    assert plain(judged)[0].startswith(
        "a may ship: against the dense model at most 0.0 points less accuracy and with robust accuracy at least 40.0 %."
    )
    judged = apply_policy([row], [finding("a", "robust_accuracy")], Policy(absolutes={"accuracy": 0.4}), ["a"], KNOWN)
    assert plain(judged)[0].startswith("a may ship, with accuracy at least 40.0 %. Nearest")
