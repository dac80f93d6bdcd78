"""What the most fragile records look like: as they are, changed so that the model was fooled, and the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....targets.data.data import Data
from ....targets.data.records import Records
from ....targets.form import Arrays
from ...measurement import Bools, Picture
from .distances import L2, LINF, SIMILARITY
from .similarity import is_image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
MOST_SHOWN = 6  # records of a finding
SIDE = 128  # pixels that are shown, at most: of larger pictures the means of tiles
SCALES = (1, 2, 5, 10, 20, 50, 100)  # of differences


def pictures_of(arrays: Arrays, fooled: Bools, ids: Sequence[int], data: Data) -> tuple[Picture, ...]:
    """Of records that fooled a model; nothing where they are no grey or colour images.

    Differences are drawn around grey, magnified alike for all, by the most that keeps them within black and white.

    Args:
        arrays: the evidence of a run: `ids`, `clean_correct`, `adversarial` and its distances.
        fooled: bool [n], by what is stored.
        ids: of those to be shown; the first `MOST_SHOWN` of which a change is stored count.
    """
    rows = {int(one): row for row, one in enumerate(arrays["ids"]) if fooled[row] and arrays["clean_correct"][row]}
    chosen = [rows[one] for one in ids if one in rows][:MOST_SHOWN]
    numbers = np.array(arrays["ids"])[chosen]
    records = data.non_members.take(torch.from_numpy(numbers))
    apart = {name: np.asarray(arrays[name])[chosen] for name in (LINF, L2, SIMILARITY) if name in arrays}
    return drawn(records, torch.from_numpy(np.asarray(arrays["adversarial"])[chosen]), numbers, apart, data)


def drawn(
    records: Records,
    changed: Tensor,
    ids: np.ndarray[Any, Any],
    apart: Arrays,
    data: Data,
    *,
    words: tuple[str, str] = ("as it is", "changed"),
) -> tuple[Picture, ...]:
    """The first `MOST_SHOWN` of records and of what was made of them; nothing where they are no grey or colour images.

    Args:
        changed: [n, *shape]; ids: int64 [n]; apart: their `distances`.
        words: below the two pictures.
    """
    shape = tuple(records.x.shape[1:])
    if not is_image(shape) or shape[0] not in (1, 3) or not len(records):
        return ()
    low, scale = (np.asarray(one.cpu(), dtype=np.float64) for one in (data.bounds.low, data.bounds.scale))
    before, after = (
        _shown((np.asarray(some[:MOST_SHOWN].cpu(), dtype=np.float64) - low) / scale) for some in (records.x, changed)
    )
    largest = float(np.abs(after - before).max())
    times = max([one for one in SCALES if one * largest <= 0.5 + 1e-3], default=1)
    difference = 0.5 + times * (after - before)
    return tuple(
        Picture(
            record=int(ids[at]),
            label=data.class_names[int(records.y[at])],
            clean=_bytes(before[at]),
            changed=_bytes(after[at]),
            difference=_bytes(difference[at]),
            magnified=times,
            linf=float(apart[LINF][at]),
            l2=float(apart[L2][at]),
            similarity=float(apart[SIMILARITY][at]),
            words=words,
        )
        for at in range(len(before))
    )


def _shown(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float64 [n, height, width, channels] in [0, 1], at most `SIDE` high and wide."""
    tile = -(-max(x.shape[2:]) // SIDE)
    height, width = (side // tile * tile for side in x.shape[2:])
    tiles = x[:, :, :height, :width].reshape(*x.shape[:2], height // tile, tile, width // tile, tile)
    means: np.ndarray[Any, Any] = tiles.mean((3, 5)).clip(0, 1)
    return means.transpose(0, 2, 3, 1)


def _bytes(x: np.ndarray[Any, Any]) -> Pixels:
    """uint8 [height, width, 3]."""
    pixels: Pixels = np.rint(255 * x.clip(0, 1)).astype(np.uint8)
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)
