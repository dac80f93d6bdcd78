"""An adversarial patch (Brown et al. 2017, arXiv:1712.09665): one printed square, anywhere in any image."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ..targets.certificate import AGREEMENT
from ..targets.data.records import Bounds, Records
from ..targets.errors import NotApplicable
from ..targets.form import Array, Arrays, Document, Form, Layout, require
from ..targets.model import device_of, records_at_once
from ..targets.seeds import derive, generator, uniform
from ..targets.steps import Arrays as Kept
from .access import Access, Flag, Ledger
from .attack import ATTACKS, Attack, Run
from .case import Case, Evidence
from .effort import Effort
from .evasion.ascent.gradients import Gradients
from .evasion.blocks import COPIES, kept_at_cost
from .evasion.categories import without_ball
from .measurement import Comparison, Measurement, Rate, ThreatModel
from .preparation import Audited, Basis, Ran, Results, Scope
from .risk import Chart, Metric, Risk

SMALLEST = 4  # pixels of an image's side, below which no place is another
FIRST_STEP, LAST_STEP = 0.1, 0.01  # how far each value of the patch moves, of its range

PATCH_ACCURACY = Metric(
    name="patch_accuracy",
    title="Accuracy under a patch",
    subject="accuracy under a patch",
    unit="percent",
    better="higher",
    meaning="Share of records classified correctly both as they are and with an adversarial patch at a random place.",
)
PATCH = Risk(
    name="patch",
    title="Adversarial patch",
    question="Can somebody hold a printed sign into the picture and get a wrong answer?",
    wants="To make the model answer wrongly whatever it sees, by something that is printed once.",
    harm="Wrong decisions for whoever carries the print: no access to the single input is needed.",
    advice=(
        "Prefer a candidate that passes; otherwise train with patches or crop what covers too much of the answer.",
        "Where a camera is in the open, let a second sensor or a person confirm what matters.",
    ),
    reading="Higher is safer. The patch was crafted on each model itself, from records of the attacker's own.",
    chart=Chart(x="share of the image", curve="accuracy"),
    taxonomy={
        "NIST AI 100-2": ("NISTAML.022",),
        "MITRE ATLAS": ("AML.T0015", "AML.T0043"),
        "OWASP ML": ("ML01",),
        "NIST AI RMF": ("MEASURE 2.7",),
    },
)


class Summary(Document):
    """`Evidence.summary`: the patch's height and width in pixels."""

    height: PositiveInt
    width: PositiveInt


