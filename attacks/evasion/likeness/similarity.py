"""How alike two images look: the structural similarity index, SSIM.

Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity",
doi:10.1109/TIP.2003.819861, with its window (11 x 11, Gaussian of 1.5 pixels) and constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

SIDE, SIGMA = 11, 1.5  # of the window, in pixels
LEAST_SIDE = 8  # of an image, in pixels
C1, C2 = 0.01**2, 0.03**2  # keep dark and flat places from dividing by next to nothing


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether records of this shape are channels of pictures that are large enough to be compared."""
    return len(shape) == 3 and min(shape[1:]) >= LEAST_SIDE


def similarity(x: Floats, y: Floats) -> Floats:
    """SSIM of pairs of images, float64 [n], each at most 1 (the same image): the mean over places and channels.

    The window lies wholly inside. Of images with a side below 11 it is cut to the largest odd size that does; moments
    are those of a population, as in the paper.

    Args:
        x, y: float64 [n, channels, height, width] in [0, 1], both sides at least 8.
    """
    size = min(SIDE, *(side - 1 + side % 2 for side in x.shape[2:]))
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / SIGMA) ** 2)
    weights /= weights.sum()
    # sums and differences say all that x and y do, in four passes instead of five
    total, apart = _means(x + y, weights), _means(x - y, weights)
    total_of_squares, apart_of_squares = _means((x + y) ** 2, weights), _means((x - y) ** 2, weights)
    squares, product = (total**2 + apart**2) / 2, (total**2 - apart**2) / 4  # of the means
    variances = (total_of_squares + apart_of_squares) / 2 - squares
    covariance = (total_of_squares - apart_of_squares) / 4 - product
    found = (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    means: Floats = found.mean((1, 2, 3))
    return means


def _means(images: Floats, weights: Floats) -> Floats:
    """The weighted mean around each place where the window lies wholly inside, along both sides."""
    for axis in (2, 3):
        places = images.shape[axis] - len(weights) + 1
        moved = np.moveaxis(images, axis, 0)
        summed = weights[0] * moved[:places]
        for step in range(1, len(weights)):  # one after the other: the same sum on any number of threads
            summed += weights[step] * moved[step : step + places]
        images = np.moveaxis(summed, 0, axis)
    return images
