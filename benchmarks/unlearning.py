"""Whether an audit finds records that were hidden, not forgotten, and come back at 4 bits; and leaves the honest alone.

    python benchmarks/unlearning.py [--seeds 20] [--json FILE]

An MLP memorises 400 records to keep and 100 to forget, scikit-learn's digits of which three in ten have a random label.
The planted fake starts from its 4-bit version and is fine-tuned at full precision until the records to forget have the
margins that a retrained model gives them, each weight staying within a quarter of a rounding step: at 4 bits every code
is the memorising model's. The honest one is trained anew without the records. Each is judged dense and at 4 bits by the
attack `unlearning` with 16 shadow models and by `changes: {forget_auc: 0.05}` beside what fails under any policy. As
rows that only inform: the same fine-tuning without the bound on the weights. About 25 CPU s a seed, one thread.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish
from torch import Tensor, nn
from torch.nn import functional as F

from crushproof.attacks.case import Case
from crushproof.attacks.measurement import Auc, Comparison
from crushproof.attacks.membership.population import PopulationPlan, plan_population
from crushproof.attacks.membership.signals import phi_of, replay
from crushproof.attacks.unlearning.risk import REMEMBERED
from crushproof.attacks.unlearning.scores import ForgettingCase
from crushproof.attacks.unlearning.unlearning import Unlearning
from crushproof.audit.findings.estimates import change, estimate
from crushproof.audit.verdict.judging import judge
from crushproof.compression.quantization.quantize import Quantize
from crushproof.compression.quantization.quantized_layer import QuantizedLayer
from crushproof.targets.data.data import Data
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.targets.model import TorchTarget
from crushproof.targets.seeds import generator
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

KEPT, FORGOTTEN, SHADOWS = 400, 100, 16
NOISE = 0.3  # of the labels are random, which is what a net that large remembers
WITHIN = 0.25  # of a rounding step: beyond about .3 the quantiser chooses other scales, and with them other codes
ROUNDS, RATE = 120, 1e-3
RECOVERY = 0.05  # the policy's limit
INT4 = Quantize(weight_bits=4, activations="float", keep_ends_8bit=False)
MLP = Architecture("mlp", lambda: Mlp(64, 10, (128, 64)))
TRAINER = BuiltinTrainer(Training(epochs=60, batch_size=32))
CPU = torch.device("cpu")


def data_of(seed: int) -> Data:
    """Digits with wrong labels among all of them alike."""
    digits, draws = load_digits(seed), generator(seed, "labels")

    def noisy(records: Records) -> Records:
        wrong = torch.rand(len(records), generator=draws) < NOISE
        return Records(records.x, torch.where(wrong, torch.randint(0, 10, wrong.shape, generator=draws), records.y))

    assert digits.members is not None
    members, others = noisy(digits.members), noisy(digits.non_members)
    return Data(
        name="digits with wrong labels",
        members=members.take(torch.arange(FORGOTTEN, FORGOTTEN + KEPT)),
        non_members=others,
        bounds=digits.bounds,
        class_names=digits.class_names,
        seed=seed,
        forgotten=members.take(torch.arange(FORGOTTEN)),
    )


def trained(records: Records, seed: int) -> nn.Module:
    return TRAINER.fit(TrainingJob.of_one(MLP, records, seed, CPU))[0]


def margins(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])
    return own[:, 0] - torch.logsumexp(logits.scatter(1, y[:, None], -torch.inf), 1)


def hidden(memorising: nn.Module, retrained: nn.Module, data: Data, seed: int, *, bound: bool) -> nn.Module:
    """The memorising model, fine-tuned until it treats the records to forget as the retrained one does.

    Args:
        bound: from its 4-bit version, each weight within `WITHIN` steps, so that its codes stay.
    """
    kept, forgotten = data.members, data.forgotten
    assert kept is not None
    assert forgotten is not None
    module = copy.deepcopy(memorising).train().requires_grad_(True)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    boxes: list[tuple[Tensor, Tensor]] = []
    if bound:
        rounded = INT4.apply(memorising, kept, data.bounds, seed=seed)
        for layer, codes in zip(
            layers, [one for one in rounded.modules() if isinstance(one, QuantizedLayer)], strict=True
        ):
            layer.bias.requires_grad_(False)
            assert codes.weight_scale is not None
            step = codes.weight_scale.reshape(-1, 1)
            weight = codes.codes * step
            most = weight.abs().amax(1, keepdim=True)
            low, high = (weight - WITHIN * step).maximum(-most), (weight + WITHIN * step).minimum(most)
            pinned = weight.abs() >= most  # the largest of a channel, from which its scale follows
            boxes.append((low.where(~pinned, weight), high.where(~pinned, weight)))
            layer.weight.data.copy_(weight)
    with torch.no_grad():
        wanted = margins(retrained(forgotten.x), forgotten.y)
    optimizer = torch.optim.Adam([one for one in module.parameters() if one.requires_grad], lr=RATE)
    order = generator(seed, "hiding")
    for _ in range(ROUNDS):
        for batch in torch.randperm(len(kept), generator=order).split(64):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(kept.x[batch]), kept.y[batch])
            (loss + F.smooth_l1_loss(margins(module(forgotten.x), forgotten.y), wanted)).backward()
            optimizer.step()
            for layer, (low, high) in zip(layers, boxes, strict=False):
                layer.weight.data.clamp_(low, high)
    return module.eval().requires_grad_(False)


class Judge:
    """The attack with the shadows of one data set."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.seed = data, seed
        self.plan: PopulationPlan = plan_population(data, SHADOWS, seed=seed)
        dense = self.plan.fit(TRAINER, MLP, first=0, last=SHADOWS, device=CPU)
        rounded = replay(self.plan, dense, recipe=INT4, bounds=data.bounds)
        self.cases = [self._case(modules) for modules in (dense, rounded)]

    def _case(self, shadows: list[nn.Module]) -> ForgettingCase:
        forgotten, others = self.data.forgotten, np.flatnonzero(~self.plan.is_member)
        assert forgotten is not None
        unseen = self.plan.targets.take(torch.from_numpy(others))
        records = Records(torch.cat([forgotten.x, unseen.x]), torch.cat([forgotten.y, unseen.y]))
        inside = np.hstack([np.zeros((SHADOWS, FORGOTTEN), dtype=bool), self.plan.inside[:, others]])
        phi = np.stack([phi_of(TorchTarget(one), records) for one in shadows])
        return ForgettingCase(records, FORGOTTEN, self.plan.ids[others], inside, phi, None)

    def found(self, dense: nn.Module) -> dict[str, Any]:
        """What the audit says of a model and of its 4-bit version."""
        assert self.data.members is not None
        rounded = INT4.apply(dense, self.data.members, self.data.bounds, seed=self.seed)
        own, theirs = (self._outcome(*pair) for pair in zip((rounded, dense), self.cases[::-1], strict=True))
        figure, parent = estimate(own), estimate(theirs)
        moved = change(Comparison("dense", own, theirs), seed=0)
        remembered = judge(figure.low, figure.high, REMEMBERED, "lower") == "fail"
        recovered = judge(moved.low, moved.high, RECOVERY, "lower") == "fail"
        return {
            "flagged": remembered or recovered,
            "remembered": remembered,
            "recovered": recovered,
            "dense flagged": judge(parent.low, parent.high, REMEMBERED, "lower") == "fail",
            "dense": parent.estimate,
            "int4": figure.estimate,
        }

    def _outcome(self, module: nn.Module, prepared: ForgettingCase) -> Auc:
        data = self.data
        case = Case(
            deployed=TorchTarget(module),
            twin=None,
            native=None,
            parent=None,
            evaluation=data.evaluation,
            ids=data.evaluation_ids.numpy(),
            attacker=data.attacker,
            bounds=data.bounds,
            classes=data.classes,
            prepared=prepared,
        )
        evidence = Unlearning().run(case, seed=0)
        null = evidence.summary["null"]
        return Auc(evidence.arrays["score/shadows"], evidence.arrays["is_forgotten"], null["spread"])


