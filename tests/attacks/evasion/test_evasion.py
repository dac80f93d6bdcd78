"""The evasion engine: losses, what counts as a success, and what it does not depend on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evasion_cases import RADII, N, case_of, survivors
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.evasion.ascent.gradients import Gradients
from crushproof.attacks.evasion.ascent.losses import losses, margins
from crushproof.attacks.evasion.ascent.walk import STEPS, WALKS
from crushproof.attacks.evasion.black_box.hop_skip_jump import HopSkipJump
from crushproof.attacks.evasion.black_box.square import Square
from crushproof.attacks.evasion.black_box.transfer import Transfer
from crushproof.attacks.evasion.case import EvasionInputs
from crushproof.attacks.evasion.engine import FLAT_STARTS, Perturber, Search
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd, checkpoints
from crushproof.attacks.evasion.gradient.apgd_targeted import ApgdTargeted
from crushproof.attacks.evasion.gradient.pgd import Pgd, craft
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds
from crushproof.targets.errors import NotApplicable
from crushproof.targets.model import TorchTarget, laid_out
from crushproof.training.ball import Ball, Norm
from crushproof.training.networks import Mlp


class Rounded(nn.Module):
    """A layer with weights and inputs rounded to 8 bits; straight-through or with the true, zero, gradients."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, largest: float, *, straight_through: bool) -> None:
        super().__init__()
        self.layer, self.step, self.straight_through = layer, largest / 255, straight_through
        scale = layer.weight.data.abs().max() / 127
        layer.weight.data = torch.round(layer.weight.data / scale) * scale

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(x / self.step) * self.step
        return self.layer(x + (rounded - x).detach() if self.straight_through else rounded)


def hard_round(module: nn.Module, x: Tensor, *, straight_through: bool) -> nn.Module:
    """A W8A8 copy calibrated on `x`; batch norm is kept."""
    copied, ranges = copy.deepcopy(module).eval(), {}
    layers = [layer for layer in copied.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: ranges.update({layer: float(inputs[0].detach().max())}))
        for layer in layers
    ]
    with torch.no_grad():
        copied(x)
    for hook in hooks:
        hook.remove()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if child in ranges:
                setattr(parent, name, Rounded(child, ranges[child], straight_through=straight_through))
    return copied


# --- losses and gradients


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_saturated_logits_keep_their_gradients(digits: Data, dense: nn.Module, loss: Any, scale: float) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dense(x) * scale

    records = digits.evaluation.take(torch.arange(50))
    gradient, margin, *_ = Gradients(Scaled(), loss, Ledger())(records.x, records.y)
    plain, unscaled, *_ = Gradients(dense, "margin", Ledger())(records.x, records.y)
    assert torch.allclose(margin, unscaled * scale, rtol=1e-4)
    cosine = nn.functional.cosine_similarity(gradient.flatten(1).double(), plain.flatten(1).double())
    attacked = unscaled > 0  # a wrong record whose label ranks third has a DLR of exactly 1, and is never attacked
    assert (gradient[attacked].flatten(1).norm(dim=1) > 0).all()
    assert cosine[attacked].median() > 0.5  # the other losses weigh the other classes too, so they only roughly agree


def test_margin_by_hand() -> None:
    logits, y = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 2])
    assert margins(logits, y).tolist() == [1, -4]
    assert losses(logits, y, "dlr").tolist() == pytest.approx([-0.5, 0.8])
    expected = nn.functional.cross_entropy(logits, y, reduction="none")
    assert torch.allclose(losses(logits, y, "ce").float(), expected)


def test_losses_towards_a_class_by_hand() -> None:
    logits, y, towards = torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([1])
    assert losses(logits, y, "margin", towards=towards).tolist() == [-2]
    assert losses(logits, y, "dlr", towards=towards).tolist() == pytest.approx([-2 / (3 - (1 + 0) / 2)])
    assert losses(logits, y, "ce", towards=towards).item() == pytest.approx(logits.log_softmax(1)[0, 1].item())
    assert losses(logits[:, :3], y, "dlr", towards=towards).tolist() == [-2]


