"""The sections of a plan: its data, its dense model, its candidates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ...targets.data.declared import STRETCH, Declared
from ...targets.technique import Technique
from .settings import Settings, fault, technique_like
from .transfer import TRANSFER, OtherTask

Column = Annotated[int, Field(ge=0, lt=10**9)] | str  # a position or a name
Value = Annotated[float, Field(ge=-1e15, le=1e15)]  # squares of it are numbers yet
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class DigitsData(Settings):
    """scikit-learn's digits in seeded halves; needs no file."""

    kind: Literal["digits"]
    transfer: OtherTask = Field(None, description=TRANSFER)


class DeclaredData(Settings):
    """What the values of a record are, where they are no plain numbers; columns by name or position from 0."""

    immutable: tuple[Column, ...] = Field((), description="columns that no attacker can change")
    categorical: dict[Column, Literal["one-hot", "codes"] | tuple[str, ...]] = Field(
        {},
        description="columns of categories: one-hot (of CSV, written out as 0 and 1), their names in the model's "
        "order, or codes (whole numbers that reach the model as they are)",
    )
    one_hot: tuple[tuple[Column, ...], ...] = Field(
        (), description="blocks of 0/1 columns with a single 1 each, such as [[3, 4, 5], [6-14]]"
    )
    integer: Literal[True] | tuple[Column, ...] = Field(
        (), description="columns of whole numbers, as which they are attacked; true: all, or every value of an image"
    )
    tokens: bool = Field(False, description="whether all values are ids that the model looks up")
    forget: Any = Field(
        None,
        description="training records that the model was to forget: a list of positions from 0, or a file of positions "
        "or of a mask (.npy, or text with one position a line), seen from the plan's folder",
    )
    transfer: OtherTask = Field(None, description=TRANSFER)

    @property
    def declared(self) -> Declared:
        return Declared(self.immutable, self.categorical, self.one_hot, self.integer, self.tokens)

    @field_validator("immutable", "integer", mode="before")
    @classmethod
    def _columns(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "integer" and isinstance(value, bool):
            return value or ()
        return _columns(value)

    @field_validator("forget")
    @classmethod
    def _forget(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple) and all(type(one) in (int, bool) for one in value)
        if value is None or (isinstance(value, str) and value) or (listed and value):
            return value
        raise fault("must be a list of positions among the training records, or the name of a file of them")

    @field_validator("one_hot", mode="before")
    @classmethod
    def _blocks(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise fault("must be a list of lists, one for each block: [[3, 4, 5], [6-14]]")
        if value and not any(isinstance(block, list | tuple) for block in value):  # the brackets of a block left out
            stretches = all(isinstance(block, str) and STRETCH.fullmatch(block) for block in value)
            value = [[block] for block in value] if stretches else [value]
        return tuple(_columns(block) for block in value)

    @field_validator("categorical", mode="before")
    @classmethod
    def _categories(cls, value: Any) -> Any:
        """A bare list of columns stands for "one-hot" of each."""
        if isinstance(value, list | tuple):
            value = dict.fromkeys(_columns(value), "one-hot")
        if not isinstance(value, Mapping):
            raise fault("must be a mapping such as {city: one-hot, size: [small, large], plan: codes}")
        kinds: dict[Any, Any] = {}
        for column, kind in value.items():
            if not isinstance(kind, list | tuple) and kind not in (None, "one-hot", "codes"):
                raise fault("must be one-hot, codes, or a list of the categories in the model's order", str(column))
            given = tuple(map(str, kind)) if isinstance(kind, list | tuple) else kind
            kinds[column] = given or "one-hot"
        return kinds


def _columns(value: Any) -> tuple[int | str, ...]:
    """One column may stand for a list of one."""
    columns = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(column, int | str) and not isinstance(column, bool) for column in columns):
        raise fault("must be a list of columns, each by its name or its position counted from 0")
    return tuple(columns)


def _bounds(value: Any) -> Any:
    """[low, high] for all, or a mapping of columns to such pairs."""
    pairs = value.items() if isinstance(value, Mapping) else [(None, value)] if value is not None else []
    for column, pair in pairs:
        numbers = isinstance(pair, list | tuple) and all(
            isinstance(end, int | float) and not isinstance(end, bool) for end in pair
        )
        if not numbers or len(pair) != 2 or not pair[0] < pair[1]:
            at = () if column is None else (str(column),)
            raise fault("must be the smallest and the largest value of an input: [0, 1], or {age: [0, 120]}", *at)
    return value


Ends = tuple[Value, Value]
DataBounds = Annotated[Ends | dict[Column, Ends] | None, BeforeValidator(_bounds)]


class NpzData(DeclaredData):
    """An .npz with x_train, y_train (the members), x_test, y_test and what else docs/inputs.md lists."""

    kind: Literal["npz"]
    path: str = Field(description="of the file, seen from the plan's folder")
    bounds: DataBounds = Field(
        None, description="smallest and largest value of an input; of a table also by column: {age: [17, 90]}"
    )
    class_names: tuple[str, ...] | None = Field(None, description="default: as in the file, else the labels")
    task: Literal["classification", "regression"] = Field("classification", description="whether y are classes")
    name: str | None = Field(None, description="what the report calls the data; default: the file's name")


class CsvData(DeclaredData):
    """Two CSV files with a header line: one column of labels, the others numbers or categories."""

    kind: Literal["csv"]
    train_path: str | None = Field(
        None, description="what the model was trained on; without it no attack on that is run"
    )
    test_path: str = Field(description="records the model has never seen")
    label: str = Field(description="name of the column of labels")
    drop: tuple[str, ...] = Field((), description="columns that are left out, such as names and ids")
    bounds: DataBounds = Field(
        None, description="smallest and largest value of an input; of a table also by column: {age: [17, 90]}"
    )
    class_names: tuple[str, ...] | None = Field(None, description="default: the labels")
    task: Literal["classification", "regression"] = Field("classification", description="whether labels are classes")
    name: str | None = Field(None, description="what the report calls the data; default: the file's name")


class MemoryData(Settings):
    """Arrays handed over from Python (`crushproof.audit_model`); a plan file cannot ask for it."""

    kind: Literal["memory"]
    name: str


DataPlan = Annotated[DigitsData | NpzData | CsvData | MemoryData, Field(discriminator="kind")]


class InterfacePlan(Settings):
    """What a finished file takes and answers. What is left out is found by looking and trying; the report says how."""

    layout: Literal["channels-first", "channels-last", "flat"] | None = Field(None, description="of the file's input")
    channels: Literal["rgb", "bgr"] | None = Field(None, description="the order of colours that the file takes")
    mean: tuple[Value, ...] | None = Field(None, description="per channel, in [0, 1] units; subtracted")
    std: tuple[Value, ...] | None = Field(None, description="per channel, in [0, 1] units; divided by after `mean`")
    units: Literal["as given", "0..1", "0..255", "-1..1"] | None = Field(None, description="what an input counts in")
    outputs: Literal["logits", "probabilities", "log-probabilities"] | None = Field(None, description="of the file")
    labels: tuple[Annotated[int, Field(ge=0, lt=10**6)], ...] | None = Field(
        None, description="for each class of the data, the file's output for it"
    )
    output: str | None = Field(None, description="name of the file's output that holds the classes, of several")
    hours: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="of processor time that asking the file may take; default: 1, and 1.5 per MB",
    )

    @model_validator(mode="after")
    def _normalised(self) -> InterfacePlan:
        if (self.mean is None) != (self.std is None):
            raise fault("mean and std come together: an input is (value - mean) / std")
        return self