@ATTACKS.register
class Patch(Attack):
    """One adversarial patch for all images, at random places (Brown et al. 2017, arXiv:1712.09665).

    Its values may be any within the bounds, which is no ball around a record: the figure is one of its own. It is
    crafted by gradients on the attacker's own records, in expectation over places, and then laid over each evaluated
    record once, at a place that follows from the seed and the record's id.

    Evidence arrays, n records each in the order of `ids`: `ids` int64; `clean_correct` and `correct` bool (the latter
    under the patch); `fails` bool, either is not; `places` int64 [n, 2], row and column of the patch's corner;
    `adversarial` float32 [n, *shape]; and `patch` float32 [*channels, height, width].
    """

    risk: ClassVar[Risk] = PATCH
    metrics: ClassVar[tuple[Metric, ...]] = (PATCH_ACCURACY,)

    kind: Literal["patch"] = "patch"
    share: Annotated[float, Field(gt=0, le=0.5)] = Field(0.1, description="of the image's area that the patch covers")
    records: PositiveInt = Field(300, le=1_000_000, description="evaluated, at most")
    crafted_on: PositiveInt = Field(200, le=100_000, description="records of the attacker's own, at most")
    steps: PositiveInt = Field(60, le=100_000, description="gradient steps, each over all of those, at new places")

    @property
    def effort(self) -> Effort:
        return Effort(answers=2 * self.records, gradients=self.crafted_on * self.steps)

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The patch's height and width, in pixels of an image [*channels, height, width]."""
        high, wide = (1, 1, *shape)[-2:]
        return max(1, round(math.sqrt(self.share) * high)), max(1, round(math.sqrt(self.share) * wide))

    def unfit(self, scope: Scope) -> str | None:
        data = scope.data
        if len(data.shape) < 3 or min(data.shape[-2:]) < SMALLEST or data.structure.tokens:
            return "no images"
        return "inputs that are no pixels" if without_ball(data) else None

    def runs(self, model: Audited, scope: Scope) -> tuple[Run, ...]:
        effort = Effort(self.effort.answers, self.effort.gradients, through=model.name)
        return (Run(effort=effort, uses_parent=False),)

    def run(self, case: Case, *, seed: int) -> Evidence:
        shape = tuple(case.evaluation.x.shape[1:])
        if len(shape) < 3 or min(shape[-2:]) < SMALLEST or case.bounds.held is not None or case.structure.tokens:
            raise NotApplicable("not applicable: a patch lies on an image, and these inputs are none")
        if case.twin is None:
            raise NotApplicable("a patch is crafted by gradients, and there is no differentiable module")
        if len(case.attacker) == 0:
            raise NotApplicable("the attacker has no records of its own to craft a patch on")
        ledger, (height, width) = Ledger(), self.size(shape)
        device = device_of(case.twin, case.evaluation.x.device)
        own = case.attacker.take(torch.arange(min(self.crafted_on, len(case.attacker)))).to(device)
        compute = partial(self._crafted, case.twin, own, case.bounds.to(device), derive(seed, "patch"))
        form = {"patch": Array("float32", (*shape[:-2], height, width))}
        patch = kept_at_cost("patch", ledger, compute, form)["patch"]
        count = min(self.records, len(case.evaluation))
        x, y, ids = case.evaluation.x[:count], case.evaluation.y[:count], np.asarray(case.ids[:count], dtype=np.int64)
        places = places_of(uniform(derive(seed, "places"), ids, (2,)), shape, (height, width))
        adversarial = laid(x, torch.from_numpy(np.array(patch)).to(x.device), places.to(x.device))
        ledger.queries += 2 * count
        clean, correct = ((case.deployed.logits(some).argmax(1) == y).cpu().numpy() for some in (x, adversarial))
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "ids": ids,
            "clean_correct": clean,
            "correct": correct,
            "fails": ~(clean & correct),
            "places": places.numpy(),
            "adversarial": adversarial.cpu().numpy(),
            "patch": patch,
        }
        return Evidence(arrays, {"height": height, "width": width}, ledger=ledger)

    def _crafted(self, module: nn.Module, records: Records, bounds: Bounds, seed: int, ledger: Ledger) -> Kept:
        """`patch`: after the last of the steps, which ascend the cross-entropy of the attacker's records."""
        shape, size = tuple(records.x.shape[1:]), self.size(tuple(records.x.shape[1:]))
        blank = torch.zeros(1, *shape, device=records.x.device)
        low, scale = ((blank + one)[0, ..., : size[0], : size[1]] for one in (bounds.low, bounds.scale))
        first = torch.rand(low.shape, generator=generator(seed, "first")).to(low.device)
        patch, model = low + scale * first, Gradients(module, "ce", ledger)
        batch = records_at_once(records.x[:1], module, copies=COPIES)
        for step in range(self.steps):
            noise = torch.rand(len(records), 2, generator=generator(seed, "places", step))
            places, uphill = places_of(noise, shape, size).to(low.device), torch.zeros_like(patch)
            for some in torch.arange(len(records), device=low.device).split(batch):
                gradient = model(laid(records.x[some], patch, places[some]), records.y[some]).gradient
                uphill += under(gradient.nan_to_num(0.0, 0.0, 0.0), places[some], size).sum(0)
            stride = FIRST_STEP + (LAST_STEP - FIRST_STEP) * step / self.steps
            patch = torch.minimum(torch.maximum(patch + stride * scale * uphill.sign(), low), low + scale)
            if bounds.whole is not None:
                patch = patch.round()
        return {"patch": patch.cpu().numpy()}

    def form(self, model: Audited, scope: Scope) -> Form:
        count, (height, width) = min(self.records, len(scope.data.evaluation_ids)), self.size(scope.data.shape)
        outcomes = Array("bool", (count,))
        layout: Layout = {
            "ids": Array("int64", (count,)),
            "clean_correct": outcomes,
            "correct": outcomes,
            "fails": outcomes,
            "places": Array("int64", (count, 2), low=0),
            "adversarial": Array("float32", (count, *scope.data.shape)),
            "patch": Array("float32", (*scope.data.shape[:-2], height, width)),
        }

        def holds(summary: Summary, arrays: Arrays, files: Any) -> None:
            require((summary.height, summary.width) == (height, width), "a patch of another size")
            ids = scope.data.evaluation_ids.numpy()[:count]
            require(np.array_equal(arrays["ids"], ids), "ids are not those of the records")
            fails = ~(arrays["clean_correct"] & arrays["correct"])
            require(np.array_equal(arrays["fails"], fails), "who fails does not follow from the answers")

        return Form(Summary, layout, holds=holds)

    def measure(self, results: Results) -> list[Measurement]:
        model, scope = results.model, results.scope
        evidence, words = results.evidence(Ran(model.name)), "a patch of its own at a random place, once per record"
        if evidence is None:
            return [Measurement(PATCH_ACCURACY, words, None, reason=results.why(Ran(model.name)))]
        height, width = evidence.summary["height"], evidence.summary["width"]
        own, flags = Rate(~evidence.arrays["fails"]), results.flags(model.name)
        if evidence.agreement is not None and evidence.agreement < AGREEMENT:
            flags = flags | {Flag.TWIN_DISAGREES.value}
        comparisons = [
            Comparison(name, own, Rate(~theirs.arrays["fails"]), flags=tuple(sorted(results.flags(name))))
            for name in model.baselines
            if (theirs := results.evidence(Ran(name))) is not None
        ]
        size = f"{height} x {width} of {scope.data.shape[-2]} x {scope.data.shape[-1]} pixels"
        return [
            Measurement(
                PATCH_ACCURACY,
                words,
                own,
                ThreatModel(
                    Access.WHITE_BOX,
                    "has the shipped bytes (and so a differentiable twin) and records of its own",
                    f"one patch of {size} for all images, of any values, at a place left to chance",
                ),
                setting={"patch": size},
                available=len(scope.data.evaluation_ids),
                comparisons=tuple(comparisons),
                curves={"accuracy": [(0.0, Rate(evidence.arrays["clean_correct"])), (self.share, own)]},
                flags=tuple(sorted(flags)),
                notes=("Each model faces the patch that was crafted on it. Light, angle and print are not simulated.",),
            )
        ]

    def limits(self, scope: Scope) -> list[str]:
        return ["Accuracy under a patch is of one patch and one place per record: a better patch may exist."]

    def asked_again(self, evidence: Evidence, case: Case) -> list[str]:
        arrays, place = evidence.arrays, {int(one): row for row, one in enumerate(case.ids)}
        rows = [place.get(int(one)) for one in arrays["ids"]]
        if None in rows:
            return ["records were attacked that are none to be evaluated"]
        records = case.evaluation.take(torch.tensor(rows, dtype=torch.int64))
        patch, places = (torch.from_numpy(np.array(arrays[name])) for name in ("patch", "places"))
        adversarial = torch.from_numpy(np.array(arrays["adversarial"])).to(records.x.device)
        if not torch.equal(laid(records.x, patch.to(records.x.device), places.to(records.x.device)), adversarial):
            return ["the stored inputs are not the records with the patch on them"]
        found = []
        for name, x in (("clean_correct", records.x), ("correct", adversarial)):
            right = (case.deployed.logits(x).argmax(1) == records.y).cpu().numpy()
            if (off := int((right != arrays[name]).sum())) > 0:
                found.append(f"{off} of {len(rows)} answers are others than `{name}` has them")
        return found

    def follows(self, evidence: Evidence, basis: Basis) -> list[str]:
        arrays = evidence.arrays
        if basis.contradicted(arrays["ids"], arrays["clean_correct"], arrays["clean_correct"]):
            return ["the records that the model classifies right are others"]
        return []


def places_of(noise: Tensor, shape: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """int64 [n, 2]: where in an image of `shape` the corner of a patch of `size` lies, from noise [n, 2] in [0, 1)."""
    room = torch.tensor([shape[-2] - size[0] + 1, shape[-1] - size[1] + 1])
    return torch.minimum((noise.cpu() * room).long(), room - 1)


def laid(x: Tensor, patch: Tensor, places: Tensor) -> Tensor:
    """x [n, *channels, h, w] with the patch [*channels, height, width] on it, its corner at places [n, 2]."""
    covered = x.clone()
    height, width = patch.shape[-2:]
    for image, (row, column) in zip(covered, places.tolist(), strict=True):
        image[..., row : row + height, column : column + width] = patch
    return covered


def under(x: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, *channels, height, width]: the values of x [n, *channels, h, w] that a patch covers."""
    return torch.stack([
        image[..., row : row + size[0], column : column + size[1]]
        for image, (row, column) in zip(x, places.tolist(), strict=True)
    ])  # fmt: skip
