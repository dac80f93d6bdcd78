"""Whose model is it? A boundary fingerprint and two watermarks, after each recipe and against independent models.

    python benchmarks/ownership.py [--models 40] [--owners 8] [--json FILE]

Digits MLPs, each trained on the same members from other initial weights: the hardest controls there are, since they
differ from the owner's model by chance alone. Each of the first eight is an owner: non-members are scattered, and moved
just beyond its boundary, and the other models are asked, each held against all the others as controls. That gives the
false matches; the owner's own candidates, by recipe, are held against all of them, students apart. A match: p < .001
over both kinds and more agreement than any control. By weights: `reconstruction.fingerprint`, the same pairs.

Watermarks are put into models of their own: 30 trigger records, 64 bits in the first layer. They survive where the
p-value, binomial, is below .001; the same is asked of models without them.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from contract import Row, parser, print_table, publish
from torch import nn

from crushproof.attacks.ownership.boundary import SURE, Match, Questions, held_against, questions, together
from crushproof.attacks.ownership.watermark import bits_read, embed, new_key, triggers_known
from crushproof.attacks.reconstruction.fingerprint import fingerprint
from crushproof.attacks.statistics.rates import clopper_pearson
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.digits import load_digits
from crushproof.targets.errors import CrushproofError
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import Mlp

TUNE = {"epochs": 3, "learning_rate": 2e-3}
COMPRESSED: dict[str, Any] = {
    "int8": {"kind": "quantize", "weight_bits": 8},
    "int4": {"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False},
    "pruned 80 %": {"kind": "prune", "sparsity": 0.8, "fine_tune": TUNE},
    "16 shared values": {"kind": "share", "clusters": 16},
    "low rank": {"kind": "factorize"},
}
STUDENTS: dict[str, Any] = {"student, half width": {"kind": "distill"}}


def agreements(answer: Any, asked: Questions) -> list[float]:
    with torch.no_grad():
        return [float((answer(x).argmax(1) == labels).double().mean()) for x, labels in asked.values()]


def matches(own: list[float], others: list[list[float]], asked: Questions) -> list[Match]:
    sizes = [len(labels) for _, labels in asked.values()]
    return [
        held_against(one, [other[at] for other in others], size)
        for at, (one, size) in enumerate(zip(own, sizes, strict=True))
    ]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", type=int, default=40)
    options.add_argument("--owners", type=int, default=8)
    options.add_argument("--first", type=int, default=0, help="seed of the first model")
    given = options.parse_args()
    torch.set_num_threads(1)
    data = load_digits()
    assert data.members is not None
    members, x, shape = data.members, data.non_members.x[:300], tuple(data.members.x.shape[1:])
    architecture = Architecture("mlp", partial(Mlp, 64, 10, (128, 64)))
    count = given.models
    job = TrainingJob(
        architecture,
        members,
        [torch.arange(len(members))] * count,
        tuple(range(given.first, given.first + count)),
        torch.device("cpu"),
    )
    models = [one.eval() for one in train_many(job, Training(epochs=20, learning_rate=4e-3))]
    files = [to_onnx(one, shape) for one in models]

    def shipped(recipe: Any, module: nn.Module, seed: int) -> bytes:
        made = RECIPES.parse(recipe).apply(copy.deepcopy(module), members, data.bounds, seed=seed)
        return to_onnx(made, shape)

    false = {"decisions": [], "weights": []}  # type: dict[str, list[bool]]
    own: dict[str, list[tuple[bool, bool, float, float]]] = {}
    for owner in range(given.owners):
        asked = questions(models[owner], x, data.bounds, seed=owner)
        others = [agreements(one, asked) for at, one in enumerate(models) if at != owner]
        for at, one in enumerate(others):
            false["decisions"].append(together(matches(one, others[:at] + others[at + 1 :], asked))[1])
        false["weights"] += [fingerprint(one, files[owner]).matches for at, one in enumerate(files) if at != owner]
        for name, recipe in {**COMPRESSED, **STUDENTS}.items():
            file = shipped(recipe, models[owner], owner)
            found = matches(agreements(OnnxTarget(file).logits, asked), others, asked)
            try:
                by_weights = fingerprint(file, files[owner]).matches
            except CrushproofError:
                by_weights = False
            own.setdefault(name, []).append((together(found)[1], by_weights, found[0].agreement, found[0].best))
        print(f"owner {owner}: records {[len(labels) for _, labels in asked.values()]}", flush=True)
    rows: list[Row] = []
    lines = [
        ["copies", "n", "by decisions", "by weights", "by either", "agreement", "best control", "triggers", "bits"]
    ]
    marks = marked([*COMPRESSED.items(), *STUDENTS.items()], models[: given.owners], data, shipped, shape)
    for name, values in own.items():
        columns = np.array(values)
        either, hits = columns[:, :2].any(1).mean(), columns[:, :2].mean(0)
        lines.append([
            name, str(len(values)), f"{hits[0]:.2f}", f"{hits[1]:.2f}", f"{either:.2f}",
            f"{columns[:, 2].mean():.3f}", f"{columns[:, 3].mean():.3f}", *(f"{one:.2f}" for one in marks[name]),
        ])  # fmt: skip
    lines.append(["without a watermark", str(given.owners), *[""] * 5, *(f"{one:.2f}" for one in marks["unmarked"])])
    copies = [one[0] or one[1] for name in COMPRESSED for one in own[name]]
    students = [one[0] or one[1] for name in STUDENTS for one in own[name]]
    for name, hits, target in (("own candidates matched", copies, 0.95), ("students matched", students, None)):
        interval = clopper_pearson(sum(hits), len(hits))
        setting = f"{sum(hits)} of {len(hits)}, 95 % {interval.low:.3f} to {interval.high:.3f}"
        rows.append(Row(name, setting, float(np.mean(hits)), "share", target=target, better="higher"))
    for name, found in false.items():
        interval = clopper_pearson(sum(found), len(found))
        setting = f"{len(found)} pairs, at most {interval.high:.4f} with 97.5 %"
        rows.append(Row(f"false matches by {name}", setting, float(sum(found)), "pairs", target=0.0))
    print_table(lines)
    publish(rows, given.json, {"copies": lines})


def marked(
    recipes: Any, models: Any, data: Any, shipped: Any, shape: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    """Share of the watermarked models whose triggers, and whose bits, are still read after each recipe."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for seed, plain in enumerate(models):
        module = copy.deepcopy(plain)
        weight = next(name for name, one in module.named_parameters() if one.dim() > 1)
        key = new_key(module, weight, shape, data.bounds, seed=seed)
        embed(module, data.members, key, Training(epochs=10, learning_rate=2e-3), seed=seed)
        owner, values = to_onnx(module, shape), module.get_parameter(weight).detach().numpy()
        read = {name: shipped(recipe, module, seed) for name, recipe in recipes}
        for name, file in {**read, "unmarked": to_onnx(plain, shape)}.items():
            try:
                bits = bits_read(file, owner, key, values)[1] < SURE
            except CrushproofError:
                bits = False
            found.setdefault(name, []).append((triggers_known(OnnxTarget(file), key)[1] < SURE, bits))
    return {name: tuple(np.mean(values, axis=0)) for name, values in found.items()}  # type: ignore[misc]  # two columns


if __name__ == "__main__":
    main()
