"""Balls of perturbation: the projection, starts and steps stay inside, what is outside is refused."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crushproof.targets.data.records import Bounds
from crushproof.training.ball import Ball, Norm


@st.composite
def balls(draw: st.DrawFn) -> tuple[Ball, Tensor]:
    """A ball with channels of different bounds, and inputs anywhere."""
    stream = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    low = torch.tensor([draw(st.floats(-5, 0)), draw(st.floats(-300, 300))]).view(2, 1, 1)
    high = low + torch.tensor([draw(st.floats(0.1, 5)), draw(st.floats(10, 500))]).view(2, 1, 1)
    center = low + torch.rand(4, 2, 3, 3, generator=stream) * (high - low)
    x = center + torch.randn(4, 2, 3, 3, generator=stream) * draw(st.floats(0, 2)) * (high - low)
    norm: Norm = draw(st.sampled_from(["linf", "l2"]))
    return Ball(norm, draw(st.floats(1e-3, 2)), center, Bounds(low, high)), x


@settings(max_examples=80, deadline=None)
@given(balls())
def test_projection_is_inside_and_idempotent(drawn: tuple[Ball, Tensor]) -> None:
    ball, x = drawn
    once = ball.project(x)
    assert ball.contains(once).all()
    assert torch.equal(once, ball.bounds.clamp(once))
    assert torch.allclose((ball.project(once) - once) / ball.bounds.scale, torch.zeros(()), atol=1e-6)
    assert torch.allclose((ball.project(ball.center) - ball.center) / ball.bounds.scale, torch.zeros(()), atol=1e-6)
    change = ((once - ball.center) / ball.bounds.scale).flatten(1).double().numpy()
    distance = np.abs(change).max(1) if ball.norm == "linf" else np.linalg.norm(change, axis=1)
    assert (distance <= ball.epsilon * (1 + 1e-6) + 1e-6 * float(ball.bounds.high.abs().max())).all()


@settings(max_examples=40, deadline=None)
@given(balls())
def test_starts_and_steps_stay_inside(drawn: tuple[Ball, Tensor]) -> None:
    ball, x = drawn
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    start = ball.random_start(noise)
    assert ball.contains(start).all()
    for gradient in (x, torch.zeros_like(x), torch.full_like(x, torch.nan), x * 1e-30, x * 1e30):
        assert ball.contains(ball.step(start, gradient, ball.epsilon)).all()
    assert torch.equal(ball.step(ball.center, torch.zeros_like(x), ball.epsilon), ball.project(ball.center))


def test_contains_refuses_what_is_outside() -> None:
    center = torch.full((6, 1, 2, 2), 0.5)
    x = center.clone()
    x[1] += 0.1001
    x[2, 0, 0, 0] = torch.nan
    x[3, 0, 0, 0] = torch.inf
    x[4] += 0.0999
    center[5], x[5] = 0.95, 1.01  # within epsilon, not within the bounds
    assert Ball("linf", 0.1, center, Bounds.of(0, 1)).contains(x).tolist() == [True, False, False, False, True, False]
    assert Ball("l2", 0.2002, center, Bounds.of(0, 1)).contains(x).tolist() == [True, True, False, False, True, False]