class ModelPlan(Settings):
    """The dense model: how it is built, and its weights or how it is trained; or a finished ONNX file."""

    architecture: str | None = Field(
        None, description="module:function that returns the untrained model, a torch.nn.Module"
    )
    file: str | None = Field(None, description="in place of architecture and weights: the dense model as an ONNX file")
    interface: InterfacePlan = Field(InterfacePlan(), description="of `file`")
    parameters: dict[str, Any] = Field({}, description="keyword arguments of that function")
    weights: str | None = Field(None, description="a .safetensors (or .pt) file; without it the audit trains the model")
    training_function: str | None = Field(
        None, description="module:function(module, x, y, seed) -> module; default: the built-in trainer"
    )
    training: dict[str, Any] = Field({}, description="hyper-parameters of the built-in trainer")

    @field_validator("architecture", "training_function")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and not FUNCTION.fullmatch(value):
            raise fault(f"{value!r} must name a function as module:function, for example my_model:build")
        return value

    @model_validator(mode="after")
    def _one_way_to_build(self) -> ModelPlan:
        if (self.architecture is None) == (self.file is None):
            raise fault("name either architecture (module:function) or file (an ONNX file) of the dense model")
        if self.file is not None and self.weights is not None:
            raise fault("an ONNX file holds its weights: leave this out", "weights")
        if self.file is None and self.interface != InterfacePlan():
            raise fault("describes an ONNX file, and none is named under file", "interface")
        return self

    @model_validator(mode="after")
    def _one_way_to_train(self) -> ModelPlan:
        if self.training_function is not None and self.training:
            raise fault(
                "these are settings of the built-in trainer, which training_function replaces: keep one of the two",
                "training",
            )
        return self


