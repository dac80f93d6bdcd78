"""The plan of an audit: what is audited, with which attacks, by which policy. The model of `plan.yaml`.

Recipes, attacks and defenses stay as they were written (a mapping, or a short word) until `check_techniques` or the
suite looks them up, because that imports torch; everything else is checked here, and every error names its line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..targets.errors import InputError
from ..targets.technique import Registry, Technique
from .yaml_plan import SIZE_CAP, Source, Steps, load_yaml, read_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
LEVELS = ("quick", "standard", "thorough")
DENSE = "dense"  # and dense-<defense>: the names the audit gives to the uncompressed models

T = TypeVar("T", bound=Technique)


def fault(message: str, *at: str | int) -> PydanticCustomError:
    """A validation error in our own words; `at` leads from the model that raises it to the value that is wrong."""
    return PydanticCustomError("plan", "{message}", {"message": message, "at": at})


class Settings(BaseModel):
    """A frozen section of a plan or policy; a key it does not know is refused with the nearest one it does."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in raw:
                if key not in cls.model_fields:
                    raise fault(did_you_mean("is not a key", str(key), list(cls.model_fields)), str(key))
        return raw


class DigitsData(Settings):
    """scikit-learn's digits in seeded halves; needs no file."""

    kind: Literal["digits"]


class NpzData(Settings):
    """An .npz with x_train, y_train (the members), x_test, y_test and what else README, "Data", lists."""

    kind: Literal["npz"]
    path: str = Field(description="of the file, seen from the plan's folder")
    bounds: tuple[float, float] | None = Field(None, description="smallest and largest value of an input")
    class_names: tuple[str, ...] | None = Field(None, description="default: as in the file, else the labels")
    name: str | None = Field(None, description="what the report calls the data; default: the file's name")


class CsvData(Settings):
    """Two CSV files with a header line: one column of labels, the others numbers."""

    kind: Literal["csv"]
    train_path: str | None = Field(None, description="the members; without it membership is not audited")
    test_path: str = Field(description="the non-members")
    label: str = Field(description="name of the column of labels")
    bounds: tuple[float, float] | None = Field(None, description="smallest and largest value of an input")
    class_names: tuple[str, ...] | None = Field(None, description="default: the labels")
    name: str | None = Field(None, description="what the report calls the data; default: the file's name")


class MemoryData(Settings):
    """Arrays handed over from Python (`crushproof.audit_model`); a plan file cannot ask for it."""

    kind: Literal["memory"]
    name: str


DataPlan = Annotated[DigitsData | NpzData | CsvData | MemoryData, Field(discriminator="kind")]


class ModelPlan(Settings):
    """The dense model: how it is built, and its weights or how it is trained."""

    architecture: str = Field(description="module:function that returns the untrained model, a torch.nn.Module")
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
    def _one_way_to_train(self) -> ModelPlan:
        if self.training_function is not None and self.training:
            raise fault(
                "these are settings of the built-in trainer, which training_function replaces: keep one of the two",
                "training",
            )
        return self


class CandidatePlan(Settings):
    """One compressed model: a recipe, perhaps hardened. A bare recipe may stand in the place of this mapping."""

    recipe: Any = Field(description="a short word such as int8, a kind, or a mapping with kind and its fields")
    defense: Any = Field(None, description="a kind, or a mapping with kind and its fields")
    control: bool = Field(False, description="a model that is there to be compared with: never up for release")

    @model_validator(mode="before")
    @classmethod
    def _bare_recipe(cls, raw: Any) -> Any:
        bare = isinstance(raw, str | Technique) or (isinstance(raw, Mapping) and "kind" in raw and "recipe" not in raw)
        return {"recipe": raw} if bare else raw

    @field_validator("recipe", "defense")
    @classmethod
    def _technique(cls, value: Any) -> Any:
        return None if value is None else technique_like(value)

    @model_validator(mode="after")
    def _has_a_recipe(self) -> CandidatePlan:
        if self.recipe is None:
            raise fault("recipe is empty; the dense models are audited without being listed", "recipe")
        return self


