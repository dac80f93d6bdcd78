"""Extraction: how faithful a copy of a digits net is after 100 and 300 queries, by what the attacker sees.

Two targets: the CNN on which the peers' attacks are timed (digits at 28x28, 105,866 parameters) and the built-in
audit's (8x8, 10,810 parameters, residual). Mean of five seeds, each with its own halves, target and copy; the attacker
owns 299 records, 600 others judge. Beside it the processor time of a call, and of the attack of an audit on one model.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from contract import Row, arguments, cpu_seconds, publish
from torch import nn
from torch.nn import functional as F

SEEDS = 5
TARGETS = {100: 0.94, 300: 0.975}  # of the attacker who sees scores


def peers_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def large(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=28, mode="bilinear", align_corners=False)


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    from crushproof.attacks.case import Case
    from crushproof.attacks.extraction.extract import extract
    from crushproof.attacks.extraction.extraction import Extraction
    from crushproof.targets.data.digits import load_digits
    from crushproof.targets.data.records import Records
    from crushproof.targets.model import TorchTarget
    from crushproof.training.architecture import Architecture
    from crushproof.training.loop import Training, TrainingJob, train_many
    from crushproof.training.networks import digits_cnn

    rows: list[Row] = []
    for net, build, shape in (("peers' CNN", peers_cnn, large), ("built-in CNN", digits_cnn, lambda x: x)):
        found: dict[tuple[str, int], list[float]] = {}
        attacks, calls = list[float](), list[float]()
        for seed in range(SEEDS):
            data = load_digits(seed)
            assert data.members is not None
            members, evaluation, attacker = (
                Records(shape(some.x), some.y) for some in (data.members, data.evaluation, data.attacker)
            )
            job = TrainingJob.of_one(Architecture(net, build), members, 1000 + seed, torch.device("cpu"))
            target = train_many(job, Training(epochs=9))[0]

            def one(
                answers: Any, budget: int, seed: int = seed, target: nn.Module = target, found: Any = found,
                pool: torch.Tensor = attacker.x, x: torch.Tensor = evaluation.x,
            ) -> None:  # fmt: skip
                extracted = extract(target, pool, budget=budget, answers=answers, seed=seed)
                found.setdefault((answers, budget), []).append(extracted.fidelity(x))

            for answers in ("scores", "rounded", "top1", "labels"):
                for budget in TARGETS:
                    seconds = cpu_seconds(lambda answers=answers, budget=budget, one=one: one(answers, budget))
                    if answers == "scores" and budget == 300:
                        calls.append(seconds)
            if seed > 1:
                continue  # times differ little from one to the next
            frozen = target.requires_grad_(False)
            case = Case(
                TorchTarget(frozen), frozen, frozen, frozen, evaluation, data.evaluation_ids.numpy(), attacker,
                data.bounds, data.classes,
            )  # fmt: skip
            attacks.append(cpu_seconds(lambda case=case, seed=seed: Extraction().run(case, seed=seed)))
        for (answers, budget), fidelity in found.items():
            rows.append(
                Row(
                    f"fidelity, {net}",
                    f"{budget} queries, {answers}, lowest of {SEEDS} seeds {min(fidelity):.3f}",
                    statistics.mean(fidelity),
                    "share",
                    target=TARGETS[budget] if answers == "scores" else None,
                    better="higher",
                )
            )
        rows.append(Row(f"extract(), {net}", "300 queries, scores", statistics.median(calls), "CPU s"))
        rows.append(Row(f"attack of an audit, {net}", "5 copies, transfer", statistics.median(attacks), "CPU s"))
    publish(rows, options.json)


if __name__ == "__main__":
    main()
