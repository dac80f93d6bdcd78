"""What `crushproof.audit_dp` and `crushproof.GradientCanaries` find of private trainings, right ones and broken ones.

    python benchmarks/dp_audit.py [--runs 40] [--json FILE]

Bounds hold with a confidence of .999 unless a row says otherwise. "Stacked" steps take thousands of worlds in a call,
the others one; CPU seconds are of one audit, one thread. The single training is that of a small MLP on scikit-learn's
digits by our own DP-SGD step, with the canaries' gradients among the records'. Two to three minutes of CPU.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contract import Row, parser, publish
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from crushproof import GradientCanaries, audit_dp
from crushproof.attacks.dp_audit.accounting import prv_epsilon, smallest_noise
from crushproof.attacks.dp_audit.bounds import gaussian_mu
from crushproof.attacks.dp_audit.claim import DpAudit
from crushproof.attacks.dp_audit.worlds import Step
from crushproof.defenses.dp_sgd import gradient_step
from crushproof.targets.data.digits import load_digits
from crushproof.targets.seeds import generator

DELTA = 1e-5
RATE, STEPS = 256 / 898, 43  # DP-SGD's own schedule on digits: twelve passes
TIGHT = {1.0: None, 2.0: 0.7, 4.0: 0.8, 8.0: None, 10.0: 0.8}  # epsilon: share of it that is asked for
BROKEN = (
    *("noise forgotten", "noise over the batch", "clipped per batch", "clipped number by number", "not clipped"),
    *("sampling not accounted", "noise of one seed"),
)


def reference(sigma: float, rate: float = 1.0, mistake: str = "") -> Step:
    """DP-SGD's step on gradients [..., n, d] in a few lines, clipped to 1; or with one mistake."""

    def step(gradients: Tensor, draws: torch.Generator) -> Tensor:
        drawn = torch.rand(gradients.shape[:-1], generator=draws) < rate
        if mistake != "sampling not accounted":
            gradients = gradients * drawn[..., None]
        if mistake == "clipped number by number":
            gradients = gradients.clamp(-1, 1)
        elif mistake not in ("clipped per batch", "not clipped"):
            gradients = gradients / gradients.norm(dim=-1, keepdim=True).clamp_min(1)
        total = gradients.sum(-2)
        if mistake == "clipped per batch":
            total = total / total.norm(dim=-1, keepdim=True).clamp_min(1)
        if mistake == "noise of one seed":
            draws = torch.Generator().manual_seed(0)
        scale = {"noise forgotten": 0.0, "noise over the batch": sigma / gradients.shape[-2]}.get(mistake, sigma)
        return total + scale * torch.randn(total.shape, generator=draws)

    return step


def opacus_step(sigma: float) -> Step:
    """opacus's optimiser, given the gradients per record."""
    from opacus.optimizers import DPOptimizer

    weight = nn.Parameter(torch.zeros(8))
    optimizer = DPOptimizer(
        torch.optim.SGD([weight], lr=1.0),
        noise_multiplier=sigma,
        max_grad_norm=1.0,
        expected_batch_size=None,
        loss_reduction="sum",
        generator=torch.Generator(),
    )

    def step(gradients: Tensor, draws: torch.Generator) -> Tensor:
        optimizer.zero_grad()
        optimizer.generator = draws
        weight.grad_sample = gradients  # type: ignore[attr-defined]  # where opacus's hooks would put it
        optimizer.pre_step()
        assert weight.grad is not None
        return weight.grad.clone()

    return step


def timed(audit: Callable[[], DpAudit]) -> tuple[DpAudit, float]:
    before = time.process_time()
    found = audit()
    return found, time.process_time() - before


def tightness() -> list[Row]:
    """At a sampling rate of 1: the median bound of five seeds as a share of the claim."""
    rows = []
    for epsilon, target in TIGHT.items():
        sigma = 1 / gaussian_mu(epsilon, DELTA)
        tight = partial(audit_dp, reference(sigma), epsilon=epsilon, stacked=True)
        found = [timed(partial(tight, seed=seed)) for seed in range(5)]
        share = statistics.median(audit.epsilon_low for audit, _ in found) / epsilon
        seconds = statistics.median(seconds for _, seconds in found)
        setting = f"epsilon {epsilon:g}, 4,000 pairs, {seconds:.2f} CPU s"
        rows.append(Row("bound / claim", setting, share, "share", target=target, better="higher"))
    sigma = 1 / gaussian_mu(8, DELTA)
    own = gradient_step(noise_multiplier=sigma, max_gradient_norm=1.0, sampling_rate=1.0)
    for name, step in (("our trainer's step", own), ("opacus's optimiser", opacus_step(sigma))):
        audit, seconds = timed(partial(audit_dp, step, epsilon=8, worlds=1000))
        setting = f"{name}, epsilon 8, 1,000 pairs, {seconds:.1f} CPU s"
        rows.append(Row("bound / claim", setting, audit.epsilon_low / 8, "share"))
    return rows


