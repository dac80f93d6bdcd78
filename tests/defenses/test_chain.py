"""Chains of defenses: one of each stage, and an attacker who knows all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from crushproof.attacks.attack import Attack
from crushproof.attacks.extraction.extraction import Extraction
from crushproof.audit.plan.plan import check_techniques, load_plan
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.attack_cells import adapted
from crushproof.audit.suite.lineup import assemble
from crushproof.compression.answers import LimitAnswers
from crushproof.defenses.adversarial_training import AdversarialTraining
from crushproof.defenses.chain import DefenseChain, chained, parse_defenses, steps_of
from crushproof.defenses.limited_answers import LimitedAnswers
from crushproof.defenses.stochastic_rounding import StochasticRounding
from crushproof.targets.errors import InputError

PLAN = """
name: chain
data: {kind: digits}
model: {architecture: "crushproof.training.networks:digits_mlp"}
candidates:
  plain: {recipe: int8}
  chained:
    recipe: int8
    defense: DEFENSES
"""
CHAIN = "[limited-answers, {kind: stochastic-rounding, draws: 2}, {kind: adversarial-training, method: trades}]"


def test_a_plan_may_chain_one_of_each_stage(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.replace("DEFENSES", CHAIN))
    plan = load_plan(file)
    check_techniques(plan)
    lineup = assemble(plan, resolve(plan, tmp_path))
    model = lineup.models["chained"]
    assert [one.name for one in lineup.dense] == ["dense", "dense-adversarial-training"]
    assert model.parent is lineup.dense[1], "its parent is the model that was trained so"
    assert isinstance(model.recipe, LimitAnswers)
    draws = [model.recipe.recipe, *(one.recipe for one in model.draws if isinstance(one, LimitAnswers))]
    assert [getattr(one, "rounding_seed", None) for one in draws] == [0, 1], "the layer stands behind the rounding"
    assert [one.kind for one in steps_of(model.defense)] == [
        "adversarial-training",
        "stochastic-rounding",
        "limited-answers",
    ]
    assert adapted(Extraction(), model) == Extraction(), "each of the three leaves the attack as it is"


@pytest.mark.parametrize(
    ("defenses", "message"),
    [
        ("[adversarial-training, dp-sgd]", r"line 9.*adversarial-training and dp-sgd both act on training"),
        ("[noisy-inputs, {kind: transformed-inputs, levels: 4}]", r"line 9.*both act on inputs, and a chain takes one"),
        ("[]", "line 9.*list of defenses is empty"),
        ("[adversarial-training, limited-answer]", r"line 9.*limited-answers"),
        ("[adversarial-training, 3]", r"line 9.*word or a mapping"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, defenses: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.replace("DEFENSES", defenses))
    with pytest.raises(InputError, match=message):
        check_techniques(load_plan(file))


class Averaging(StochasticRounding):
    """Whose attacker asks twice as often."""

    def adapted(self, attack: Attack) -> Attack:
        assert isinstance(attack, Extraction)
        return attack.model_copy(update={"budgets": tuple(2 * one for one in attack.budgets)})


class Patient(LimitedAnswers):
    """Whose attacker asks 100 times more often."""

    def adapted(self, attack: Attack) -> Attack:
        assert isinstance(attack, Extraction)
        return attack.model_copy(update={"budgets": tuple(one + 100 for one in attack.budgets)})


def test_the_attack_that_knows_a_chain_is_composed_in_the_order_of_the_stages() -> None:
    chain = chained([Patient(), Averaging()])
    attack = Extraction(budgets=(50,))
    found = chain.adapted(attack)
    assert isinstance(found, Extraction)
    assert found.budgets == (200,), "2 * 50 + 100, not 2 * (50 + 100)"
    assert isinstance(chain, DefenseChain)
    assert chain.phrase({}) == "stochastic rounding, then limited answers: labels only"
    assert (chain.named(), chain.kind) == (
        "Stochastic rounding, then limited answers",
        "stochastic-rounding + limited-answers",
    )


def test_one_in_a_list_is_that_one() -> None:
    assert parse_defenses(["adversarial-training"]) == AdversarialTraining()