def test_another_class_than_the_nearest_is_reached(digits: Data) -> None:
    """The second largest logit never wins, and gives no hint of the third, which does."""

    class Wall(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x[:, 0], x[:, 1]
            flat = torch.zeros_like(first)
            return torch.stack([flat + 1, 0.9 + 0.01 * first, 4.4 * second - 1, flat - 5], dim=1)

    x = torch.zeros(40, 2)
    case = replace(
        case_of(digits, Wall()), evaluation=replace(digits.evaluation, x=x, y=torch.zeros(40, dtype=torch.int64)),
        ids=np.arange(40), classes=4, bounds=Bounds.of(-1, 0.5),
    )  # fmt: skip
    fooled = {}
    for part in (Apgd(steps=20, loss="margin"), ApgdTargeted(steps=10, classes=2)):
        search = Search(
            case.deployed, case.evaluation, case.ids, Ball("linf", 0.4, x, case.bounds),
            among=torch.ones(40, dtype=torch.bool), seed=0, ledger=Ledger(),
        )  # fmt: skip
        part.perturb(search, case)
        search.close()
        fooled[part.part] = float(search.fooled.float().mean())
    assert fooled["apgd"] < 0.5
    assert fooled["apgd-targeted"] == 1


def test_checkpoints_of_the_paper() -> None:
    """Section 3.2 with 100 iterations: 22, 41, 57, 70, 80, 87, 93, 99."""
    assert checkpoints(100)[:8] == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("last", ["flatten", "view"])
def test_a_copy_with_its_channels_last_answers_alike_or_is_none(digits: Data, last: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x).relu()
            answers: Tensor = self.second(hidden.flatten(1) if last == "flatten" else hidden.view(len(x), -1))
            return answers

    torch.manual_seed(0)
    net, x, y = Net(), digits.evaluation.x[:5], digits.evaluation.y[:5]
    other = laid_out(net, x)
    assert (other is net) == (last == "view"), "a view of values that lie otherwise is an error"
    assert torch.allclose(other(x), net(x), atol=1e-6)
    gradient, *_ = Gradients(net, "margin", Ledger())(x, y)
    given = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-margins(net(given), y).sum(), given)
    assert torch.allclose(gradient, expected, atol=1e-6)


# --- what counts


@pytest.fixture(scope="module")
def evidence(digits: Data, dense: nn.Module) -> Evidence:
    return Evasion(epsilons=RADII, records=N, parts=(Pgd(steps=20), Apgd(steps=20), Square(queries=60))).run(
        case_of(digits, dense), seed=0
    )


def test_every_success_is_one(digits: Data, dense: nn.Module, evidence: Evidence) -> None:
    arrays = evidence.arrays
    x, y = digits.evaluation.x[:N], digits.evaluation.y[:N]
    adversarial = torch.from_numpy(arrays["adversarial"])
    assert (adversarial - x).abs().max() <= 0.1 + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    with torch.no_grad():
        wrong = (dense(adversarial).argmax(1) != y).numpy()
        clean = (dense(x).argmax(1) == y).numpy()
    assert (wrong == arrays["worst/0.1"]).all()
    assert (arrays["clean_correct"] == clean).all()
    assert (arrays["ids"] == digits.evaluation_ids[:N].numpy()).all()


def test_clean_errors_and_smaller_epsilons_carry_over(evidence: Evidence) -> None:
    arrays = evidence.arrays
    for part in ("pgd", "apgd"):
        before = ~arrays["clean_correct"]
        for epsilon in (0.03, 0.05, 0.1, 0.15):
            after = arrays[f"fooled/{part}/{epsilon!r}"]
            assert (after >= before).all()
            before = after
    assert [key for key in arrays if "square" in key] == ["fooled/square/0.1"]
    parts = [arrays[f"fooled/{part}/0.1"] for part in ("pgd", "apgd", "square")]
    assert (arrays["worst/0.1"] == np.logical_or.reduce(parts)).all()
    assert (arrays["worst/0.15"] >= arrays["worst/0.1"]).all()


def test_the_ledger_is_the_targets_own_count(digits: Data, dense: nn.Module) -> None:
    case = case_of(digits, dense)
    passes = []

    def count(_module: nn.Module, inputs: Any, _output: Any) -> None:
        if not torch.is_grad_enabled():  # as when it only measures how much memory a record takes
            passes.append(len(inputs[0]))

    hook = dense.register_forward_hook(count)
    ledger = Evasion(epsilons=RADII, records=40, parts=(Square(queries=20),)).run(case, seed=0).ledger
    hook.remove()
    assert ledger.queries == case.deployed.queries == sum(passes)
    assert len(passes) <= 21  # the clean records, then one call per query
    assert ledger.forwards == ledger.backwards == 0


def test_the_deployed_model_decides(digits: Data, dense: nn.Module) -> None:
    """A twin that can be fooled proves nothing about a deployed model that cannot."""

    class Nearest:
        """Answers with the label of the nearest clean record: right everywhere inside a small ball."""

        queries = 0

        def logits(self, x: Tensor) -> Tensor:
            nearest = torch.cdist(x.flatten(1), digits.evaluation.x.flatten(1)).argmin(1)
            return nn.functional.one_hot(digits.evaluation.y[nearest], 10).float()

    case = case_of(digits, dense, deployed=Nearest())
    found = Evasion(epsilons=(0.05,), gate_epsilon=0.05, records=N, parts=(Pgd(steps=20), Apgd(steps=20)))
    assert not found.run(case, seed=0).arrays["worst/0.05"].any()


