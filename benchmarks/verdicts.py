"""Whether verdicts are right where the truth is known.

Planted truth: candidates that answer as a robust net on some records and as a weak one on a known share of the others,
200 samples of 600 records each, judged at once and in rounds (of 200, 400 and 600, with the error spent).
Symmetry: candidates that are their parent (the same export, and one whose logits are three times as large), for four
kinds of net, five seeds and radii from floor to ceiling.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Row, arguments, publish
from torch import Tensor, nn

REPETITIONS, RECORDS, LIMIT = 200, 600, -0.05
RADII = (0.01, 0.05, 0.1, 0.2, 0.4)
SEEDS = 5
WORDS = ("pass", "fail", "inconclusive")

Outcomes = np.ndarray[Any, Any]


class Series(nn.Module):
    """A digit's rows as a series, read by a GRU or a Transformer encoder."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.enter = kind, nn.Linear(8, 16)
        self.body = (
            nn.GRU(16, 16, batch_first=True)
            if kind == "gru"
            else nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.enter(x.flatten(1).view(-1, 8, 8))
        read = self.body(rows)
        answers: Tensor = self.head(read[0][:, -1] if self.kind == "gru" else read.mean(1))
        return answers


class Louder(nn.Module):
    """The same answers with logits three times as large."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = 3 * self.net(x)
        return answers


def trained(kind: str, seed: int) -> nn.Module:
    from crushproof.targets.data.digits import load_digits
    from crushproof.training.loop import Training, train
    from crushproof.training.networks import Mlp, digits_cnn

    data = load_digits()
    assert data.members is not None
    torch.manual_seed(seed)
    net = {"cnn": digits_cnn, "mlp": lambda: Mlp(64, 10, (48,)), "gru": lambda: Series("gru")}.get(
        kind, lambda: Series("transformer")
    )()
    return train(net, data.members, Training(epochs=8), seed=seed).eval()


def symmetry() -> tuple[list[Row], list[dict[str, Any]]]:
    """Every cell: verdict, and whether the change's interval contains 0."""
    from crushproof.audit.plan.plan import Plan
    from crushproof.audit.run import run_audit
    from crushproof.compression.deployment.onnx_export import to_onnx
    from crushproof.targets.data.digits import load_digits

    data = load_digits()
    attacks = [{"kind": "evasion", "records": 100, "epsilons": [radius]} for radius in RADII]
    cells: list[dict[str, Any]] = []
    for kind in ("cnn", "mlp", "gru", "transformer"):
        for seed in range(SEEDS):
            net = trained(kind, seed)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                for file, module in (("dense", net), ("same", net), ("louder", Louder(net).eval())):
                    (folder / f"{file}.onnx").write_bytes(to_onnx(module, data.shape))
                np.savez(folder / "data.npz", x_test=data.non_members.x, y_test=data.non_members.y)
                plan = Plan.model_validate(
                    {
                        "seed": seed,
                        "data": {"kind": "npz", "path": "data.npz", "bounds": [0, 1]},
                        "model": {"file": "dense.onnx"},
                        "candidates": {"same": {"file": "same.onnx"}, "louder": {"file": "louder.onnx"}},
                        "attacks": attacks,
                        "policy": "robustness",
                    }
                )
                audit = run_audit(plan, folder, folder / "out", workers=0)
            dense = {row.setting["epsilon"]: row for row in audit.findings if row.candidate == "dense"}
            for row in audit.findings:
                if row.candidate == "dense" or row.estimate is None:
                    continue
                parent = dense[row.setting["epsilon"]].estimate
                assert parent is not None
                cells.append(
                    {
                        "net": kind,
                        "seed": seed,
                        "candidate": row.candidate,
                        "epsilon": row.setting["epsilon"],
                        "parent": parent.estimate,
                        "parent_high": parent.high,
                        "verdict": row.verdict,
                        "change": row.changes[0].difference,
                        "contains": row.changes[0].low <= 0 <= row.changes[0].high,
                    }
                )
    setting = f"{len(cells)} cells: 4 nets x {SEEDS} seeds x {len(RADII)} radii x 2 candidates"
    floor = [cell for cell in cells if cell["parent_high"] <= -LIMIT]
    judged = [cell for cell in cells if cell["parent_high"] > -LIMIT]
    passed = f"{len(floor)} cells", _share(floor, "verdict", "pass"), "share"
    rows = [
        Row("is its parent: fails", setting, _share(cells, "verdict", "fail"), "share", target=0),
        Row("is its parent: passes on the floor", *passed, target=0),
        Row("is its parent: passes above", f"{len(judged)} cells", _share(judged, "verdict", "pass"), "share"),
        Row(
            "is its parent: interval contains 0",
            setting,
            _share(cells, "contains", True),
            "share",
            target=0.95,
            better="higher",
        ),
    ]
    return rows, cells


def _share(cells: list[dict[str, Any]], key: str, value: object) -> float | None:
    return sum(cell[key] == value for cell in cells) / len(cells) if cells else None


def outcomes() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which of the digits' non-members an adversarially trained and a plain net withstand at epsilon .1."""
    from crushproof.attacks.case import Case
    from crushproof.attacks.evasion.evasion import Evasion
    from crushproof.defenses.adversarial_training import AdversarialTraining
    from crushproof.targets.data.digits import load_digits
    from crushproof.targets.model import TorchTarget
    from crushproof.training.architecture import Architecture
    from crushproof.training.loop import Training, TrainingJob
    from crushproof.training.networks import digits_cnn
    from crushproof.training.trainer import BuiltinTrainer

    data = load_digits()
    assert data.members is not None
    plain = BuiltinTrainer(Training(epochs=9))
    hardened = AdversarialTraining(training={"epochs": 6, "learning_rate": 5e-3}).trainer(plain, data.bounds)
    found = []
    for trainer in (hardened, plain):
        job = TrainingJob.of_one(Architecture("cnn", digits_cnn), data.members, 0, torch.device("cpu"))
        net = trainer.fit(job)[0]
        case = Case(
            deployed=TorchTarget(net), twin=net, native=net, parent=None, evaluation=data.non_members,
            ids=np.arange(len(data.non_members)), attacker=data.attacker, bounds=data.bounds, classes=10,
        )  # fmt: skip
        attack = Evasion(epsilons=(0.1,), records=len(data.non_members))
        found.append(~attack.run(case, seed=0).arrays["worst/0.1"])
    return found[0], found[1]


def planted() -> tuple[list[Row], list[dict[str, Any]]]:
    """The verdict on mixtures whose true change is known, over samples of the records."""
    from crushproof.attacks.statistics.sequential import looks

    robust, weak = outcomes()
    loss, apart = float(weak.mean() - robust.mean()), float((weak != robust).mean())
    stream = np.random.default_rng(0)
    table = []
    for true in (0.06, 0.03, 0.0, -0.01, -0.02, -0.03, -0.04, -0.06, -0.07, -0.08, -0.10, -0.12, -0.13, -0.15, -0.2):
        share = abs(true / loss)
        fair = max(0.0, 0.15 - share * apart) / 2  # records lost and won alike, up to 15 % that differ in all
        for noise in (0.0, fair):
            pairs = [_sample(robust, weak, share, noise, stream) for _ in range(REPETITIONS)]
            if true > 0:
                pairs = [(parent, candidate) for candidate, parent in pairs]
            verdicts = [_verdict(candidate, parent, (RECORDS,))[0] for candidate, parent in pairs]
            rounds = [_verdict(candidate, parent, looks(RECORDS)) for candidate, parent in pairs]
            early = [verdict != "inconclusive" and n <= 0.6 * RECORDS for verdict, n in rounds]
            shares = {word: verdicts.count(word) / REPETITIONS for word in WORDS}
            table.append(
                {
                    "true_change": true,
                    "discordant": share * apart + 2 * noise,
                    **shares,
                    "in rounds": {word: sum(one == word for one, _ in rounds) / REPETITIONS for word in WORDS},
                    "decided with 60 % of the records": sum(early) / REPETITIONS,
                    "records": sum(n for _, n in rounds) / REPETITIONS,
                }
            )
    wrong = max(row["fail"] if row["true_change"] >= LIMIT else row["pass"] for row in table)
    rounds_wrong = max(row["in rounds"]["fail" if row["true_change"] >= LIMIT else "pass"] for row in table)
    far = [row for row in table if abs(row["true_change"] - LIMIT) >= 0.08 - 1e-9]
    clear = [row for row in table if abs(row["true_change"] - LIMIT) >= 0.05 - 1e-9 and row["discordant"] <= 0.151]
    setting = f"{len(table)} mixtures of a {robust.mean():.0%} and a {weak.mean():.0%} net, {REPETITIONS} x {RECORDS}"
    rows = [
        Row("planted truth: wrong verdicts, worst mixture", setting, wrong, "share", target=0.05),
        Row(
            "planted truth: inconclusive, worst mixture 5 points off the limit",
            f"{len(clear)} mixtures",
            max(row["inconclusive"] for row in clear),
            "share",
            target=0.2,
        ),
        Row("in rounds: wrong verdicts, worst mixture", setting, rounds_wrong, "share", target=0.05),
        Row(
            "in rounds: decided with 60 % of the records, 8 points off the limit",
            f"{len(far)} mixtures, the mean",
            sum(row["decided with 60 % of the records"] for row in far) / len(far),
            "share",
            target=0.5,
            better="higher",
        ),
        Row(
            "in rounds: the same, worst mixture",
            f"{len(far)} mixtures",
            min(row["decided with 60 % of the records"] for row in far),
            "share",
            better="higher",
        ),
    ]
    return rows, table


def _sample(
    robust: Outcomes, weak: Outcomes, share: float, noise: float, stream: np.random.Generator
) -> tuple[Outcomes, Outcomes]:
    """A candidate that is worse by a known share, and its parent, on a sample of the records."""
    chosen = stream.integers(0, len(robust), RECORDS)
    parent = robust[chosen]
    mixed = np.where(stream.random(RECORDS) < share, weak[chosen], parent)
    rate = parent.mean()
    lost = parent & (stream.random(RECORDS) < noise / max(rate, 1e-9))
    won = ~parent & (stream.random(RECORDS) < noise / max(1 - rate, 1e-9))
    return (mixed & ~lost) | won, parent


def _verdict(candidate: Outcomes, parent: Outcomes, counts: tuple[int, ...]) -> tuple[str, int]:
    """The verdict after the first of these numbers of records that gives one, and which that was."""
    from crushproof.attacks.statistics.rates import paired_change
    from crushproof.attacks.statistics.sequential import level_at
    from crushproof.audit.verdict.judging import judge

    for look, count in enumerate(counts):
        change = paired_change(candidate[:count], parent[:count], level_at(counts, look))
        verdict = judge(change.low, change.high, LIMIT, "higher")
        if verdict != "inconclusive":
            break
    return verdict, count


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    planted_rows, mixtures = planted()
    same_rows, cells = symmetry()
    publish([*planted_rows, *same_rows], options.json, {"mixtures": mixtures, "cells": cells})


if __name__ == "__main__":
    main()
