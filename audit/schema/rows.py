"""The schema of audit.json, `crushproof.audit/1`: the product. The HTML report is a view of it.

Everything here follows from plan, data, seed and machine type, except `environment`, where times and host facts live.

What has fixed keys is a model with ranges. Open mappings are settings of techniques, which other packages may bring:
`Finding.setting`, `Candidate.recipe`, `Candidate.statement`, `Audit.plan`, `Audit.declared`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from ...attacks.risk import ACCURACY, BALANCED_ACCURACY, MEAN_SQUARED_ERROR, Metric, Risk
from ...targets.serving.statement import RowVerdict, Verdict
from .data_rows import DataSummary
from .file_rows import Certificate, Footprint, Kernels, Lineage, Runtime
from .names import check_names
from .policy_rows import Gate, Limit
from .quantity_rows import Fragile, Pattern, Quantity, Transfer
from .row import Amount, Count, Digest, Figure, Row, Share

SLACK = 1e-9  # rounding of an interval's end
SCHEMA: Final = "crushproof.audit/1"


def _check_ends(name: str, value: float | None, low: float | None, high: float | None) -> None:
    if not (value is None or low is None or high is None or low - SLACK <= value <= high + SLACK):
        raise ValueError(f"{name} {value} lies outside its interval [{low}, {high}]")


class Estimate(Row):
    """A figure with its 95 % interval and the number of records it rests on, in the unit of its metric; or what a
    search found, exactly: both ends are the figure, which tells nothing of what the search cannot find.
    """

    estimate: Figure
    low: Figure
    high: Figure
    n: int = Field(ge=1)
    unsearched: str | None = Field(None, exclude_if=lambda it: it is None, description="what a search cannot find")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_ends("estimate", self.estimate, self.low, self.high)
        if self.unsearched is not None and not self.low == self.estimate == self.high:
            raise ValueError("what a search found is exact, and has no interval")
        return self


def _check_share(value: Estimate) -> Estimate:
    if not -SLACK <= value.low <= value.high <= 1 + SLACK:
        raise ValueError(f"a share of records lies in [0, 1], and so does its interval [{value.low}, {value.high}]")
    return value


_IN_0_1 = {"properties": {"low": {"minimum": 0}, "high": {"maximum": 1}}}
ShareEstimate = Annotated[Estimate, AfterValidator(_check_share), Field(json_schema_extra=_IN_0_1)]


class GroupEstimate(Estimate):
    """The figure on the records of one class or group alone."""

    name: str = Field(description="the class, or 'group <name>'")


class Change(Row):
    """A paired difference `candidate - baseline`, with its 95 % interval."""

    baseline: str = Field(description="name of the model compared with")
    baseline_estimate: Figure
    difference: Figure
    low: Figure
    high: Figure
    p_value: Share | None = Field(None, description="exact McNemar for rates, paired DeLong for AUC")
    counted: list[str] = Field([], description="the parts that both sides faced alike, which alone it counts")
    flags: list[str] = Field([], description="trust flags of the baseline's figure: they are flags of the change too")
    baseline_high: Figure | None = Field(None, description="upper end of the baseline's interval on these records")
    floor: Figure | None = Field(None, description="a baseline no better than this has no room to fall")
    instead: str | None = Field(None, description="where there is no room to fall: what to measure instead")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_ends("difference", self.difference, self.low, self.high)
        return self


class ThreatModel(Row):
    """The attacker that a finding assumes."""

    access: str = Field(description="of the parts that ran: white-box, scores, labels; none: nothing ran")
    knowledge: str = Field(description="one sentence: what the attacker knows and has")
    budget: str = Field(description="one phrase: epsilon, queries, shadows")


class Point(Row):
    """One point of a curve that a chart draws: `x` is epsilon, queries, false positive rate ..."""

    x: Figure
    estimate: Figure
    low: Figure | None = None
    high: Figure | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_ends("estimate", self.estimate, self.low, self.high)
        return self


class Part(Row):
    """One attack among those a finding takes the worst case (or the headline) over."""

    name: str
    estimate: Figure | None = Field(description="None: did not run")
    low: Figure | None = None
    high: Figure | None = None
    flags: list[str] = []
    skipped: str | None = Field(None, description="why it did not run")
    headline: bool = Field(False, description="the one the finding reports, where one is chosen")
    counted: bool = Field(True, description="whether it counts towards the change: both sides faced it alike")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_ends("estimate", self.estimate, self.low, self.high)
        return self


class Finding(Row):
    """One measured risk of one candidate, or the reason why it was not measured."""

    id: str = Field(description="<candidate>/<attack>[/<detail>]; what --only takes")
    candidate: str
    risk: str = Field(description="name of one of the audit's risks")
    attack: str = Field(description="what the estimate is the result of, in words")
    metric: str = Field(description="name of one of the audit's metrics")
    better: Literal["higher", "lower"] = Field(description="which direction of the metric is safer")
    setting: dict[str, str | float | int] = Field({}, description="the attack's own, such as {'epsilon': 0.1}")
    chosen: str | None = Field(None, description="how a setting that the plan left open was chosen")
    threat_model: ThreatModel
    estimate: Estimate | None = Field(description="None: not measured, see `reason`")
    available: Count | None = Field(None, description="records the data has for it; `estimate.n` may be fewer")
    changes: list[Change] = Field([], description="first: against the candidate's own parent; then the plain dense")
    gateable: bool = Field(False, description="the row of its metric that a policy may judge")
    gated: bool = Field(False, description="a policy judged it")
    verdict: RowVerdict = "not-gated"
    reason: str | None = Field(None, description="why not measured, not gated or inconclusive")
    flags: list[str] = []
    notes: list[str] = Field(
        [], description="sentences the reader must know, e.g. 'the dense model is attacked with fewer records'"
    )
    parts: list[Part] = []
    curves: dict[str, list[Point]] = Field({}, description="by series name; see the risk's section of the report")
    who_is_hit: list[GroupEstimate] = Field([], description="per class and group of the records; the worst first")
    worse: list[str] = Field([], description="of them: worse than under the parent, exact McNemar with Holm, p < .05")
    transfers: list[Transfer] = Field([], description="whom else what was found on this model fools; no policy judges")
    quantities: list[Quantity] = Field([], description="plain figures beside it; the risk's `described` says of what")
    fragile: Fragile | None = Field(None, description="None: no record fell, or it does not say which did")
    pattern: Pattern | None = Field(None, description="a computed picture of what was found; no record")
    taxonomy: dict[str, list[str]] = Field({}, description="framework -> ids")
    queries: Count = Field(0, description="records that the deployed model was asked for")
    forwards: Count = Field(0, description="records passed forward through a twin or another model")
    backwards: Count = Field(0, description="records passed backward")
    evidence: str | None = Field(None, description="path of the evidence inside the output folder")
    evidence_digest: Digest | None = None
    reproduce: str = Field("", description="the command that reproduces it")


class Latency(Row):
    """Milliseconds per call on fixed threads. A timing: kept under `environment`, never decides anything."""

    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    p50: Amount
    p95: Amount
    records_per_second: Amount = Field(description="at the median")


class Draw(Row):
    """The figures of one draw of a random recipe."""

    draw: Count = Field(description="0: the one that is shipped")
    figures: dict[str, Estimate] = Field(description="by metric: how well it does its task, then what attacks found")


class Classes(Row):
    """How well a classifier does on each class of the non-members."""

    balanced_accuracy: ShareEstimate = Field(description="mean of the recalls")
    change: Change | None = Field(None, description="of balanced accuracy, against the parent; no p-value")
    recalls: list[GroupEstimate] = Field(description="share of a class's records that it gets right, per class")
    uneven: bool = Field(description="some classes have far more records than others")


class Candidate(Row):
    """One audited model: how it was made, what it weighs, how well it does its task."""

    name: str
    role: Literal["dense", "candidate", "control"]
    technique: str = Field(description="a recipe's kind, dense, or file")
    recipe: dict[str, JsonValue] | None = Field(description="the recipe's kind and fields as JSON, defaults included")
    promise: Literal["nearest", "neighbour", "shapes"] | None = Field(
        None, description="of a file's declared recipe: what it leaves of the dense model's weights"
    )
    recipe_words: str = Field(description="the recipe in a phrase, e.g. '8-bit weights and activations'")
    parent: str | None = Field(description="name of the dense model it came from; None for a dense one")
    family: str = Field("", description="of techniques, as a title: Pruning; empty for a dense model")
    defense: str | None = Field(None, description="kind of the defense in its making")
    defense_title: str | None = Field(None, description="the same as a title: Adversarial training")
    defense_words: str | None = Field(None, description="e.g. 'DP-SGD, epsilon 8.0 at delta 1e-5'")
    statement: dict[str, str | float | int] = Field(
        {}, description="what the defense promises, in texts and numbers: epsilon, delta, steps, ..."
    )
    verdict: RowVerdict
    deciding: str | None = Field(None, description="the sentence that decides the verdict")
    accuracy: ShareEstimate | None = Field(None, description="None where values are predicted")
    mean_squared_error: Estimate | None = Field(
        None, description="of a model of values, as a share of their variance; None for a classifier"
    )
    quality_change: Change | None = Field(None, description="of accuracy or error, against the parent")
    quality_change_dense: Change | None = Field(None, description="against the plain dense model")
    classes: Classes | None = Field(None, description="None where values are predicted")
    disagreement: ShareEstimate | None = Field(None, description="share of records whose label is not the parent's")
    footprint: Footprint
    certificate: Certificate | None
    kernels: Kernels | None = Field(None, description="None: not run by ONNX Runtime")
    runtimes: list[Runtime] = Field([], description="the others that the plan asked for and that could run it")
    file: str | None = Field(None, description="a finished file's name, where that is what was audited")
    assumed: list[str] = Field([], description="what was assumed about a finished file's inputs and outputs")
    lineage: Lineage | None = Field(None, description="of a finished file whose dense model is known")
    worst_risk: str | None = Field(None, description="id of the finding nearest to or furthest beyond its limit")
    flags: list[str] = Field(
        default=[], description="trust flags of the candidate itself: at-chance, answers-vary, epsilon-void"
    )
    digest: Digest = Field(description="sha256 of the deployed bytes")
    draws: list[Draw] = Field([], description="of a random recipe: what each draw is; the shipped one first")

    @model_validator(mode="after")
    def _one_quality(self) -> Candidate:
        if (self.accuracy is None) == (self.mean_squared_error is None):
            raise ValueError("a candidate has either an accuracy or a mean squared error")
        return self

    @property
    def quality(self) -> Estimate:
        """How well it does its task: accuracy, or the mean squared error."""
        found = self.accuracy if self.accuracy is not None else self.mean_squared_error
        assert found is not None  # the validator saw to it
        return found

    @property
    def quality_metric(self) -> Metric:
        return MEAN_SQUARED_ERROR if self.accuracy is None else ACCURACY

    def own_figure(self, metric: str) -> tuple[Estimate | None, Change | None]:
        """A figure of the model itself, and its change against the parent."""
        if metric == BALANCED_ACCURACY.name:
            return (None, None) if self.classes is None else (self.classes.balanced_accuracy, self.classes.change)
        return (self.quality, self.quality_change) if metric == self.quality_metric.name else (None, None)

    @property
    def merit(self) -> float:
        """The quality as a number of which more is better."""
        return self.quality.estimate if self.accuracy is not None else -self.quality.estimate


class NotMeasured(Row):
    """What was left out, and why."""

    candidate: str | None
    what: str
    reason: str


class Machine(Row):
    """The computer that an audit ran on."""

    system: str
    processor: str
    cores: str
    device: str = Field(description="that models ran on: cpu, cuda ...")


class RecordedAt(Row):
    """What every figure can be made from again, in the evidence beside this file: `crushproof verify` does."""

    key: str = Field(pattern=r"^[0-9a-f]{64}$", description="under which the record lies in evidence/cells")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of its manifest")
    ended: str = Field(pattern=r"^[0-9a-f]{64}$", description="under which lies how the audit ended, with its times")
    fixed: str = Field(description="when plan and policy were fixed, in UTC")
    known: Count = Field(0, description="results of attacks that were there by then, from an earlier plan or policy")


class Environment(BaseModel):
    """Host facts and times; the only part of an audit that two identical runs may differ in."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    date: str = ""
    record: RecordedAt | None = Field(None, description="None: of an audit that left no evidence")
    versions: dict[str, str] = Field({}, description="by package")
    machine: Machine | None = None
    seconds: dict[str, Amount] = Field({}, description="CPU seconds by phase")
    wall_seconds: Amount = 0.0
    peak_bytes: Count = 0
    latency: dict[str, list[Latency]] = Field({}, description="by candidate")
    candidate_seconds: dict[str, Amount] = Field({}, description="CPU seconds it took to make it, training included")
    candidate_peak_bytes: dict[str, Count] = Field({}, description="resident bytes of a fresh process serving it")


