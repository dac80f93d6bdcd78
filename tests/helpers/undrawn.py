"""Reports without pictures, for tests that look at something else: to draw them takes longer than to judge a model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crushproof.audit.report import charts, dot_charts

EMPTY = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside the block what a chart shows is computed and laid out, and its picture is an empty one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (charts, dot_charts):
            empty = "data:image/svg+xml;base64," + base64.b64encode(EMPTY).decode("ascii")
            patch.setattr(module, "to_data_uri", lambda figure, empty=empty: empty)
        yield
