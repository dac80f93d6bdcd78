"""Compressed versions of one net: what `evade` leaves of each, beside all that peers leave with the float net's help.

    python benchmarks/evasion_compressed.py [--json FILE]

The plainly trained CNN of `evasion.py` (which says how the peers are installed) and seven versions of it, each as the
ONNX file that would ship. Peers attack the float net, and what they find is asked of every file; where they can they
attack a version's own torch module as well. A record counts as theirs if any of it fools the file. Ours is
`evade(file, budget="standard")`, which knows nothing but the file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from contract import Row, arguments, cpu_seconds, publish
from evasion import halves, subjects
from evasion_peers import AUTOATTACK, PGD, SQUARE, TARGETED, Subject, Work, present
from torch import Tensor

from crushproof.attacks.evasion.call.attackable import attackable
from crushproof.attacks.evasion.evade import evade
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.records import Bounds
from crushproof.targets.model import Target
from crushproof.training.loop import Training

RECORDS, EPSILON, POINT = 300, 0.05, 0.01
SEEN = {key: work for key, work in SQUARE.items() if "ART" not in key}  # ART's asks as much for less, for minutes
TUNE = Training(epochs=3, learning_rate=2e-3)
VERSIONS: dict[str, dict[str, Any]] = {
    "int8": {"kind": "quantize"},
    "4 bits": {"kind": "quantize", "weight_bits": 4},
    "2 bits": {"kind": "quantize", "weight_bits": 2, "fine_tune": TUNE},
    "binarised": {"kind": "quantize", "number": "binary", "activations": "float", "fine_tune": TUNE},
    "90 % pruned": {"kind": "prune", "sparsity": 0.9, "fine_tune": TUNE},
    "rounded at random": {"kind": "quantize", "weight_bits": 4, "rounding": "stochastic"},
    "float16": {"kind": "quantize", "number": "float16", "activations": "float"},
}


def fooled(target: Target, subject: Subject, inputs: Tensor) -> Tensor:
    """bool [n]: the records that the inputs, cut off at epsilon and [0, 1], fool."""
    change = (inputs.detach() - subject.x).clamp(-subject.epsilon, subject.epsilon)
    return target.logits((subject.x + change).clamp(0, 1)).argmax(1) != subject.y


def found_by(works: dict[str, Work]) -> list[Tensor]:
    """What each peer comes back with; one that cannot follow a quantised module comes back with nothing."""
    inputs = []
    for work in works.values():
        with suppress(RuntimeError):
            inputs.append(work())
    return inputs


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    members, _ = halves()
    plain, _ = subjects()
    subject = replace(plain.first(RECORDS), epsilon=EPSILON)
    rows = []
    helped: list[Tensor] = []
    for peers in (PGD, TARGETED, AUTOATTACK):
        works, missing = present(peers, subject)
        rows += [Row(f"beside {name}", why, None, "") for name, why in missing.items()]
        helped += found_by(works)
    for name, recipe in VERSIONS.items():
        module = RECIPES.parse(recipe).apply(subject.net, members, Bounds.of(0, 1), seed=0).eval()
        opened = attackable(to_onnx(module, tuple(subject.x.shape[1:])), tuple(subject.x.shape[1:]))
        wrong = opened.deployed.logits(subject.x).argmax(1) != subject.y
        theirs = wrong.clone()
        own = replace(subject, net=module)
        direct = [inputs for peers in (TARGETED, SEEN) for inputs in found_by(present(peers, own)[0])]
        for inputs in (*helped, *direct):
            theirs |= fooled(opened.deployed, subject, inputs)
        returned: list[Tensor] = []
        seconds = cpu_seconds(
            lambda opened=opened, returned=returned: returned.append(
                evade(opened, subject.x, subject.y, epsilon=EPSILON).adversarial
            )
        )
        ours = fooled(opened.deployed, subject, returned[0])
        left, theirs_left = (1 - float(one.double().mean()) for one in (ours, theirs))
        setting = f"robust; clean {1 - float(wrong.double().mean()):.3f}; peers' union leaves {theirs_left:.3f}"
        rows.append(Row(name, setting, left, "", target=theirs_left + POINT))
        rows.append(Row(name, "evade, standard", seconds, "CPU s"))
    publish(rows, options.json)


if __name__ == "__main__":
    main()
