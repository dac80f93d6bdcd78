"""Pictures of records as the page shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...attacks.measurement import Picture
from ..schema import wording
from ..schema.quantity_rows import Pattern


@dataclass(frozen=True)
class Shown:
    """One record: the three pictures as `data:` addresses, what each is, and a line on how far apart they are."""

    title: str
    images: tuple[tuple[str, str], ...]
    line: str


def shown(pictures: Mapping[str, Sequence[Picture]]) -> dict[str, list[Shown]]:
    """By the finding's id."""
    return {finding: [_shown(one) for one in some] for finding, some in pictures.items()}


def _shown(one: Picture) -> Shown:
    times = f"difference × {one.magnified}"
    images = ((one.clean, one.words[0]), (one.changed, one.words[1]), (one.difference, times))
    return Shown(
        f"Record {one.record}, class {wording.label(one.label, 40)}",
        tuple((_address(pixels), words) for pixels, words in images),
        f"L-inf {wording.number(one.linf)}, L2 {wording.number(one.l2)}, SSIM {wording.number(one.similarity)}",
    )


def pattern(one: Pattern) -> str:
    """A computed picture as a `data:` address."""
    import numpy as np

    grey = np.array(one.rows, dtype=np.uint8)
    return _address(np.repeat(grey[:, :, None], 3, axis=2))


def _address(pixels: Any) -> str:
    """A PNG, the same bytes for the same pixels uint8 [height, width, 3]."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": "crushproof"})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
