"""What compression under stated noise costs of accuracy and of epsilon, on scikit-learn's digits.

    python benchmarks/private_compression.py [--seeds 3] [--json FILE]

The residual CNN (group norm) is trained by DP-SGD at epsilon 8 on 898 records, and compressed: without records, with
noise, and with records as they are (void). Rows are means over seeds: accuracy on the 899 others, and one epsilon of
training and compression by PRV, held against dp-accounting's PLD within 1 %.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from contract import Row, parser, publish

from crushproof.compression.recipe import RECIPES
from crushproof.defenses.dp_sgd import DpSgd
from crushproof.targets.data.digits import load_digits
from crushproof.targets.model import TorchTarget, accuracy
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob
from crushproof.training.networks import digits_cnn
from crushproof.training.trainer import BuiltinTrainer

PRIVATE = {"epochs": 6, "batch_size": 256, "learning_rate": 2e-3, "private": {"noise_multiplier": 3.0}}
PLAIN = {"epochs": 6, "batch_size": 256, "learning_rate": 2e-3}
DISTILLED = {"epochs": 24, "batch_size": 256, "learning_rate": 0.02, "private": {"noise_multiplier": 2.0}}
NOISED = {"importance": "taylor", "score_noise": 4.0}
INT8 = {"kind": "quantize", "calibration_records": 898}
PRUNED = {"kind": "prune", "sparsity": 0.6}
ALL = {"kind": "chain", "steps": [{**PRUNED, **NOISED, "fine_tune": PRIVATE}, {**INT8, "calibration_noise": 4.0}]}
RECIPES_BY_NAME: dict[str, Any] = {
    "int8, ranges of noise": {**INT8, "calibration_inputs": "noise"},
    "int8, noised ranges": {**INT8, "calibration_noise": 4.0},
    "int8, ranges (void)": INT8,
    "prune60, magnitude": PRUNED,
    "prune60, noised scores": {**PRUNED, **NOISED},
    "prune60, scores (void)": {**PRUNED, "importance": "taylor"},
    "prune60, magnitude, private fine-tuning": {**PRUNED, "fine_tune": PRIVATE},
    "prune60, magnitude, fine-tuning (void)": {**PRUNED, "fine_tune": PLAIN},
    "distilled to half width (void)": {"kind": "distill", "training": {**DISTILLED, "batch_size": 64, "private": None}},
    "distilled to half width by DP-SGD": {"kind": "distill", "temperature": 1, "training": DISTILLED},
    "the same without a teacher": {"kind": "distill", "alpha": 0, "training": DISTILLED},
    "noised scores, private fine-tuning, int8 with noised ranges": ALL,
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    data, defense = load_digits(), DpSgd()
    members = data.members
    assert members is not None
    architecture = Architecture.like(defense.adapt(digits_cnn()), "digits_cnn with group norm")
    trainer, said = defense.trainer(BuiltinTrainer(Training()), data.bounds), defense.statement(len(members))
    right: dict[str, list[float]] = {name: [] for name in ("dense", *RECIPES_BY_NAME)}
    for seed in range(chosen.seeds):
        dense = trainer.fit(TrainingJob.of_one(architecture, members, seed, torch.device("cpu")))[0]
        made = {name: RECIPES.parse(raw) for name, raw in RECIPES_BY_NAME.items()}
        for name, module in {
            "dense": dense,
            **{name: one.apply(dense, members, data.bounds, seed=seed) for name, one in made.items()},
        }.items():
            right[name].append(accuracy(TorchTarget(module), data.non_members.x, data.non_members.y))
    rows = []
    for name, found in right.items():
        spent = () if name == "dense" else RECIPES.parse(RECIPES_BY_NAME[name]).spends(len(members))
        rows.append(Row("accuracy", name, statistics.mean(found), "share"))
        if spent is not None:
            whole = defense.composed(said, spent)
            apart = abs(whole["epsilon"] / whole["epsilon_pld_check"] - 1)
            rows.append(Row("epsilon", name, whole["epsilon"], f"at {said['delta']:g}"))
            rows.append(Row("epsilon, PRV and PLD apart", name, apart, "share", target=0.01))
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