class ShadowPlan(Settings):
    """How many shadow models membership inference trains. More see smaller leaks and take longer."""

    training_free: int = Field(
        default=64, ge=2, le=4096, description="for the dense model and recipes that do not train"
    )
    trained: int = Field(default=16, ge=2, le=4096, description="for hardened parents and recipes that train")

    @property
    def most(self) -> int:
        return max(self.training_free, self.trained)


class Plan(Settings):
    """A whole plan. Paths and modules in it are looked up in the folder it lies in."""

    name: str = Field("audit", min_length=1, max_length=200, description="the report's title")
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="decides every random number of the audit")
    data: DataPlan
    model: ModelPlan
    candidates: dict[str, CandidatePlan] = Field(min_length=1)
    attacks: Any = Field("standard", description="quick, standard, thorough, or a list of kinds and mappings")
    shadows: ShadowPlan = ShadowPlan()
    policy: Any = Field("release", description="a built-in policy, the path of a policy file, or the limits themselves")
    release: tuple[str, ...] | None = Field(
        None, description="the candidates the overall verdict covers; default: all but controls"
    )
    workers: int | Literal["auto"] = Field("auto", description="processes; 0 works in this one")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto is CUDA where there is one")
    declared: dict[str, str] = Field({}, description="measures the audit cannot verify, by name, e.g. tee")

    _source: Source = PrivateAttr(default_factory=Source)

    @field_validator("attacks", mode="plain")
    @classmethod
    def _attacks(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in LEVELS:
                raise fault(did_you_mean(f"there is no level {value!r}", value, list(LEVELS)))
            return value
        if not isinstance(value, list | tuple) or not value:
            raise fault(f"must be {', '.join(LEVELS)} or a list of attacks")
        return [technique_like(item, position) for position, item in enumerate(value)]

    @field_validator("policy", mode="plain")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, Mapping) and value):
            return value
        raise fault("must be the name of a policy, the path of a policy file, or a mapping of limits")

    @field_validator("workers", mode="plain")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 256):
            return value
        raise fault("must be auto, or a number of processes from 0 (work in this process) to 256")

    @field_validator("candidates")
    @classmethod
    def _candidate_names(cls, value: dict[str, CandidatePlan]) -> dict[str, CandidatePlan]:
        folded: dict[str, str] = {}
        for name in value:
            if not NAME.fullmatch(name):
                raise fault(
                    "a candidate's name is made of letters, digits and . _ + -, starts with a letter or digit and has "
                    f"at most 64 characters; {name[:80]!r} is not",
                    name,
                )
            if name == DENSE or name.startswith(f"{DENSE}-"):
                raise fault(
                    f"{name!r} is a name of the uncompressed models, which are always audited: choose another", name
                )
            if name.lower() in folded:
                raise fault(f"{name!r} and {folded[name.lower()]!r} differ only in case: rename one of them", name)
            folded[name.lower()] = name
        return value

    @model_validator(mode="after")
    def _release_names(self) -> Plan:
        for position, name in enumerate(self.release or ()):
            if name not in self.candidates:
                message = did_you_mean(f"there is no candidate {name!r}", name, list(self.candidates))
                raise fault(message, "release", position)
        if self.release == ():
            raise fault("names no candidate; leave release out to judge all", "release")
        return self

    @property
    def up_for_release(self) -> tuple[str, ...]:
        """The candidates the overall verdict covers."""
        if self.release is not None:
            return self.release
        return tuple(name for name, candidate in self.candidates.items() if not candidate.control)

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that can change a result; the number of workers cannot."""
        fields = self.model_dump(mode="json", exclude={"workers"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def where(self, *steps: str | int) -> str:
        """Where a value stands, for an error: `plan.yaml, line 7`."""
        return self._source.where(steps)


def load_plan(path: Path) -> Plan:
    """The plan in a YAML file. Needs no torch: techniques are checked later, by `check_techniques`.

    Raises:
        InputError: the file cannot be read or is no valid plan; the message names the line and what to write instead.
        UnsafeInput: a tag in it asks for a Python object.
    """
    return parse_plan(read_text(path, "plan", SIZE_CAP), path.name)


def parse_plan(text: str, name: str = "plan.yaml") -> Plan:
    """The plan in YAML `text`; `name` is used in errors. Raises as `load_plan`."""
    raw, source = load_yaml(text, name)
    plan = validated(Plan, raw, source)
    if isinstance(plan.data, MemoryData):
        raise InputError(f"{source.where(('data', 'kind'))}: kind memory is for Python; a plan names a file or digits.")
    plan._source = source
    return plan


S = TypeVar("S", bound=Settings)


def validated(model: type[S], raw: Any, source: Source, at: Steps = ()) -> S:
    """A section from plain values that stand at `at` in `source`.

    Raises:
        InputError: every fault, each with its line.
    """
    if not isinstance(raw, Mapping):
        keys = ", ".join(model.model_fields)
        raise InputError(f"{source.where(at)}: expected a mapping with the keys {keys}.")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain(error, source, at)) from None


def explain(error: ValidationError, source: Source, at: Steps = ()) -> str:
    """A sentence for each fault: its line, the key, what is wrong with it."""
    sentences = []
    for item in error.errors(include_url=False):
        steps = item["loc"]
        if len(steps) > 1 and steps[0] == "data":
            steps = (steps[0], *steps[2:])  # the tag that a union adds
        steps = (*at, *steps, *item.get("ctx", {}).get("at", ()))
        key, message = ".".join(str(step) for step in steps), item["msg"][:1].lower() + item["msg"][1:]
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"].startswith("union_tag"):
            key, message = f"{key}.kind", "must be digits, npz or csv"
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            message = "must be a mapping of keys and values"
        sentence = f"{source.where(steps)}: {key}{': ' if key else ''}{message}"
        sentences.append(sentence if sentence.endswith("?") else f"{sentence}.")
    return " ".join(sentences)


def check_techniques(plan: Plan) -> None:
    """Looks up every recipe, defense, attack and hyper-parameter of the plan. Imports torch.

    Raises:
        InputError: unknown or ill-defined; the message names the line.
    """
    from ..attacks.attack import ATTACKS
    from ..compression.recipe import RECIPES
    from ..defenses.defense import DEFENSES
    from ..training.loop import Training
    from .presets import RECIPE_WORDS

    for name, candidate in plan.candidates.items():
        recipe = candidate.recipe
        words = list(RECIPE_WORDS)
        if isinstance(recipe, str) and recipe not in RECIPE_WORDS and recipe not in RECIPES.kinds():
            message = did_you_mean(f"there is no recipe {recipe!r}", recipe, [*words, *RECIPES.kinds()])
            raise InputError(f"{plan.where('candidates', name, 'recipe')}: {message}")
        recipe = RECIPE_WORDS.get(recipe, recipe) if isinstance(recipe, str) else recipe
        parsed(RECIPES, recipe, plan, "candidates", name, "recipe")
        if candidate.defense is not None:
            parsed(DEFENSES, candidate.defense, plan, "candidates", name, "defense")
    if not isinstance(plan.attacks, str):
        for position, attack in enumerate(plan.attacks):
            parsed(ATTACKS, attack, plan, "attacks", position)
    try:
        Training.model_validate(plan.model.training)
    except ValidationError as error:
        known = ", ".join(Training.model_fields)
        raise InputError(f"{explain(error, plan._source, ('model', 'training'))} Known: {known}.") from None


def parsed(registry: Registry[T], raw: Any, plan: Plan, *at: str | int) -> T:
    """`registry.parse(raw)`, whose errors say where in the plan `raw` stands."""
    try:
        return registry.parse(raw)
    except InputError as error:
        fields = error.__context__  # the technique's own validation error, when that is what went wrong
        inside = tuple(fields.errors()[0]["loc"]) if isinstance(fields, ValidationError) else ("kind",)
        raise InputError(f"{plan.where(*at, *inside)}: {error}") from None


def technique_like(value: Any, *at: str | int) -> Any:
    """Checks the outer shape of a recipe, attack or defense; the techniques themselves check the rest."""
    if isinstance(value, Technique):
        return value.model_dump(mode="json")
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Mapping):
        if not isinstance(value.get("kind"), str):
            raise fault("needs a kind, for example kind: quantize", *at)
        return dict(value)
    raise fault("must be a word or a mapping with a kind", *at)


def did_you_mean(message: str, word: str, known: list[str]) -> str:
    """The message with the nearest known word, or with all of them when none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f"{message}; did you mean {near[0]!r}?" if near else f"{message}; known: {', '.join(known)}"