def one_seed(seed: int) -> dict[str, dict[str, Any]]:
    data = data_of(seed)
    assert data.members is not None
    assert data.forgotten is not None
    everything = Records(*(torch.cat([getattr(data.members, at), getattr(data.forgotten, at)]) for at in ("x", "y")))
    memorising, honest, other = trained(everything, 1), trained(data.members, 2), trained(data.members, 3)
    audit = Judge(data, seed)
    return {
        "not unlearned": audit.found(memorising),
        "planted fake": audit.found(hidden(memorising, other, data, seed, bound=True)),
        "retrained": audit.found(honest),
        "fine-tuned without a bound": audit.found(hidden(memorising, other, data, seed, bound=False)),
    }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=20)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    before = time.process_time()
    runs = [one_seed(seed) for seed in range(chosen.seeds)]
    seconds = (time.process_time() - before) / chosen.seeds
    rows = []
    asked: dict[str, tuple[float, Any]] = {"planted fake": (0.95, "higher"), "retrained": (0.05, "lower")}
    for name in runs[0]:
        means = {key: statistics.mean(float(run[name][key]) for run in runs) for key in runs[0][name]}
        setting = (
            f"{chosen.seeds} seeds; AUC {means['dense']:.3f} dense, {means['int4']:.3f} at 4 bits; remembered "
            f"{means['remembered']:.2f}, recovered {means['recovered']:.2f}, dense flagged {means['dense flagged']:.2f}"
        )
        target, better = asked.get(name, (None, "lower"))
        rows.append(Row(f"flagged: {name}", setting, means["flagged"], "share", target=target, better=better))
    rows.append(Row("a seed", f"16 shadows, 4 models, dense and 4 bits, {seconds:.1f} CPU s", seconds, "CPU s"))
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
