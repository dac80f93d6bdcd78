"""What fools one model, asked of all others: held against answers by hand, and who does not count."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import case_of
from torch import nn

from crushproof.attacks.case import Evidence
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.preparations import asked_of_others
from crushproof.attacks.evasion.preparations.asked_of_others import AskedOfOthers, rows_asked, transfers
from crushproof.attacks.preparation import Prepared
from crushproof.targets.data.data import Data
from crushproof.targets.errors import NotApplicable
from crushproof.targets.form import MisfitError
from crushproof.targets.model import TorchTarget

N = 60


@pytest.fixture(scope="module")
def evidence(digits: Data, dense: nn.Module) -> Evidence:
    return Evasion(epsilons=(0.05, 0.1), records=N, parts=(Pgd(steps=6),)).run(case_of(digits, dense), seed=0)


def asked(digits: Data, evidence: Evidence, **models: nn.Module | None) -> Prepared:
    """The answers of some models; None: one that could not be made."""

    def deployed(name: str) -> TorchTarget:
        module = models[name]
        if module is None:
            raise NotApplicable("it could not be made")
        return TorchTarget(module)

    inputs: Any = SimpleNamespace(
        scope=SimpleNamespace(data=digits),
        deployed=deployed,
        evidence=lambda ran: evidence if ran.model == "a" else None,
    )
    work = AskedOfOthers("evasion", "a", tuple(models))
    found = work.compute(inputs)
    document = json.dumps(found.document).encode()
    form = work.form(inputs.scope)
    form.check(document, found.document, found.arrays, {})
    forged = json.dumps({"models": [*found.document["models"][1:], "a"]}).encode()
    with pytest.raises(MisfitError, match="not to be asked"):
        form.check(forged, json.loads(forged), found.arrays, {})
    return found


def noisy(dense: nn.Module) -> nn.Module:
    """A worse model that is like it."""
    other, generator = copy.deepcopy(dense), torch.Generator().manual_seed(0)
    for weights in other.parameters():
        weights.data += 0.3 * weights.data.std() * torch.randn(weights.shape, generator=generator)
    return other.eval()


def test_the_shares_are_those_counted_by_hand(digits: Data, dense: nn.Module, evidence: Evidence) -> None:
    other = noisy(dense)
    told = transfers(asked(digits, evidence, same=copy.deepcopy(dense), missing=None, other=other), evidence)
    assert told.keys() == {"same", "other"}
    assert told["same"].successes.all(), "what fools a model fools its copy"
    arrays = evidence.arrays
    x, y = digits.evaluation.x[:N], digits.evaluation.y[:N]
    adversarial = torch.from_numpy(arrays["adversarial"])
    counted = [
        bool(other(adversarial[at : at + 1]).argmax() != y[at])
        for at in range(N)
        if arrays["clean_correct"][at] and arrays["worst/0.1"][at] and other(x[at : at + 1]).argmax() == y[at]
    ]
    assert told["other"].successes.tolist() == counted
    assert 0 < len(counted) < len(told["same"].successes), "some records it gets wrong as they are"
    assert any(counted)


def test_a_model_that_is_never_right_has_no_share(digits: Data, evidence: Evidence) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(constant[1].weight)
    with torch.no_grad():
        constant[1].bias.copy_(torch.tensor([-1e9] * 10))
        constant[1].bias[3] = 0
    told = transfers(asked(digits, evidence, constant=constant), evidence)
    right = digits.evaluation.y[:N].numpy()[rows_asked(evidence)] == 3
    assert (len(told["constant"].successes) if told else 0) == right.sum()
    assert not told or not told["constant"].successes.any(), "it cannot be moved"
    nobody = Evidence({**evidence.arrays, "clean_correct": np.zeros(N, dtype=bool)}, evidence.summary)
    assert transfers(asked(digits, nobody, constant=constant), nobody) == {}


def test_inputs_made_with_another_models_help_are_left_out() -> None:
    """Of five records: wrong as it is; by own means; by the parent's; by the parent's first; by nothing."""

    def bits(text: str) -> Any:
        return np.array([one == "1" for one in text])

    arrays = {"ids": np.arange(5), "clean_correct": bits("01111")}
    arrays |= {f"fooled/{part}/0.1": bits(by) for part, by in (("pgd", "11000"), ("sent", "10110"), ("late", "11010"))}
    summary = {"gate_epsilon": 0.1, "parts": ["pgd", "sent", "late", "elsewhere"], "use_parent": ["sent"]}
    assert rows_asked(Evidence(arrays, summary)).tolist() == [1]
    summary["use_parent"] = []
    assert rows_asked(Evidence(arrays, summary)).tolist() == [1, 2, 3]


def test_a_few_are_asked_and_answers_about_others_refused(
    digits: Data, dense: nn.Module, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(digits, evidence, same=dense)
    monkeypatch.setattr(asked_of_others, "MOST_ASKED", 5)
    few = asked(digits, evidence, same=dense)
    assert few.arrays["fooled"].shape == (1, 5)
    assert len(transfers(few, evidence)["same"].successes) == 5
    with pytest.raises(ValueError, match="inputs, and 5 fooled"):
        transfers(whole, evidence)
