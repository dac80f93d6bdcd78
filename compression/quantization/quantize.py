"""Quantisation: weights in few bits, activations in 8, after training or with it in the loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...targets.data.records import Bounds, Records
from ...targets.errors import NotApplicable
from ...targets.model import device_of
from ...targets.seeds import derive, generator
from ...targets.steps import pulse
from ...training.loop import Training
from ...training.privacy import Noised
from ..layers.edit import PLAIN_LAYERS, noise, replace_layers
from ..recipe import RECIPES, Promise, Recipe
from .activation_grids import quantize_additions
from .adaptive_rounding import adaptive_codes, layer_calls
from .calibration import Calibration, input_ranges, watch
from .private_ranges import private_ranges
from .quantization_aware import train_quantized
from .quantized_layer import Activations, QuantizedLayer, share_codes
from .quantized_recurrent import QuantizedRecurrent
from .stand_ins import RECURRENT, prepare, stand_in
from .weight_codes import SIXTEEN_BITS, Bits, Granularity, Number, WeightFormat, agreed, clip_weights

FEW = 5  # records of noise that show how a model works


@RECIPES.register
class Quantize(Recipe):
    """Weights in few bits, and activations in 8 (Jacob et al. 2018, arXiv:1712.05877).

    Attention is opened and batch norms are folded first. Plain Linear, Conv1d, Conv2d and Embedding layers and LSTM and
    GRU are quantised (the latter three by their weights alone); layers of other types stay in float.
    """

    family: ClassVar[str] = "Quantization"
    is_last: ClassVar[bool] = True
    keeps_activations: ClassVar[bool] = True
    kind: Literal["quantize"] = "quantize"
    number: Number = Field(
        "integer",
        description="how a weight is written: integer code x scale; fixed-point, whose scale is a power of two; binary "
        "(-1, 1) and ternary (-1, 0, 1) x scale; float16 and bfloat16, which ask for float activations",
    )
    weight_bits: Bits = Field(8, description="bits of a weight; integer and fixed-point only")
    granularity: Granularity = Field(
        "channel", description="the weights that share a scale: all of a layer, an output channel's, or a group's"
    )
    group_size: int = Field(32, ge=8, le=1024, description="weights of a group, along an output channel's weights")
    activations: Literal["static", "dynamic", "float"] = Field(
        "static",
        description="each layer's input: static, 8 bits over a calibrated range; dynamic, 8 bits over the range "
        "of each record, which needs no calibration; float, as they are (weights only)",
    )
    rounding: Literal["nearest", "stochastic", "adaptive", "flipped"] = Field(
        "nearest",
        description="of weights; stochastic: right on average and random per draw; adaptive: up or down as keeps each "
        "layer's output on the calibration inputs best (AdaRound); flipped: the same, but away from the nearest code "
        "where rounding errs most, which undoes what was hidden in nearest rounding (EFRAP, Li et al. 2024, "
        "arXiv:2405.12725). Both are of linear and convolutional layers: others, LSTM and GRU among them, round to "
        "nearest, and keep what was hidden there",
    )
    rounding_seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="fixes the draw of stochastic rounding; None: it follows from the seed of the recipe",
    )
    rounding_steps: int = Field(300, ge=1, le=100_000, description="of adaptive and flipped rounding, per layer")
    weight_clip: float | None = Field(
        None,
        gt=0,
        le=100,
        description="each layer's weights are first clipped at this multiple of the standard deviation of those that "
        "are not 0: scales get smaller, so that a flipped bit moves a weight less (Stutz et al. 2021, "
        "arXiv:2006.13977). None: they are not",
    )
    calibration: Calibration = Field(
        "min-max",
        description="of static activations: all of the range that is seen; without `percentile`'s tails; or clipped "
        "where the distribution of the values changes least (entropy, as in TensorRT)",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="share of the values, in %, that percentile calibration keeps"
    )
    calibration_inputs: Literal["records", "noise"] = Field(
        "records",
        description="what activation ranges, adaptive and flipped rounding are measured on: training records, or noise "
        "within the bounds, which no record decided (keeps a differentially private model's epsilon)",
    )
    calibration_records: int = Field(
        256, ge=1, le=10_000_000, description="records (or noise inputs) that are measured on"
    )
    calibration_noise: float | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="noise multiplier of static ranges that are differentially private: counted in the epsilon that "
        "the dense model's training promises (more calibration_records bear more noise). None: none, and they void it",
    )
    keep_ends_8bit: bool = Field(
        True, description="first and last layer keep 8-bit weights when the others have fewer, as is standard practice"
    )
    fine_tune: Training | None = Field(
        None,
        description="quantisation-aware training on the model's own training records: weights and activations are "
        "rounded in every forward pass. None: quantised after training",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Quantize:
        problem = self._contradiction()
        if problem is not None:
            raise ValueError(problem)
        return self

    def _contradiction(self) -> str | None:
        """Why two of the fields cannot go together, in a sentence."""
        if self.number in SIXTEEN_BITS and self.activations != "float":
            return f"{self.number} weights are computed in floating point: set activations: float"
        if self.number not in ("integer", "fixed-point") and self.rounding != "nearest":
            return f"{self.rounding} rounding chooses between two neighbours on a grid, which {self.number} is not"
        if self.granularity == "group" and self.number not in ("integer", "binary", "ternary"):
            return f"groups share a scale, and {self.number} has none of its own: set granularity: channel"
        if self.number not in ("integer", "fixed-point") and self.weight_clip is not None:
            return f"weight_clip makes the scale of a grid smaller, and {self.number} weights have no such grid"
        if self.fine_tune is not None and self.rounding != "nearest":
            return f"training decides the weights itself and rounds to nearest: leave out {self.rounding} rounding"
        private = self.fine_tune is not None and self.fine_tune.private is not None
        plain = self.activations == "static" and self.calibration == "min-max" and not self.learns_rounding
        if self.calibration_noise is not None and not (plain and self.calibration_inputs == "records"):
            return "calibration_noise is for static activations, min-max, on records, rounded to nearest or at random"
        return "quantisation-aware training cannot be private: leave out fine_tune.private" if private else None

    @property
    def measures(self) -> bool:
        """Whether calibration inputs are run through the model."""
        return self.activations == "static" or self.learns_rounding

    @property
    def touches_records(self) -> bool:
        return (self.measures and self.calibration_inputs == "records") or self.fine_tune is not None

    def spends(self, records: int) -> tuple[Noised, ...] | None:
        if self.calibration_noise is None or self.fine_tune is not None:
            return super().spends(records)
        rate = min(1.0, self.calibration_records / max(1, records))
        return (Noised("calibration ranges", self.calibration_noise, rate, 1),)

    @property
    def trains(self) -> bool:
        return self.fine_tune is not None or self.learns_rounding

    @property
    def learns_rounding(self) -> bool:
        """Whether up or down is decided on what the layers compute from calibration inputs."""
        return self.rounding in ("adaptive", "flipped")

    @property
    def phrase(self) -> str:
        return ", ".join([f"{self._weight_phrase} weights{self._group_phrase}", *self.other_phrases])

    @property
    def promise(self) -> Promise:
        if self.fine_tune is not None or self.weight_clip is not None:
            return "shapes"
        return "nearest" if self.rounding == "nearest" else "neighbour"

    @property
    def bits(self) -> int:
        few = {"binary": 1, "ternary": 2, "float16": 16, "bfloat16": 16}
        return few.get(self.number, self.weight_bits)

    @property
    def _weight_phrase(self) -> str:
        few = {"integer": f"{self.weight_bits}-bit", "fixed-point": f"{self.weight_bits}-bit fixed-point"}
        return few.get(self.number, self.number)

    @property
    def _group_phrase(self) -> str:
        spans = {"tensor": " with one scale per layer", "group": f" in groups of {self.group_size}"}
        return "" if self.number in SIXTEEN_BITS else spans.get(self.granularity, "")

    @property
    def other_phrases(self) -> list[str]:
        """Everything in `phrase` but the weights' format."""
        words = [] if self.rounding == "nearest" else [f"{self.rounding} rounding"]
        if self.weight_clip is not None:
            words.append(f"clipped at {self.weight_clip:g} standard deviations")
        if self.activations == "static":
            methods = {
                "min-max": "",
                "percentile": f" ({self.percentile:g} % of the values)",
                "entropy": " (entropy)",
            }
            words.append(f"8-bit activations{methods[self.calibration]}")
        else:
            words.append({"dynamic": "8-bit activations (dynamic)", "float": "float activations"}[self.activations])
        if self.measures and self.calibration_inputs == "noise":
            words.append("calibrated on noise")
        if self.calibration_noise is not None:
            words.append(f"ranges under noise ({self.calibration_noise:g})")
        if self.fine_tune is not None:
            words.append(f"trained quantised for {self.fine_tune.epochs} epochs")
        return words

    def apply(self, module: nn.Module, records: Records, bounds: Bounds, *, seed: int) -> nn.Module:
        prepared, layers = prepare(module, records, bounds, seed)
        usual = WeightFormat(self.number, self.weight_bits, self.granularity, self.group_size)
        formats = self.with_ends([usual] * len(layers))
        if usual not in formats:
            raise NotApplicable(
                f"The model has {len(layers)} layers to quantize, first and last, and these keep 8 bits: nothing would "
                f"become {self._weight_phrase}. Set keep_ends_8bit: false to quantize them too."
            )
        return self.with_formats(prepared, layers, formats, records, bounds, seed)

    def with_ends(self, formats: Sequence[WeightFormat]) -> list[WeightFormat]:
        """`formats`, one per layer, the first and the last widened to 8 bits where that is asked for."""
        formats = list(formats)
        for end in (0, -1) if self.keep_ends_8bit else ():
            if formats[end].width < 8:
                number: Number = "fixed-point" if formats[end].number == "fixed-point" else "integer"
                formats[end] = WeightFormat(number, 8, self.granularity, self.group_size)
        return formats

    def with_formats(
        self,
        prepared: nn.Module,
        layers: Sequence[nn.Module],
        formats: Sequence[WeightFormat],
        records: Records,
        bounds: Bounds,
        seed: int,
    ) -> nn.Module:
        """The quantised module, each of `layers` in its own format; `prepared` (see `prepare`) is used up.

        Layers that share a weight share its codes, in the widest of their formats.
        """
        problem = self._contradiction()  # a copy with other fields was never validated
        if problem is not None:
            raise NotApplicable(f"This quantize recipe contradicts itself: {problem}.")
        if not len(records) and self.touches_records:
            raise NotApplicable(
                "Quantization here calibrates or trains on records, and there are none: set calibration_inputs: noise, "
                "or activations: dynamic or float, and no fine_tune."
            )
        if self.weight_clip is not None:
            clip_weights(layers, self.weight_clip)
        x = self.calibration_set(prepared, records, bounds, seed) if self.measures else None
        example = noise(prepared, records, bounds, FEW, seed)
        activations = self._activations(prepared, layers, x, example, bounds, records, seed)
        paths = {layer: path for path, layer in prepared.named_modules()}
        formats = agreed(layers, formats)
        if self.fine_tune is not None:
            quantized = train_quantized(
                prepared, layers, formats, activations, records, bounds, self.fine_tune, seed=derive(seed, "fine-tune")
            )
        else:
            # Learnt rounding compares with the float layers, which `prepared` then goes on having.
            quantized = copy.deepcopy(prepared) if self.learns_rounding else prepared
        drawn = seed if self.rounding_seed is None else self.rounding_seed
        first: dict[int, QuantizedLayer] = {}  # by the id of a weight, the layer that rounded it first
        for position, (original, format, activation) in enumerate(zip(layers, formats, activations, strict=True)):
            layer = quantized.get_submodule(paths[original])
            if isinstance(layer, QuantizedLayer | QuantizedRecurrent):  # by training
                continue
            draw = generator(drawn, "rounding", position)
            known = None if isinstance(layer, RECURRENT) else first.get(id(original.weight))
            codes = None if known is None or known.weight_scale is None else (known.codes, known.weight_scale)
            if codes is None and self.learns_rounding and isinstance(layer, PLAIN_LAYERS):
                pulse("layer", position, len(layers))
                assert x is not None
                wanted = [original(entering).detach() for entering in layer_calls(prepared, original, x)]
                entering = layer_calls(quantized, layer, x)  # of the model quantised so far
                steps, flipped = self.rounding_steps, self.rounding == "flipped"
                codes = adaptive_codes(
                    layer, format, activation, entering, wanted, steps=steps, generator=draw, flipped=flipped
                )
            rounded = stand_in(
                layer, format, "stochastic" if self.rounding == "stochastic" else "nearest", draw, activation, codes
            )
            if isinstance(rounded, QuantizedLayer):
                share_codes(rounded, first.setdefault(id(original.weight), rounded))
            quantized = replace_layers(quantized, {layer: rounded})
        if self.activations == "static":
            assert x is not None
            quantized = quantize_additions(quantized, x, bounds)
        return quantized.eval()

    def _activations(
        self,
        prepared: nn.Module,
        layers: Sequence[nn.Module],
        x: Tensor | None,
        example: Tensor,
        bounds: Bounds,
        records: Records,
        seed: int,
    ) -> list[Activations]:
        """What each layer does with its input; embeddings and recurrent layers leave it as it is.

        A range of each record needs records: a layer whose input is the same for all (learned positions) has none.
        """
        rounding = [layer for layer in layers if not isinstance(layer, (nn.Embedding, *RECURRENT))]
        choices: dict[nn.Module, Activations] = {}
        if self.activations == "static":
            assert x is not None
            if self.calibration_noise is None:
                ranges = input_ranges(prepared, rounding, x, bounds, self.calibration, self.percentile)
            else:
                (cost,) = self.spends(len(records)) or ()
                ranges = private_ranges(prepared, rounding, records.x, x, bounds, cost, derive(seed, "private ranges"))
            choices = dict(zip(rounding, ranges, strict=True))
        elif self.activations == "dynamic":
            apart = dict.fromkeys(range(len(rounding)), True)

            def see(position: int, entering: Tensor) -> None:
                apart[position] &= entering.dim() > 1 and len(entering) == len(example)

            watch(prepared, rounding, example, see)
            choices = {layer: "dynamic" for position, layer in enumerate(rounding) if apart[position]}
        return [choices.get(layer) for layer in layers]

    def calibration_set(self, module: nn.Module, records: Records, bounds: Bounds, seed: int) -> Tensor:
        """float32 [at most calibration_records, *shape] on the module's device; no records under calibration_noise."""
        if self.calibration_inputs == "noise" or self.calibration_noise is not None:
            return noise(module, records, bounds, self.calibration_records, derive(seed, "calibration"))
        order = torch.randperm(len(records), generator=generator(seed, "calibration"))
        return records.x[order[: self.calibration_records].to(records.x.device)].to(device_of(module))