class Audit(BaseModel):
    """A whole audit. `Audit.model_validate_json` reads one; unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    schema_: Literal["crushproof.audit/1"] = Field(SCHEMA, alias="schema")
    name: str
    verdict: Verdict
    deciding: list[str] = Field(description="the one or two sentences that decide the verdict")
    beside: list[str] = Field([], description="sentences: what a reader of the verdict must know that it does not say")
    plan: dict[str, JsonValue] = Field(description="the plan as it was resolved, as JSON")
    plan_digest: Digest
    seed: int = Field(ge=0, lt=2**63)
    data: DataSummary
    candidates: list[Candidate]
    findings: list[Finding]
    risks: dict[str, Risk] = Field(description="what to know of each, by name, in the order of the plan's attacks")
    metrics: dict[str, Metric] = Field(description="how each figure is called and printed, by name")
    policy: list[Gate]
    policy_name: str
    policy_limits: list[Limit] = Field(description="all of its limits, those left out included")
    policy_from: Literal["audit", "gate"] = Field("audit", description="gate: a finished audit was judged anew by it")
    release: list[str] = Field(description="candidates the overall verdict covers")
    not_measured: list[NotMeasured]
    power: list[str] = Field(description="sentences: which leak or loss would not have been seen at these sizes")
    limits: list[str] = Field(description="sentences: what the method does not prove")
    declared: dict[str, str] = Field({}, description="texts by the user's own keys (an enclave ...), not verified")
    environment: Environment

    @model_validator(mode="after")
    def _explains_itself(self) -> Audit:
        for finding in self.findings:
            if finding.risk not in self.risks or finding.metric not in self.metrics:
                raise ValueError(f"finding {finding.id}: its risk or its metric is not among `risks` and `metrics`")
        used = {*(gate.rule for gate in self.policy), *(limit.metric for limit in self.policy_limits)}
        used |= {*(row.quality_metric.name for row in self.candidates)}
        used |= {name for row in self.candidates for draw in row.draws for name in draw.figures}
        check_names(self.risks, self.metrics, used - {"lineage"})
        return self