def test_candidates_the_deployed_model_resists_are_not_lost(digits: Data, dense: nn.Module) -> None:
    """A deployed model whose margin is a little wider than the twin's still falls: the search goes on."""

    class Firmer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bonus = dense, 0.0

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inner(x)
            # the clean label's logit gets a bonus: known by the nearest clean record
            nearest = torch.cdist(x.flatten(1), digits.evaluation.x.flatten(1)).argmin(1)
            return logits + 1.0 * nn.functional.one_hot(digits.evaluation.y[nearest], 10)

    firm = Firmer()
    own = survivors(case_of(digits, firm), Pgd(steps=20), "linf", 0.1)
    through_twin = survivors(case_of(digits, dense, deployed=TorchTarget(firm)), Pgd(steps=20), "linf", 0.1)
    assert through_twin <= own + 5


# --- what a result does not depend on


@pytest.mark.parametrize("part", [Pgd(steps=15), Apgd(steps=15), ApgdTargeted(steps=6, classes=3), Square(queries=40)])
def test_a_record_does_not_depend_on_its_company(digits: Data, part: Perturber) -> None:
    torch.manual_seed(0)
    module = Mlp(64, 10).eval()
    case = case_of(digits, module)
    attack = Evasion(epsilons=RADII, records=40, parts=(part,))
    together = attack.run(case, seed=3).arrays
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:17]
    few = replace(case, evaluation=case.evaluation.take(order), ids=case.ids[order.numpy()])
    alone = attack.run(few, seed=3).arrays
    assert (alone["worst/0.1"] == together["worst/0.1"][order.numpy()]).all()
    assert np.allclose(alone["adversarial"], together["adversarial"][order.numpy()], atol=1e-5)


def test_same_seed_same_evidence_other_seed_another(digits: Data, dense: nn.Module) -> None:
    attack = Evasion(epsilons=RADII, records=12, parts=(Pgd(steps=4), Apgd(steps=4), Square(queries=15)))
    evidence, again = (attack.run(case_of(digits, dense), seed=0) for _ in range(2))
    assert again.arrays.keys() == evidence.arrays.keys()
    assert all((again.arrays[key] == evidence.arrays[key]).all() for key in evidence.arrays)
    assert again.summary == evidence.summary
    assert again.ledger == evidence.ledger
    few = Evasion(epsilons=(0.1,), records=20, parts=(Pgd(steps=5), Square(queries=5)))
    one, other = (few.run(case_of(digits, dense), seed=seed).arrays["adversarial"] for seed in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_epsilon_counts_in_units_of_the_range(digits: Data, dense: nn.Module, norm: Norm) -> None:
    """The same data in [-256, 0] (a shift and a power of two, so nothing is rounded) gives the same answers."""

    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dense(x / 256 + 1)

    wide = replace(digits.evaluation, x=digits.evaluation.x * 256 - 256)
    attack = Evasion(norm=norm, epsilons=(0.1,), records=30, parts=(Pgd(steps=6), Apgd(steps=6), Square(queries=15)))
    plain = attack.run(case_of(digits, dense), seed=0).arrays
    case = case_of(digits, Wide(), evaluation=wide, bounds=Bounds.of(-256, 0))
    scaled = attack.run(case, seed=0).arrays
    assert abs(int(plain["worst/0.1"].sum()) - int(scaled["worst/0.1"].sum())) <= 1
    assert np.abs(scaled["adversarial"] - wide.x[:30].numpy()).max() <= 25.6 + 1e-4


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 9), (2, 11)])
def test_any_shape_of_record(digits: Data, norm: Norm, shape: tuple[int, ...]) -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(12, *shape, generator=stream)
    torch.manual_seed(0)
    module = Mlp(x[0].numel(), 3).eval()
    y = module(x).argmax(1)
    case = replace(
        case_of(digits, module), evaluation=replace(digits.evaluation, x=x, y=y), ids=np.arange(12), classes=3
    )
    for part in (Pgd(), Apgd(), ApgdTargeted(), Square(queries=50), HopSkipJump(iterations=2, probes=40)):
        search = Search(
            case.deployed, case.evaluation, case.ids, Ball(norm, 0.9, x, case.bounds),
            among=torch.ones(12, dtype=torch.bool), seed=0, ledger=Ledger(),
        )  # fmt: skip
        part.perturb(search, case)
        search.close()
        assert Ball(norm, 0.9, x, case.bounds).contains(search.best).all()
        assert search.fooled.any()