def soundness(runs: int) -> list[Row]:
    """True claims from epsilon 1 to 10: how many bounds exceed them."""
    above, shares, single = 0, [], 0
    for run in range(runs):
        epsilon = 1 + 9 * run / max(1, runs - 1)
        rate, steps = ((1.0, 1), (1.0, 20), (RATE, STEPS), (0.1, 100))[run % 4]
        noise = (
            smallest_noise(epsilon, DELTA, rate, steps) if rate < 1 else math.sqrt(steps) / gaussian_mu(epsilon, DELTA)
        )
        claim: dict[str, Any] = {
            "epsilon": prv_epsilon(noise, DELTA, rate, steps) if rate < 1 else epsilon,
            "noise_multiplier": noise,
            "sampling_rate": rate,
            "steps": steps,
        }
        found = audit_dp(reference(noise, rate), **claim, stacked=True, seed=run)
        above += found.above_claim
        shares.append(found.epsilon_low / found.claimed)
        canaries, others = (
            GradientCanaries(512, 200, seed=run),
            torch.randn(30, 512, generator=generator(run, "others")),
        )
        watched, draws = canaries.watch(reference(noise, rate)), generator(run, "one training")
        for _ in range(steps):
            watched(others, draws)
        single += canaries.audit(**claim).above_claim
    return [
        Row("bounds above a true claim", f"{runs} audits, epsilon 1 to 10, q 1, .29, .1", above, "audits", target=0),
        Row("bounds above a true claim", f"{runs} single trainings, 200 canaries", single, "audits", target=0),
        Row("bound / claim", f"median of these {runs} audits", statistics.median(shares), "share"),
    ]


def broken() -> list[Row]:
    """Each mistake, at epsilon 8: CPU seconds until it is refuted."""
    rows = []
    sigma = smallest_noise(8.0, DELTA, RATE, STEPS)
    full = math.sqrt(1) / gaussian_mu(8, DELTA)
    for mistake in BROKEN:
        settings: list[tuple[str, Step, dict[str, Any]]] = [
            ("q .29, 43 steps, stacked", reference(sigma, RATE, mistake), {"sampling_rate": RATE, "steps": STEPS}),
        ]
        settings[0][2].update(stacked=True, noise_multiplier=sigma)
        if mistake != "sampling not accounted":
            settings.append(("q 1, 1 step, one world a call", reference(full, 1.0, mistake), {}))
        for setting, step, more in settings:
            audit, seconds = timed(partial(audit_dp, step, epsilon=8.0, **more))
            setting = f"{mistake}; {setting}; bound {audit.epsilon_low:.1f}"
            caught = seconds if audit.above_claim else math.inf
            rows.append(Row("mistake refuted", setting, caught if math.isfinite(caught) else None, "CPU s", target=60))
    return rows


def one_training() -> list[Row]:
    """White-box canaries in one training of digits at epsilon 8."""
    rows = []
    members = load_digits(0).members
    assert members is not None
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}

    def unflattened(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, unflattened(flat), (x[None],)), y[None])

    for count in (200, 1000):
        weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
        before = time.process_time()
        sigma = smallest_noise(8.0, DELTA, RATE, STEPS)
        canaries, draws = GradientCanaries(len(weights), count), generator(0, "one training")
        step = canaries.watch(gradient_step(noise_multiplier=sigma, max_gradient_norm=1.0, sampling_rate=RATE))
        for _ in range(STEPS):
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, members.x, members.y)
            weights = weights - 2.0 * step(gradients, draws)
        logits = functional_call(net, unflattened(weights), (members.x,))
        right = float((logits.argmax(1) == members.y).float().mean())
        for confidence in (0.999, 0.95):
            audit = canaries.audit(
                epsilon=8.0, noise_multiplier=sigma, sampling_rate=RATE, steps=STEPS, confidence=confidence
            )
            seconds = time.process_time() - before
            setting = (
                f"{count} canaries, confidence {confidence:g}, {right:.0%} of the members right, {seconds:.0f} CPU s"
            )
            target = 0.2 if count == 1000 else None
            share = audit.epsilon_low / 8
            rows.append(Row("one training: bound / claim", setting, share, "share", target=target, better="higher"))
            free = audit.bounds["any mechanism"] / 8
            rows.append(Row("of it without assumptions (Steinke et al.)", setting, free, "share"))
    return rows


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=40, help="audits of true claims")
    given = options.parse_args()
    torch.set_num_threads(1)
    publish([*tightness(), *soundness(given.runs), *broken(), *one_training()], given.json)


if __name__ == "__main__":
    main()
