"""What an attack tells a reader of its risk and its figures: words, taxonomy ids and how its curve is drawn.

Each attack brings its own; a report prints them and knows no attack by name.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"

FRAMEWORKS = {  # the editions whose ids a risk may name; which id fits which check is this project's judgement
    "NIST AI 100-2": "NIST AI 100-2e2025, Adversarial Machine Learning: A Taxonomy and Terminology",
    "MITRE ATLAS": "MITRE ATLAS 5.6",
    "OWASP ML": "OWASP Machine Learning Security Top 10 (2023)",
    "NIST AI RMF": "NIST AI Risk Management Framework 1.0, MEASURE",
}


class Described(BaseModel):
    """Part of audit.json, so that a report needs nothing but that file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(Described):
    """One figure: what policies and findings call it, and how it is printed."""

    name: str = Field(pattern=NAME, description="in findings and policies: robust_accuracy")
    title: str = Field(min_length=1, max_length=200, description="of a column or chart: Robust accuracy")
    subject: str = Field(max_length=200, description="in the middle of a sentence: robust accuracy")
    unit: Literal["percent", "score", "number"] = Field(
        description="percent: a share in [0, 1], printed as such; score: in [0, 1] with three decimals; number: any"
    )
    better: Literal["higher", "lower"] = Field(description="which direction is safer")
    meaning: str = Field(description="one or two sentences for a reader who does not know it")
    of: Literal["records", "trials"] = Field("records", description="what it is measured on, which `n` counts")
    fails_beyond: float | None = Field(
        None, description="what is surely worse fails under every policy that does not limit it itself"
    )


class Chart(Described):
    """How the curves of a risk are drawn. Each model gives one line, the plain dense model a grey one."""

    x: str = Field(max_length=80, description="what the horizontal axis counts: epsilon")
    curve: str = Field(description="name of the curve that stands for a finding")
    dashed: str = Field("", description="name of a second curve, drawn dashed beside it")
    dashed_title: str = Field("", max_length=80, description="what that curve is, behind the model's name: labels only")
    log_x: bool = False
    rates: bool = Field(False, description="a ROC curve: both axes logarithmic rates, with the diagonal of guessing")
    from_zero: bool = Field(True, description="whether the vertical axis starts at 0; else below the lowest point")


class Risk(Described):
    """What a reader must know of a risk before its figures."""

    name: str = Field(pattern=NAME, description="in findings")
    title: str = Field(min_length=1, max_length=200)
    question: str = Field(description="as a manager would ask it")
    wants: str = Field(description="what the attacker wants")
    harm: str = Field(description="what it costs the one who ships the model")
    advice: tuple[str, ...] = Field(description="what to do, one sentence each")
    reading: str = Field(description="how to read the chart")
    described: str = Field("", description="what the quantities beside its figures are of, in a sentence or two")
    transferred: str = Field("", description="what the shares of its inputs that fool other models are, in a sentence")
    chart: Chart
    taxonomy: dict[str, tuple[str, ...]] = Field({}, description="ids by framework, of those in FRAMEWORKS")


ACCURACY = Metric(
    name="accuracy",
    title="Accuracy",
    subject="accuracy",
    unit="percent",
    better="higher",
    meaning="Share of evaluation records classified correctly.",
)
BALANCED_ACCURACY = Metric(
    name="balanced_accuracy",
    title="Balanced accuracy",
    subject="balanced accuracy",
    unit="percent",
    better="higher",
    meaning="Mean over the classes of the share of their records classified correctly (recall): every class counts "
    "alike, however rare. Whoever always answers the commonest class gets 1 / classes.",
)
MEAN_SQUARED_ERROR = Metric(
    name="mean_squared_error",
    title="Mean squared error",
    subject="the mean squared error, as a share of the variance,",
    unit="percent",
    better="lower",
    meaning="Mean squared error as a share of the values' variance: 0 % is perfect, 100 % no better than their mean.",
)
EPSILON = Metric(
    name="epsilon",
    title="Promised epsilon",
    subject="the promised epsilon",
    unit="number",
    better="lower",
    meaning="What differential privacy promises of the training, at the delta beside it: smaller says more. "
    "Compression that looks at training records afterwards voids it.",
)
# Of a model itself; every other metric is an attack's.
QUALITIES = (ACCURACY, BALANCED_ACCURACY, MEAN_SQUARED_ERROR)
PROMISES = (EPSILON,)  # said of its training, and measured by nobody
