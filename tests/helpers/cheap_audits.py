"""What takes most of a small audit's time, left out for tests that look at something else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from crushproof.attacks.membership import preparations
from crushproof.audit.report import charts, dot_charts
from crushproof.targets.data.records import Records

EMPTY = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside the block what a report's charts show is computed and laid out, and their pictures are empty."""
    empty = "data:image/svg+xml;base64," + base64.b64encode(EMPTY).decode("ascii")
    with pytest.MonkeyPatch.context() as patch:
        for module in (charts, dot_charts):
            patch.setattr(module, "to_data_uri", lambda figure: empty)
        yield


@contextmanager
def without_forests() -> Iterator[None]:
    """Inside the block the blind baseline of membership guesses, and asks no forests."""

    def guess(records: Records, is_member: np.ndarray, *, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).random(len(is_member))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparations, "blind_scores", guess)
        yield