# --- transfer and craft


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.6)])
def test_crafted_inputs_transfer(digits: Data, dense: nn.Module, norm: Norm, epsilon: float) -> None:
    records = digits.evaluation.take(torch.arange(N))
    crafted = craft(dense, records, [epsilon / 2, epsilon], norm, digits.bounds, seed=0)
    assert list(crafted) == [epsilon / 2, epsilon]
    x = crafted[epsilon]
    assert Ball(norm, epsilon, records.x, digits.bounds).contains(x).all()
    left = int((dense(x).argmax(1) == records.y).sum())
    assert left <= survivors(case_of(digits, dense), Pgd(), norm, epsilon) + 6  # its start is another
    rounded = hard_round(dense, records.x, straight_through=False)
    case = case_of(digits, rounded, parent=dense, prepared=EvasionInputs(parent_adversarial=crafted))
    found = Evasion(norm=norm, epsilons=(epsilon,), gate_epsilon=epsilon, records=N, parts=(Transfer(),))
    fooled = found.run(case, seed=0).arrays["worst/" + f"{epsilon!r}"]
    assert (fooled >= (rounded(x).argmax(1) != records.y).numpy()).all()


def test_transfer_says_why_it_did_not_run(digits: Data, dense: nn.Module) -> None:
    attack = Evasion(epsilons=RADII, records=20, parts=(Square(queries=2), Transfer()))
    assert attack.run(case_of(digits, dense), seed=0).skipped == {"transfer": "the dense model is its own parent"}
    other = case_of(
        digits, dense, parent=Mlp(64, 10), prepared=EvasionInputs(parent_adversarial={0.05: digits.evaluation.x})
    )
    assert "epsilon 0.03" in attack.run(other, seed=0).skipped["transfer"]
    with pytest.raises(NotApplicable, match="no part"):
        Evasion(epsilons=(0.1,), parts=(Transfer(),)).run(case_of(digits, dense, parent=None), seed=0)


# --- hard rounding


N_HARD = 50


def test_hard_rounding_does_not_hide_adversarial_inputs(digits: Data, dense: nn.Module) -> None:
    assert digits.members is not None
    hard = hard_round(dense, digits.members.x, straight_through=False)
    twin = hard_round(dense, digits.members.x, straight_through=True)
    attack = Evasion(epsilons=(0.1,), records=N_HARD)
    of_dense = attack.run(case_of(digits, dense), seed=0)
    crafted = craft(dense, digits.evaluation.take(torch.arange(N_HARD)), attack.epsilons, "linf", digits.bounds, seed=0)
    case = Case(
        deployed=TorchTarget(hard), twin=twin, native=hard, parent=dense, evaluation=digits.evaluation,
        ids=digits.evaluation_ids.numpy(), attacker=digits.attacker, bounds=digits.bounds, classes=10,
        prepared=EvasionInputs(parent_adversarial=crafted),
    )  # fmt: skip
    of_hard = attack.run(case, seed=0)
    robust = {name: 1 - run.arrays["worst/0.1"].mean() for name, run in (("dense", of_dense), ("hard", of_hard))}
    assert robust["hard"] <= robust["dense"] + 2.01 / N_HARD  # two records
    assert of_dense.flags == {}
    assert of_dense.summary["union_flags"] == of_hard.summary["union_flags"] == []
    assert of_hard.summary["parts"] == ["pgd", "apgd-targeted", "diversified", "pgd-native", "transfer", "square"]
    assert "no-gradient" in of_hard.flags["pgd-native"]
    native = of_hard.arrays["fooled/pgd-native/0.1"]
    assert (native & of_hard.arrays["clean_correct"]).sum() <= 3  # at most what a random start happens to fool
    blind = attack.model_copy(update={"parts": (Pgd(gradients="native"),)}).run(case, seed=0)
    assert blind.summary["union_flags"] == ["no-gradient"]
    assert 1 - blind.arrays["worst/0.1"].mean() > 0.9
    walked = WALKS * (STEPS + 2)  # away from the first records
    assert blind.ledger.forwards - walked <= N_HARD * FLAT_STARTS  # it spent no steps where none leads anywhere


def test_no_gradient_at_all(digits: Data, dense: nn.Module) -> None:
    """A graph that cuts the gradient without an error (as some quantised ones do) is a missing gradient."""

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dense(x.detach())

    for part in (Pgd(gradients="native"), Apgd(gradients="native")):
        found = Evasion(epsilons=RADII, records=30, parts=(part,)).run(
            case_of(digits, dense, native=Cut(), twin=None), seed=0
        )
        assert found.flags == {part.part: ["no-gradient"]}