class CandidatePlan(Settings):
    """One compressed model: a recipe, perhaps hardened, or a finished file. A bare recipe may stand in its place."""

    recipe: Any = Field(
        None,
        description="a short word such as int8, a kind, or a mapping with kind and its fields; of a file: how it is "
        "declared to have been made, which is what shadow models are compressed by",
    )
    file: str | None = Field(None, description="a finished .onnx or .tflite file, audited as it is")
    interface: InterfacePlan = Field(InterfacePlan(), description="of `file`")
    deploy: Literal["onnx", "tflite"] = Field(
        "onnx",
        description="the file that is made of it, attacked and weighed: onnx, run in ONNX Runtime; or tflite, run in "
        "LiteRT, of networks of convolutions, dense layers, pools and sums",
    )
    defense: Any = Field(
        None,
        description="a kind, or a mapping with kind and its fields; or a list of such, one each of training, "
        "compression, inputs and answers",
    )
    control: bool = Field(False, description="a model that is there to be compared with: never up for release")

    @model_validator(mode="before")
    @classmethod
    def _bare_recipe(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw and not raw.keys() & {"kind", *cls.model_fields}:
            raise fault("is a recipe without its kind: write, for example, {kind: prune, sparsity: 0.5}")
        bare = isinstance(raw, str | Technique) or (isinstance(raw, Mapping) and "kind" in raw)
        return {"recipe": raw} if bare else raw

    @field_validator("recipe", "defense")
    @classmethod
    def _technique(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "defense" and isinstance(value, list | tuple):
            return [technique_like(one, at) for at, one in enumerate(value)]
        return None if value is None else technique_like(value)

    @model_validator(mode="after")
    def _has_a_recipe(self) -> CandidatePlan:
        if self.file is None and self.recipe is None:
            raise fault("name a recipe, or a finished file; the dense models are audited without being listed")
        if self.file is not None and self.defense is not None:
            raise fault("a finished file cannot be hardened: leave this out", "defense")
        if self.file is not None and self.deploy != "onnx":
            raise fault("a finished file is deployed as it is: leave this out", "deploy")
        if self.file is None and self.interface != InterfacePlan():
            raise fault("describes a finished file, and none is named under file", "interface")
        return self


class ClaimsPlan(Settings):
    """What is claimed of the dense model's training: differential privacy for one record added or removed."""

    epsilon: float = Field(gt=0, le=1e6, description="of the whole training")
    delta: float = Field(gt=0, lt=1, description="probability that epsilon fails; below 1 / training records")
    step: str | None = Field(
        None,
        description="module:function that takes gradients [8, 8], a row per record, and a torch.Generator, and gives "
        "the private gradient [8], as crushproof.audit_dp has it: the claim is put to the test by it",
    )
    stacked: bool = Field(False, description="the step takes [worlds, 8, 8] and gives [worlds, 8]")
    noise_multiplier: float | None = Field(
        None, gt=0, le=1e6, description="standard deviation of the noise over the clipping norm"
    )
    sampling_rate: float = Field(1.0, gt=0, le=1, description="with which a record takes part in a step")
    steps: int = Field(1, ge=1, le=10**9, description="of the training")

    @field_validator("step")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and not FUNCTION.fullmatch(value):
            raise fault(f"{value!r} must name a function as module:function, for example my_model:private_step")
        return value


class LocalEngine(Settings):
    """Cells are computed on this machine."""

    kind: Literal["local"] = "local"
    workers: int | Literal["auto"] = Field(
        "auto", description="processes; auto is one per core, and 0 works in the command's own process"
    )

    @field_validator("workers", mode="plain")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 256):
            return value
        raise fault("must be auto, or a number of processes from 0 (work in this process) to 256")


class RayEngine(Settings):
    """Cells are computed on a Ray cluster that is already running; see docs/cluster.md."""

    kind: Literal["ray"]
    address: str = Field(
        "auto",
        pattern=r"^(auto|[A-Za-z0-9._-]+:\d{1,5})$",
        description="host:port of the cluster's head; auto is the cluster that this machine belongs to",
    )


EnginePlan = Annotated[LocalEngine | RayEngine, Field(discriminator="kind")]
