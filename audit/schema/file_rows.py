"""The rows of audit.json that tell of a candidate's file: its footprint, twin, kernels, other runtimes and lineage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ...compression.lineage.words import NOTHING, StructureVerdict, Verdict
from .row import Amount, Count, Row, Share


class Macs(Row):
    """Multiply-accumulates of one record whose operands have these widths; 32: float32."""

    weight_bits: int = Field(ge=1, le=64)
    activation_bits: int = Field(ge=1, le=64)
    macs: Count


class Footprint(Row):
    """What a candidate weighs. All but latency and peak memory follow from its bytes.

    None: not counted. Of a .tflite file only its size is known, which stands for the payload too.
    """

    disk_bytes: int = Field(ge=1, description="of the deployed file")
    payload_bytes: int = Field(ge=1, description="of the packed weights; encode -> decode -> equal was checked")
    entropy_bytes: Count | None = Field(
        description="what no coding of single values can go below: their empirical entropy"
    )
    ratio: Amount = Field(description="the plain dense model's payload / this payload; 1 where none is known")
    parameters: Count | None
    nonzero_parameters: Count | None
    macs: Count | None = Field(description="multiply-accumulates for one record")
    macs_by_width: list[Macs] = Field(description="the same by the widths of their operands")
    energy_uj_modelled: Amount | None
    energy_memory_share: Share | None = Field(
        description="share of the modelled energy that is reading the weights, 0 to 1"
    )


class Certificate(Row):
    """Measured agreement of the twin with the deployed model; label agreement is a share of its n inputs."""

    inputs: str = Field(description="what it was measured on: clean, random and adversarial")
    n: int = Field(ge=1)
    label_agreement: Share
    max_logit_difference: Amount
    logit_difference_99: Amount = Field(description="not exceeded on 99 % of the inputs")


class Kernels(Row):
    """Operators that ONNX Runtime runs once it has optimised the file: what "int8" comes down to on this machine."""

    integer: Count = Field(description="products computed in integers")
    floating: Count = Field(description="products computed in floats")
    operators: dict[str, Count] = Field(description="these products, by type")


class Runtime(Row):
    """The same file in another runtime, compared with ONNX Runtime on n evaluation records."""

    name: str
    phrase: str = Field("", description="what sentences call it; else its name")
    n: int = Field(ge=1)
    label_agreement: Share = Field(description="share of the records")
    max_logit_difference: Amount
    logit_difference_99: Amount


class LayerRounding(Row):
    """One quantised weight of a finished file beside the dense weight that it is held against.

    Its codes are the nearest rounding of the dense weight, the other neighbour, or beyond both.
    """

    name: str
    dense_name: str = Field(description="of the weight in the dense model's file")
    shape: list[Count]
    weights: Count
    bits: int = Field(ge=1, le=64, description="of a weight; 32, 16: it is held in float")
    levels: str = Field(description="e.g. '255 integers', 'code book of 16 values', 'float16'")
    scale_kind: Literal["per tensor", "per channel", "blocked", "none"]
    scale_words: str = Field(description="what the scale was made from, in words")
    nearest: Count
    other_neighbour: Count
    beyond: Count
    beyond_zero: Count = Field(description="of those beyond: weights that are exactly zero, as pruned ones are")
    worst_steps: Amount = Field(description="the furthest that a code is from its weight, in steps of the scale")
    biases: Count
    bias_off: Count = Field(description="of the biases: more than half a step from the dense model's")
    misscaled: Count = Field(description="of those beyond: weights that their scale cuts off or flattens")

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.nearest + self.other_neighbour + self.beyond != self.weights:
            raise ValueError(f"nearest, other_neighbour and beyond are not the {self.weights} weights together")
        if max(self.beyond_zero, self.misscaled) > self.beyond or self.bias_off > self.biases:
            raise ValueError("beyond_zero and misscaled count some of those beyond, and bias_off some of the biases")
        return self


class GraphDifference(Row):
    """Operators of a file, or of its dense model, without a counterpart in the other."""

    nodes: list[str] = Field(description="operator and name of each")
    words: str = Field(description="what is different: a predicate whose subject are the nodes")
    selecting: bool = Field(description="an operator that compares, rounds or chooses is among them")


class ActivationRange(Row):
    """What a quantised activation's codes can hold, and what it is in the dense model on the attacker's records."""

    tensor: str
    dense_tensor: str
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    dense_low: float = Field(allow_inf_nan=False)
    dense_high: float = Field(allow_inf_nan=False)
    clipped: Share = Field(description="share of the dense model's activations beyond the range")
    wider: Amount = Field(description="width of the range / width of the dense model's; 0: that is a point")


class Lineage(Row):
    """Whether a finished file is the dense model, compressed as declared: weights, operators, ranges of activations."""

    verdict: Verdict
    sentences: list[str]
    layers: list[LayerRounding] = Field(description="one row per weight with a counterpart: how it was rounded")
    unmatched: list[str] = Field([], description="weights of either file that have no counterpart in the other")
    reason: str | None = Field(None, description="why the weights are not comparable; None where they are")
    found: Share | None = Field(
        None, description="of the dense model's weights: those that a weight of the file resembles; None: not known"
    )
    structure: StructureVerdict = Field(
        "not compared", description="of the graph: whether it is the dense model's, operator for operator"
    )
    differences: list[GraphDifference] = Field([], description="where the graphs differ: what is left over in either")
    ranges: list[ActivationRange] = Field([], description="of the quantised activations that could be compared")

    @property
    def foreign(self) -> bool:
        """Whether next to nothing of the dense model is in the file."""
        return self.found is not None and self.found < NOTHING

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.verdict == "confirmed" and self.structure == "differs":
            raise ValueError("a file whose graph is not the dense model's is not confirmed")
        if self.structure == "differs" and not self.differences:
            raise ValueError("a structure that differs differs in something")
        return self
