"""Whether property inference tells a share that a model gives away, and nothing where there is nothing to tell.

    python benchmarks/property_inference.py [--seeds 20] [--json FILE]

Tables of six numbers and a 0/1 column, 800 members of which 35 % have it, 800 others of which half do. Planted: with
the property another number says the class than without it. Null: the property is independent of all else. The attack
`property-inference` runs the whole way with 16 models at each share (an MLP, 8 epochs), half of them held out, on the
dense model and on its 4-bit version; found is an interval above one half, and chance is covered where it holds one
half. The share read of the audited model itself is held against the truth. About 3 CPU s a seed, one thread.
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish

from crushproof.attacks.case import Case
from crushproof.attacks.property_inference.measure import measure_property
from crushproof.attacks.property_inference.property_inference import PropertyInference
from crushproof.attacks.property_inference.telling import estimated
from crushproof.audit.findings.estimates import estimate
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import Mlp
from crushproof.training.trainer import BuiltinTrainer

N, TRUE, USUAL, COLUMN = 800, 0.35, 0.5, 5
CPU = torch.device("cpu")
INT4 = Quantize(weight_bits=4, activations="float", keep_ends_8bit=False)


class Parent:
    """A dense model as an attacker knows it."""

    name, hardened = "dense", None
    architecture = Architecture("mlp", lambda: Mlp(6, 2, (16,)))
    trainer = BuiltinTrainer(Training(epochs=8))

    def side_by_side(self, device: torch.device) -> int:
        return self.trainer.side_by_side(self.architecture, device)


def table(seed: int, share: float, planted: bool) -> Records:
    rng = np.random.default_rng(seed)
    x = rng.random((N, 6)).astype(np.float32)
    x[:, COLUMN] = rng.random(N) < share
    says = np.where((x[:, COLUMN] > 0) & planted, x[:, 1], x[:, 0]) + 0.3 * rng.standard_normal(N)
    return Records(torch.from_numpy(x), torch.from_numpy((says > 0.5).astype(np.int64)))


def audited(seed: int, planted: bool) -> dict[str, Any]:
    """What the attack says of the dense model and of its 4-bit version."""
    members, others = table(2 * seed, TRUE, planted), table(2 * seed + 1, USUAL, planted)
    data = Data("table", members, others, Bounds.of(0, 1), ("no", "yes"), seed=seed)
    attack, parent, made = PropertyInference(column=COLUMN), Parent(), dict[Any, Any]()
    dense = parent.trainer.fit(TrainingJob.of_one(parent.architecture, members, seed, CPU))[0]
    file = to_onnx(dense, (6,))
    scope: Any = SimpleNamespace(data=data, seed=seed, device="cpu", shadow_notes=(), shadows_differ=False)
    inputs: Any = SimpleNamespace(
        scope=scope,
        device=CPU,
        prepared=made.__getitem__,
        case=lambda name: SimpleNamespace(shipped=file),
        weights=lambda name: dense,
    )
    found: dict[str, Any] = {}
    for name, recipe in (("dense", None), ("int4", INT4)):
        model: Any = SimpleNamespace(name=name, parent=parent, recipe=recipe, undeclared=False, baselines=())
        (run,) = attack.runs(model, scope)
        told: Any = run.needs[0]
        for need in (*told.needs, told):
            if need not in made:
                made[need] = need.compute(inputs)
        module = dense if recipe is None else recipe.apply(dense, members, data.bounds, seed=seed)
        assert run.prepare is not None
        case = Case(
            deployed=TorchTarget(module), twin=None, native=None, parent=None, evaluation=data.evaluation,
            ids=data.evaluation_ids.numpy(), attacker=data.attacker, bounds=data.bounds, classes=2,
            shipped=file if recipe is None else to_onnx(module, (6,)), prepared=run.prepare(inputs),
        )  # fmt: skip
        evidence = attack.run(case, seed=seed)
        results: Any = SimpleNamespace(
            model=model, scope=scope, level=0.95, evidence=lambda ran, it=evidence: it, flags=lambda name: set()
        )
        (row,) = measure_property(results, None)
        assert row.outcome is not None
        part = evidence.summary["parts"][0]
        own = float(evidence.arrays[f"own/{part}"][0])
        found[name] = (
            estimate(row.outcome),
            estimated(own, evidence.arrays[f"read/{part}"], evidence.arrays["share"]),
            part,
        )
    return found


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=20)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for planted in (True, False):
        before = time.process_time()
        runs = [audited(seed, planted) for seed in range(chosen.seeds)]
        seconds = (time.process_time() - before) / chosen.seeds
        for name in ("dense", "int4"):
            told = [run[name][0] for run in runs]
            mean = statistics.mean(one.estimate for one in told)
            low, high = min(one.estimate for one in told), max(one.estimate for one in told)
            scores = sum(run[name][2] == "scores" for run in runs)
            setting = (
                f"{name}, {chosen.seeds} seeds; told right {mean:.2f} ({low:.2f} to {high:.2f}), by scores {scores}"
            )
            if planted:
                share = statistics.mean(float(one.low > 0.5) for one in told)
                rows.append(Row("planted: found", setting, share, "share", target=0.9, better="higher"))
                own = [run[name][1] for run in runs]
                covered = statistics.mean(float(one <= TRUE <= other) for _, one, other in own)
                width = statistics.mean(other - one for _, one, other in own)
                off = statistics.mean(abs(one - TRUE) for one, _, _ in own)
                setting = f"{name}; mean width {width:.2f}, off by {off:.2f} on average"
                rows.append(Row("planted: interval of its own share holds the truth", setting, covered, "share"))
            else:
                share = statistics.mean(float(one.low <= 0.5 <= one.high) for one in told)
                rows.append(Row("null: chance covered", setting, share, "share", target=0.9, better="higher"))
        rows.append(Row("a seed", "32 models, dense and 4 bits", seconds, "CPU s"))
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
