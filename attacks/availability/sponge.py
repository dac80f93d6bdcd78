"""Sponge inputs: what makes the file that ships compute as many products as it can be made to."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...targets.data.data import Data
from ...targets.data.records import Bounds
from ...targets.errors import NotApplicable, UnsafeInput
from ...targets.form import Amount, Array, Count, Document, Form, Layout, Share
from ...targets.seeds import generator
from ...targets.steps import pulse
from ...targets.untrusted.model_file import check_onnx
from ..access import Access, Ledger
from ..attack import ATTACKS, Attack
from ..case import Case, Evidence
from ..effort import Effort
from ..evasion.categories import not_pixels, seen_unfit, without_ball
from ..measurement import Comparison, Mean, Measurement, Quantity, ThreatModel
from ..preparation import Audited, Basis, Ran, Results, Scope
from ..risk import Metric, Risk
from .density import Floats, Meter, trail
from .risk import AVAILABILITY, DENSITY_GAIN

POINTS = 11  # of the curve
NATURAL = 1e-3  # of the share of non-zero activations beside that of computed products: it breaks ties
SAME = 1e-3  # of a share: on another processor a few values that are nearly zero may not be
CHANGED = (0.02, 0.1, 0.3, 1.0)  # shares of an input that a mutation draws anew, or nearly so


class Summary(Document):
    """`Evidence.summary`: whether the file skips anything; modelled arithmetic energy of an input, in microjoule."""

    skips: bool
    steps: tuple[Count, ...]
    energy_clean: Amount | None
    energy_worst: Amount | None
    nonzero_clean: Share
    nonzero_worst: Share


@ATTACKS.register
class Sponge(Attack):
    """Inputs that raise the work of a file (sponge examples, Shumailov et al. 2021, arXiv:2006.03463).

    A genetic search as in the paper: from evaluation records on, inputs within the bounds are crossed and mutated, and
    each step keeps the one that computes more. What is computed is measured on the values of the shipped graph: where
    the file itself selects activations by size (dynamic sparsity), zeros into a product are skipped; everywhere else
    zeros are multiplied like any number, as runtimes do, so that every input costs the same. Quantised, pruned and
    dense files stay level; what a kernel that skipped all zeros would compute stands beside the figure.

    Evidence arrays, r records and t points of the search: `ids` int64 [r]; `computed` float64 [t, r], the share of
    products, from the records themselves (first) to the inputs found (last); `crafted` float32 [r, *shape], the latter.
    """

    risk: ClassVar[Risk] = AVAILABILITY
    metrics: ClassVar[tuple[Metric, ...]] = (DENSITY_GAIN,)

    kind: Literal["sponge"] = "sponge"
    records: int = Field(32, ge=2, le=100_000, description="evaluation records that the search begins at, at most")
    steps: int = Field(100, ge=1, le=100_000, description="inputs tried for each record")

    @property
    def effort(self) -> Effort:
        return Effort(answers=3.0 * self.records * (self.steps + 4))

    def unfit(self, scope: Scope) -> str | None:
        return seen_unfit(scope)

    def usual(self, data: Data) -> bool:
        return not without_ball(data)

    def form(self, model: Audited, scope: Scope) -> Form:
        n = min(self.records, len(scope.data.evaluation_ids))

        def layout(summary: Summary) -> Layout:
            return {
                "ids": Array("int64", (n,)),
                "computed": Array("float64", (len(summary.steps), n), 0, 1 + 1e-9),
                "crafted": Array("float32", (n, *scope.data.shape)),
            }

        return Form(Summary, layout)

    def run(self, case: Case, *, seed: int) -> Evidence:
        why = not_pixels(case)
        if why is not None:
            raise NotApplicable(why)
        meter, ledger = _meter(case), Ledger()
        n = min(self.records, len(case.evaluation))
        x = case.evaluation.x[:n].cpu()
        worst, computed = search_sponges(meter, x, case.bounds.to("cpu"), self.steps, seed, ledger)
        at = trail(computed, POINTS)
        clean, found = meter.shares(x, ledger)[1].mean(), meter.shares(worst, ledger)[1].mean()
        summary = Summary(
            skips=meter.skips,
            steps=tuple(at),
            energy_clean=meter.energy(x, ledger),
            energy_worst=meter.energy(worst, ledger),
            nonzero_clean=min(1.0, float(clean)),
            nonzero_worst=min(1.0, float(found)),
        )
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "ids": np.asarray(case.ids[:n], np.int64),
            "computed": np.stack([computed[one] for one in at]),
            "crafted": worst.numpy(),
        }
        return Evidence(arrays, summary.model_dump(mode="json"), ledger=ledger)

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        """The records and the inputs found pass the file again."""
        stored, meter, bounds, wrong = evidence.arrays, _meter(case), case.bounds.to("cpu"), list[str]()
        n = len(stored["ids"])
        crafted = torch.from_numpy(np.array(stored["crafted"]))
        if not np.array_equal(stored["ids"], case.ids[:n]):
            return ["the search began at records that are not evaluated"]
        if meter.skips != evidence.summary["skips"]:
            wrong.append("whether the file skips anything is not as it was said")
        if ((crafted < bounds.low) | (crafted > bounds.high)).any():
            wrong.append("an input found lies outside of the bounds")
        for words, x, before in (("records", case.evaluation.x[:n].cpu(), 0), ("inputs found", crafted, -1)):
            if not np.allclose(meter.shares(x, Ledger())[0], stored["computed"][before], rtol=0, atol=SAME):
                wrong.append(f"the file does not compute so many products on the {words}")
        return wrong

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        computed, wrong = evidence.arrays["computed"], list[str]()
        if (np.diff(computed, axis=0) < -NATURAL).any():
            wrong.append("the search went on from inputs that compute less")
        if not evidence.summary["skips"] and not np.allclose(computed, computed[0], rtol=0, atol=SAME):
            wrong.append("a file that skips nothing computes more on some inputs")
        return wrong

    def measure(self, results: Results) -> list[Measurement]:
        model = results.model
        evidence = results.evidence(Ran(model.name))
        attack = "share of products computed, on inputs found beyond that on records"
        if evidence is None:
            return [Measurement(DENSITY_GAIN, attack, None, reason=results.why(Ran(model.name)))]
        found, computed, own = Summary.model_validate(evidence.summary), evidence.arrays["computed"], _gain(evidence)
        others = {one: there for one in model.baselines if (there := results.evidence(Ran(one))) is not None}
        level = "" if found.skips else (
            "The file skips nothing: every input costs the same, and zeros are multiplied like any number. "
        )  # fmt: skip
        return [
            Measurement(
                DENSITY_GAIN,
                attack,
                Mean(own, least=0.0),
                ThreatModel(
                    Access.WHITE_BOX,
                    "has the shipped file and sees its activations; sends any input within the bounds",
                    f"{self.steps} inputs tried for each of {len(own)} records",
                ),
                comparisons=tuple(
                    Comparison(name, Mean(own, least=0.0), Mean(_gain(there), least=0.0))
                    for name, there in others.items()
                    if len(_gain(there)) == len(own)
                ),
                curves={
                    "products computed": [
                        (float(step), Mean(row, least=0.0)) for step, row in zip(found.steps, computed, strict=True)
                    ]
                },
                quantities=_quantities(found, computed),
                notes=(
                    f"{level}Products computed: {100 * computed[0].mean():.1f} % on records, "
                    f"{100 * computed[-1].mean():.1f} % on the inputs found, {100 * computed[-1].max():.1f} % at most. "
                    "Energy is modelled from them; time was not measured.",
                ),
                flags=tuple(sorted(results.flags(model.name))),
            )
        ]

    def limits(self, scope: Scope) -> list[str]:
        return [
            "Sponge inputs are those that one search found; energy is modelled. How long a runtime takes may depend on "
            "an input in ways that products do not show."
        ]


def _meter(case: Case) -> Meter:
    """Raises NotApplicable: there is no ONNX file, or none whose work can be counted."""
    if not case.shipped:
        raise NotApplicable("the shipped bytes are not at hand")
    try:
        checked = check_onnx(case.shipped)
    except UnsafeInput:
        raise NotApplicable("not applicable: work is counted in ONNX files, and this file is none") from None
    return Meter(checked, case.assumptions, tuple(case.evaluation.x.shape[1:]))


def _gain(evidence: Evidence) -> Floats:
    gain: Floats = evidence.arrays["computed"][-1] - evidence.arrays["computed"][0]
    return gain


def _quantities(found: Summary, computed: Floats) -> tuple[Quantity, ...]:
    n = computed.shape[1]
    rows = [
        ("non-zero activations on records", found.nonzero_clean),
        ("non-zero activations on inputs found", found.nonzero_worst),
        ("modelled energy of a record, uJ", found.energy_clean),
        ("modelled energy of an input found, uJ", found.energy_worst),
    ]
    return tuple(Quantity(name, "mean", value, n) for name, value in rows if value is not None)


def search_sponges(
    meter: Meter, x: Tensor, bounds: Bounds, steps: int, seed: int, ledger: Ledger
) -> tuple[Tensor, list[Floats]]:
    """The inputs found, float32 like x, and of each step the share of products that the best so far computes, [r]."""
    stream = generator(seed, "sponge")
    best = x.clone()
    computed, natural = meter.shares(best, ledger)
    gone = [computed]
    for step in range(steps):
        pulse("step", step, steps)
        tried = _mutated(best, x, bounds, stream)
        more, rest = meter.shares(tried, ledger)
        better = more + NATURAL * rest > computed + NATURAL * natural
        best[torch.from_numpy(better)] = tried[torch.from_numpy(better)]
        computed, natural = np.where(better, more, computed), np.where(better, rest, natural)
        gone.append(computed)
    return best, gone


def _mutated(best: Tensor, records: Tensor, bounds: Bounds, stream: torch.Generator) -> Tensor:
    """One child of each: crossed with another's or drawn anew in a random share of its values, within the bounds."""
    n, shape = len(best), best.shape[1:]
    share = torch.tensor(CHANGED)[torch.randint(len(CHANGED), (n,), generator=stream)].view(n, *[1] * len(shape))
    mask = torch.rand(best.shape, generator=stream) < share
    mates = best[torch.randint(n, (n,), generator=stream)]
    low, high = bounds.low.expand(shape), bounds.high.expand(shape)
    noise = low + torch.rand(best.shape, generator=stream) * (high - low)
    nudged = bounds.clamp(best + 0.1 * (high - low) * torch.randn(best.shape, generator=stream))
    kind = torch.randint(3, (n,), generator=stream).view(n, *[1] * len(shape))
    drawn = torch.where(kind == 0, mates, torch.where(kind == 1, noise, nudged))
    if bounds.whole is not None:
        drawn = torch.where(bounds.whole, drawn.round(), drawn)
    child = torch.where(mask, drawn, best)
    return child if bounds.held is None else torch.where(bounds.held, records, child)
