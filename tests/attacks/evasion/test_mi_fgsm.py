"""MI-FGSM against PGD, and against its formula written out for one record at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crushproof.attacks.access import Ledger
from crushproof.attacks.case import Case
from crushproof.attacks.evasion.blocks import Sought, seek
from crushproof.attacks.evasion.call import attackable as call
from crushproof.attacks.evasion.engine import Perturber, Search
from crushproof.attacks.evasion.gradient.mi_fgsm import MiFgsm
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.targets.data.records import Records
from crushproof.training.ball import Ball
from crushproof.training.networks import Mlp

N, STEPS = 20, 5


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    net, x = Mlp(9, 3).eval().requires_grad_(False), torch.rand(N, 9)
    net.layers[-1].bias -= net(x).mean(0)  # it answers all three classes
    return call.case_of(call.attackable(net, (9,)), Records(x, net(x).argmax(1)))


def tried(part: Perturber, case: Case, epsilon: float, batch: int = 64) -> Sought:
    x = case.evaluation.x
    ball, everybody = Ball("linf", epsilon, x, case.bounds), torch.ones(N, dtype=torch.bool)
    return seek(part, case, case.evaluation, case.ids, ball, among=everybody, seed=0, ledger=Ledger(), batch=batch)


def lowest(net: nn.Module, x: Tensor, y: Tensor, ball: Ball, decay: float) -> float:
    """The lowest margin on the way from x [1, features], by the formula of the paper."""

    def margin(at: Tensor) -> float:
        z = net(at)[0].double()
        return float(z[y] - max(z[k] for k in range(len(z)) if k != y))

    found, velocity = margin(x), torch.zeros_like(x)
    for _ in range(STEPS):
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(net(at), y), at)
        velocity = decay * velocity + slope / slope.abs().sum()
        moved = x + ball.epsilon * ball.scale * max(2.5 / STEPS, 0.25) * velocity.sign()
        reach = ball.epsilon * ball.scale
        x = torch.minimum(torch.maximum(moved, ball.center - reach), ball.center + reach)
        x = torch.minimum(torch.maximum(x, ball.bounds.low), ball.bounds.high).detach()
        found = min(found, margin(x))
    return found


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_it_goes_where_the_formula_goes(case: Case, decay: float) -> None:
    epsilon = 0.02  # so little that hardly anybody is fooled on the way
    found, starts = tried(MiFgsm(steps=STEPS, decay=decay), case, epsilon), []
    net = case.twin
    assert net is not None

    class Start(Pgd):
        def perturb(self, search: Search, case: Case) -> None:
            starts.append(search.start(0))

    tried(Start(), case, epsilon)
    standing = (~found.fooled).nonzero().flatten().tolist()
    assert len(standing) > N / 2
    for row in standing:
        some = torch.tensor([row])
        ball = Ball("linf", epsilon, case.evaluation.x[some], case.bounds)
        expected = lowest(net, starts[0][some], case.evaluation.y[some], ball, decay)
        assert found.margin[row].item() == pytest.approx(expected, abs=1e-5)


def test_without_momentum_it_is_pgd(case: Case) -> None:
    plain = Pgd(steps=STEPS, step_size=0.1 * max(2.5 / STEPS, 0.25))
    still, pgd = tried(MiFgsm(steps=STEPS, decay=0), case, 0.1), tried(plain, case, 0.1)
    assert torch.equal(still.fooled, pgd.fooled)
    assert 0 < still.fooled.sum() < N
    assert torch.equal(still.best[still.fooled], pgd.best[pgd.fooled])


def test_a_record_does_not_depend_on_its_company(case: Case) -> None:
    together = tried(MiFgsm(steps=STEPS, restarts=2), case, 0.1)
    for batch in (1, 7):
        few = tried(MiFgsm(steps=STEPS, restarts=2), case, 0.1, batch)
        assert torch.equal(together.fooled, few.fooled)
        torch.testing.assert_close(together.best, few.best, atol=1e-6, rtol=0)
