"""Files whose answers saturate: the attack of the suite and the call follow what goes into their last operation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.case import Case
from crushproof.attacks.evasion.call.attackable import attackable
from crushproof.attacks.evasion.evade import evade
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.interface.assumptions import Assumptions

N = 24


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


def binarised(data: Data, answers: Tensor) -> nn.Sequential:
    """Signs of random features, and on top of them the least squares fit of `answers` [members, outputs], steep."""
    assert data.members is not None
    torch.manual_seed(0)
    below = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), Sign())
    with torch.no_grad():
        below[1].weight.mul_(4)
        features = below(data.members.x)
        above = nn.Linear(256, answers.shape[1], bias=False)
        ridge = features.T @ features + 50 * torch.eye(256)
        above.weight.copy_(300 * torch.linalg.solve(ridge, features.T @ answers).T)
    return nn.Sequential(*below, above)


def attacked(path: Path, data: Data, outputs: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    opened = attackable(path, (1, 8, 8), Assumptions.model_validate({"record": (1, 8, 8), "outputs": outputs}))
    case = Case(
        deployed=opened.deployed, twin=opened.twin, native=None, parent=None, evaluation=data.evaluation,
        ids=data.evaluation_ids.numpy(), attacker=data.attacker, bounds=data.bounds, classes=data.classes,
    )  # fmt: skip
    attack = Evasion(epsilons=(0.1,), gate_epsilon=0.1, records=N, parts=(Pgd(steps=10), Apgd(steps=10)))
    evidence = attack.run(case, seed=0)
    return {name: torch.from_numpy(a) for name, a in evidence.arrays.items() if a.dtype == bool}, evidence.flags


@pytest.fixture(scope="module")
def plain(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A binarised net, and what the attack of the suite finds on its file."""
    assert digits.members is not None
    net = binarised(digits, torch.nn.functional.one_hot(digits.members.y, 10).float() - 0.1)
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    path.write_bytes(to_onnx(net.eval(), (1, 8, 8)))
    found, _ = attacked(path, digits, "logits")
    assert found["clean_correct"].float().mean() > 0.8
    assert found["worst/0.1"].float().mean() > 0.5, "there is something to find"
    return net, found


@pytest.mark.parametrize(
    ("last", "outputs"), [(nn.Softmax(1), "probabilities"), (nn.LogSoftmax(1), "log-probabilities")]
)
def test_a_binarised_net_that_ends_in_a_softmax(
    plain: tuple[nn.Sequential, dict[str, Tensor]], digits: Data, tmp_path: Path, last: nn.Module, outputs: str
) -> None:
    net, wanted = plain
    (tmp_path / "hidden.onnx").write_bytes(to_onnx(nn.Sequential(*net, last).eval(), (1, 8, 8)))
    found, flags = attacked(tmp_path / "hidden.onnx", digits, outputs)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert flags == {}


def test_one_probability_of_two_classes(digits: Data, tmp_path: Path) -> None:
    """Behind a sigmoid that answers 0 or 1 for nearly every record."""
    assert digits.members is not None
    net = binarised(digits, (digits.members.y % 2).float()[:, None] - 0.5)
    (tmp_path / "hidden.onnx").write_bytes(to_onnx(nn.Sequential(*net, nn.Sigmoid()).eval(), (1, 8, 8)))
    x, y = digits.evaluation.x[:N], digits.evaluation.y[:N] % 2
    how = Assumptions(record=(1, 8, 8), outputs="probabilities")
    opened = attackable(tmp_path / "hidden.onnx", (1, 8, 8), how)
    assert opened.twin is not None
    saturated = (opened.twin(x).diff(dim=1).abs() > 10).float().mean()
    found = evade(opened, x, y, epsilon=0.1, budget="quick")
    assert saturated > 0.3
    assert found.success.float().mean() > 0.5
    assert torch.equal((net(found.adversarial) > 0).long().squeeze(1) != y, found.success)
    assert found.flags == {}
