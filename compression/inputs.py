"""What a file does to its inputs before the model sees them: coarser values, a smoothing filter, noise."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.seeds import derive, generator
from ..targets.technique import Technique
from ..targets.twin.rounding import rounded
from .layers.edit import rebuildable
from .recipe import RECIPES
from .wrapping import Wrapper, WrappingRecipe

Filter = Literal["none", "mean", "median"]
LARGEST = 2**24  # numbers of noise in a file, 64 MB


class InputTransformation(Technique):
    """What is done to an input, smoothing first: fields of the recipe and of the defense (feature squeezing, Xu et al.
    2018, arXiv:1704.01155).
    """

    levels: int | None = Field(
        None, ge=2, le=65_536, description="values that an input can take within its bounds; None: as they come"
    )
    smoothing: Filter = Field("none", description="of images: each value the mean or the median of those around it")
    window: Literal[3, 5, 7] = Field(3, description="pixels on a side of what is smoothed over")

    @model_validator(mode="after")
    def _something(self) -> InputTransformation:
        if self.levels is None and self.smoothing == "none":
            raise ValueError("say what is done to inputs: `levels`, `smoothing`, or both")
        return self

    @property
    def transformed_words(self) -> str:
        smooth = "" if self.smoothing == "none" else f"{self.smoothing} over {self.window} x {self.window} pixels"
        return ", ".join(filter(None, [smooth, "" if self.levels is None else f"{self.levels} levels"]))


@rebuildable("levels", "smoothing", "window", "shape")
class TransformedInputs(Wrapper):
    """A model that smooths and rounds its inputs first. Gradients go straight through the rounding (BPDA, Athalye et
    al. 2018, arXiv:1802.00420) unless the true ones are asked for, which are zero.

    Args:
        shape: of the buffers `low` and `scale`, bounds of an input, broadcastable to a record.
    """

    low: Tensor
    scale: Tensor

    def __init__(self, levels: int | None, smoothing: Filter, window: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, self.smoothing, self.window, self.shape = levels, smoothing, window, shape
        self.straight_through = True
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.smoothing != "none":
            x = self._smooth(x)
        if self.levels is not None:
            steps = (x - self.low) / self.scale * (self.levels - 1)
            whole = rounded(steps, steps.round(), self.straight_through)
            x = self.low + self.scale * (whole / (self.levels - 1))
        logits: Tensor = self.inner(x)
        return logits

    def true_gradients(self) -> None:
        self.straight_through = False

    def _smooth(self, x: Tensor) -> Tensor:
        side = self.window // 2
        if self.smoothing == "mean":
            return F.avg_pool2d(x, self.window, stride=1, padding=side, count_include_pad=False)
        rows = torch.cat([*[x[:, :, :1]] * side, x, *[x[:, :, -1:]] * side], 2)  # borders repeated
        padded = torch.cat([*[rows[..., :1]] * side, rows, *[rows[..., -1:]] * side], 3)
        places = [slice(at, at - 2 * side or None) for at in range(self.window)]
        shifted = [padded[:, :, down, right] for down in places for right in places]
        half = len(shifted) // 2 + 1
        return torch.topk(torch.stack(shifted, -1), half, dim=-1).values[..., -1]


@RECIPES.register
class TransformInputs(InputTransformation, WrappingRecipe):
    """Another recipe, and before it, in the same file, inputs smoothed or rounded to few values."""

    kind: Literal["transform-inputs"] = "transform-inputs"

    @property
    def wrapped_words(self) -> str:
        return f"inputs: {self.transformed_words}"

    def wrapper(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Wrapper:
        check_values(module, "rounded or smoothed")
        if self.smoothing != "none" and (records.x.dim() != 4 or min(records.x.shape[2:]) < 2):
            raise NotApplicable(
                f"Smoothing is for images [channels, height, width]; a record here is {list(records.x.shape[1:])}."
            )
        made = TransformedInputs(self.levels, self.smoothing, self.window, tuple(bounds.scale.shape))
        made.low.copy_(bounds.low)
        made.scale.copy_(bounds.scale)
        return made


class InputNoise(Technique):
    """How noisy copies of an input are answered: fields of the recipe and of the defense (randomised smoothing, Cohen
    et al. 2019, arXiv:1902.02918).
    """

    sigma: PositiveFloat = Field(0.1, le=10, description="standard deviation of the noise, in [0, 1] units")
    samples: int = Field(16, ge=1, le=256, description="noisy copies of an input, whose probabilities are averaged")

    @property
    def noisy_words(self) -> str:
        return f"Gaussian noise of {self.sigma:g}, {self.samples} copies averaged"


@rebuildable("samples", "shape")
class NoisyInputs(Wrapper):
    """A model that answers with the logarithm of its mean probabilities on copies of an input, each with noise that is
    stored in the file: float32 [n, classes] of x [n, *shape].

    Args:
        shape: of a record.
    """

    noise: Tensor

    def __init__(self, samples: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.samples, self.shape = samples, shape
        self.register_buffer("noise", torch.zeros(samples, *shape))

    def forward(self, x: Tensor) -> Tensor:
        # One node for each copy, of the record's shape: the exporter needs it, and loses it over a reshape.
        logits: Tensor = self.inner(torch.cat([x + one for one in self.noise.unbind()]))
        every = torch.log_softmax(logits, 1).view(self.samples, -1, logits.shape[1])
        return torch.logsumexp(every, 0) - math.log(self.samples)


@RECIPES.register
class NoiseInputs(InputNoise, WrappingRecipe):
    """Another recipe, and before it, in the same file, noise: the model answers with its mean over noisy copies.

    The noise is drawn once and stored, so the file answers the same each time; it grows by `samples` records.
    """

    kind: Literal["noise-inputs"] = "noise-inputs"
    noise_seed: int | None = Field(
        None, ge=0, lt=2**62, description="fixes the draw; None: it follows from the seed of the recipe"
    )

    @property
    def wrapped_words(self) -> str:
        return f"inputs: {self.noisy_words}"

    def wrapper(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> Wrapper:
        check_values(module, "given noise")
        if records.y.is_floating_point():
            raise NotApplicable("The model predicts values: there are no probabilities of classes to average.")
        made = NoisyInputs(self.samples, tuple(records.x.shape[1:]))
        if made.noise.numel() > LARGEST:
            raise NotApplicable(
                f"{self.samples} records of noise are {made.noise.numel() * 4 / 1e6:,.0f} MB in the file; at most "
                f"{LARGEST * 4 / 1e6:.0f} MB are written. Ask for fewer samples."
            )
        draw = generator(derive(seed, "noise") if self.noise_seed is None else self.noise_seed, "input noise")
        noise = torch.randn(made.noise.shape, generator=draw) * (self.sigma * bounds.scale.cpu())
        for fixed in (bounds.held, bounds.whole):  # one-hot blocks and whole numbers are no pixels
            noise = noise if fixed is None else noise.masked_fill(fixed.cpu(), 0.0)
        made.noise.copy_(noise)
        return made


def check_values(module: nn.Module, done: str) -> None:
    """Raises NotApplicable where inputs are numbers of tokens."""
    if any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in module.modules()):
        raise NotApplicable(f"The model looks its inputs up by number (an embedding): they cannot be {done}.")
