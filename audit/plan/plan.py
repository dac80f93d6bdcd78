"""The plan of an audit: what is audited, with which attacks, by which policy. The model of `plan.yaml`.

Recipes, attacks and defenses stay as they were written (a mapping, or a short word) until `check_techniques` or the
suite looks them up, because that imports torch; everything else is checked here, and every error names its line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ...targets.errors import InputError
from ...targets.technique import Registry, Technique, faults
from .other_files import PLANS, refuse_other
from .sections import CandidatePlan, ClaimsPlan, DataPlan, EnginePlan, LocalEngine, MemoryData, ModelPlan
from .settings import Settings, did_you_mean, fault, seconds_of, technique_like, time_or_none
from .shadow_plan import ShadowPlan
from .shareable import without_folders
from .yaml_text import SIZE_CAP, Source, Steps, load_yaml, read_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
UNIONS = {"data": "digits, npz or csv", "engine": "local or ray"}  # sections of several kinds, and which
LEVELS = ("quick", "standard", "thorough")
THOROUGH_SHADOWS = {"training_free": 64, "trained": 16}
DENSE = "dense"  # and dense-<defense>: the names the audit gives to the uncompressed models

T = TypeVar("T", bound=Technique)


class Plan(Settings):
    """A whole plan. Paths and modules in it are looked up in the folder it lies in."""

    name: str = Field("audit", min_length=1, max_length=200, description="the report's title")
    seed: int = Field(0, ge=0, lt=2**63, strict=True, description="decides every random number of the audit")
    data: DataPlan
    model: ModelPlan | None = Field(None, description="the dense model; candidates that are files can do without")
    candidates: dict[str, CandidatePlan]
    attacks: Any = Field("standard", description="quick, standard, thorough, or a list of kinds and mappings")
    shadows: ShadowPlan = ShadowPlan()
    claims: ClaimsPlan | None = Field(None, description="what is promised of the dense model's training")
    budget: str | None = Field(
        None,
        description="time the whole audit may take, such as 15 min; sizes that the plan leaves open follow from it",
    )
    policy: Any = Field(
        None,
        description="a built-in policy, the path of a policy file, or the limits themselves; left out: release without "
        "what these inputs cannot decide",
    )
    release: tuple[str, ...] | None = Field(
        None, description="the candidates the overall verdict covers; default: all but controls"
    )
    show_records: bool = Field(
        False,
        strict=True,
        description="whether report.html may show records: the most fragile images, as they are and changed",
    )
    runtimes: tuple[Any, ...] = Field(
        (), description="also run every ONNX file in these, and report how far they agree with ONNX Runtime"
    )
    engine: EnginePlan = Field(LocalEngine(), description="where the work is done; no finding depends on it")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:0; auto is CUDA where there is one")
    declared: dict[str, str] = Field({}, description="measures the audit cannot verify, by name, e.g. tee")

    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="before")
    @classmethod
    def _shadows_of_the_level(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("attacks") == "thorough" and "shadows" not in raw:
            return {**raw, "shadows": THOROUGH_SHADOWS}
        return raw

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

    @field_validator("runtimes", mode="before")
    @classmethod
    def _runtimes(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise fault("must be a list of runtimes, for example [openvino]")
        return [technique_like(item, position) for position, item in enumerate(value)]

    @field_validator("budget", mode="plain")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        return time_or_none(value)

    @field_validator("policy", mode="plain")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        if value is None or isinstance(value, str) or (isinstance(value, Mapping) and value):
            return value
        raise fault("must be the name of a policy, the path of a policy file, or a mapping of limits")

    @field_validator("device", mode="plain")
    @classmethod
    def _device(cls, value: Any) -> str:
        if isinstance(value, str) and DEVICE.fullmatch(value):
            return value
        raise fault("must be auto, cpu, cuda or cuda:0 (another number for another GPU)")

    @field_validator("data", mode="before")
    @classmethod
    def _data_of_a_sort(cls, value: Any) -> Any:
        if isinstance(value, str):
            like = "{kind: digits}" if value == "digits" else f"{{kind: npz, path: {value[:80]}}}"
            raise fault(f"must be a mapping that says of which kind the data is, for example {like}")
        return value

    @field_validator("candidates", mode="before")
    @classmethod
    def _candidates_by_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value:
            return value
        raise fault("must be a mapping from a name of your choice to a recipe, for example {int8: int8, int4: int4}")

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
    def _a_model_to_compress(self) -> Plan:
        for name, candidate in self.candidates.items():
            if self.model is None and candidate.file is None:
                raise fault("there is no dense model to compress: name one under model", "candidates", name)
            if self.model is None and candidate.recipe is not None:
                raise fault(
                    "without a dense model (model) nothing can be compressed as this file was declared to be",
                    "candidates",
                    name,
                    "recipe",
                )
        return self

    @model_validator(mode="after")
    def _release_names(self) -> Plan:
        for position, name in enumerate(self.release or ()):
            if name not in self.candidates:
                message = did_you_mean(f"there is no candidate {name!r}", name, list(self.candidates))
                raise fault(message, "release", position)
        if self.release == ():
            raise fault("names no candidate; leave release out to judge all", "release")
        return self

    @model_validator(mode="after")
    def _claims_of_a_training(self) -> Plan:
        model = self.model
        own = model is not None and (model.weights or model.file or model.training_function) is not None
        if self.claims is not None and not own:
            raise fault(
                "is about a private training of your own: give the model it made (model.weights or model.file) or the "
                "function (model.training_function). Of the audit's own training it is promised by defense: dp-sgd",
                "claims",
            )
        return self

    @model_validator(mode="after")
    def _a_device_of_the_cluster(self) -> Plan:
        if self.engine.kind == "ray" and self.device.startswith("cuda:"):
            raise fault("on a cluster Ray chooses the GPU: write cuda", "device")
        return self

    @property
    def up_for_release(self) -> tuple[str, ...]:
        """The candidates the overall verdict covers."""
        if self.release is not None:
            return self.release
        return tuple(name for name, candidate in self.candidates.items() if not candidate.control)

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds by the clock."""
        return None if self.budget is None else seconds_of(self.budget)

    @property
    def shown(self) -> dict[str, Any]:
        """All that can change a result, as JSON; where it is computed, and where files lie on this machine, cannot."""
        return without_folders(self.model_dump(mode="json", exclude={"engine"}))

    @property
    def digest(self) -> str:
        """sha256 (hex) of `shown`."""
        return hashlib.sha256(json.dumps(self.shown, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def file(self) -> str | None:
        """The name of the file it was read from; None: it is from Python or the command line."""
        return self._source.name if self._source.lines else None

    def where(self, *steps: str | int) -> str:
        """Where a value stands, for an error: `plan.yaml, line 7`."""
        return self._source.where(steps)


def load_plan(path: Path) -> Plan:
    """The plan in a YAML file. Needs no torch: techniques are checked later, by `check_techniques`.

    Raises:
        InputError: the file cannot be read or is no valid plan; the message names the line and what to write instead.
        UnsafeInput: a tag in it asks for a Python object.
    """
    refuse_other(path, "a plan", PLANS)
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


def validated(model: type[S], raw: Any, source: Source, at: Steps = (), context: Mapping[str, Any] | None = None) -> S:
    """A section from plain values that stand at `at` in `source`; its validators may ask for the context.

    Raises:
        InputError: every fault, each with its line.
    """
    if not isinstance(raw, Mapping):
        keys = ", ".join(model.model_fields)
        raise InputError(f"{source.where(at)}: expected a mapping with the keys {keys}.")
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        raise InputError(with_lines(error, source, at)) from None


def with_lines(error: ValidationError, source: Source, at: Steps = (), model: type[BaseModel] | None = None) -> str:
    """A sentence for each fault: its line, the key, what is wrong with it; `model` refused the values."""
    sentences = []
    for steps, message in faults(error, model):
        if len(steps) > 1 and steps[0] in UNIONS:
            if steps[1:] == ("kind",):
                message = f"must be {UNIONS[str(steps[0])]}"
            else:
                steps = (steps[0], *steps[2:])  # the tag that a union adds
        steps, message = (*at, *steps), message[:1].lower() + message[1:]
        key = ".".join(str(step) for step in steps)
        sentence = f"{source.where(steps)}: {key}{': ' if key else ''}{message}"
        sentences.append(sentence if sentence.endswith("?") else f"{sentence}.")
    return " ".join(sentences)


def check_techniques(plan: Plan) -> None:
    """Looks up every recipe, defense, attack, runtime and hyper-parameter of the plan. Imports torch.

    Raises:
        InputError: unknown or ill-defined; the message names the line.
    """
    from ...attacks.attack import ATTACKS
    from ...compression.recipe import RECIPES
    from ...compression.words import RECIPE_WORDS, spelled
    from ...targets.runtimes.runtime import RUNTIMES
    from ...training.loop import Training

    for name, candidate in plan.candidates.items():
        recipe = candidate.recipe
        if recipe is None:
            continue
        words = list(RECIPE_WORDS)
        if isinstance(recipe, str) and recipe not in RECIPE_WORDS and recipe not in RECIPES.kinds():
            message = did_you_mean(f"there is no recipe {recipe!r}", recipe, [*words, *RECIPES.kinds()])
            raise InputError(f"{plan.where('candidates', name, 'recipe')}: {message}{RECIPES.left_out(recipe)}")
        if isinstance(recipe, str) and recipe in RECIPE_WORDS and recipe in RECIPES.kinds():
            where = plan.where("candidates", name, "recipe")
            raise InputError(
                f"{where}: {recipe!r} is a word of crushproof's and the kind of another package's recipe. Write kind: "
                f"{recipe} for that one; crushproof's is {RECIPE_WORDS[recipe]}."
            )
        parsed(RECIPES, spelled(recipe), plan, "candidates", name, "recipe")
        if candidate.defense is not None:
            _check_defenses(plan, name, candidate.defense)
    if not isinstance(plan.attacks, str):
        for position, attack in enumerate(plan.attacks):
            parsed(ATTACKS, attack, plan, "attacks", position)
    for position, runtime in enumerate(plan.runtimes):
        parsed(RUNTIMES, runtime, plan, "runtimes", position)
    if plan.model is None:
        return
    try:
        Training.model_validate(plan.model.training)
    except ValidationError as error:
        known = ", ".join(Training.model_fields)
        said = with_lines(error, plan._source, ("model", "training"), Training)
        raise InputError(f"{said} Known: {known}.") from None


def _check_defenses(plan: Plan, name: str, raw: Any) -> None:
    from ...defenses.chain import chained
    from ...defenses.defense import DEFENSES

    if not isinstance(raw, list):
        parsed(DEFENSES, raw, plan, "candidates", name, "defense")
        return
    found = [parsed(DEFENSES, one, plan, "candidates", name, "defense", at) for at, one in enumerate(raw)]
    try:
        chained(found)
    except InputError as error:
        raise InputError(f"{plan.where('candidates', name, 'defense')}: {error}") from None


def parsed(registry: Registry[T], raw: Any, plan: Plan, *at: str | int) -> T:
    """`registry.parse(raw)`, whose errors say where in the plan `raw` stands."""
    try:
        return registry.parse(raw)
    except InputError as error:
        fields = error.__context__  # the technique's own validation error, when that is what went wrong
        inside = tuple(fields.errors()[0]["loc"]) if isinstance(fields, ValidationError) else ("kind",)
        raise InputError(f"{plan.where(*at, *inside)}: {error}") from None
