"""Whose model is it? A fingerprint and two watermarks, after each recipe and against independent models.

    python benchmarks/ownership.py [--net mlp|cnn|both] [--models 40] [--owners 8] [--json FILE]

Digits MLPs and CNNs, each trained on the same members from other initial weights: the hardest controls there are, since
they differ from the owner's model by chance alone. Each of the first eight is an owner: non-members are scattered, and
moved just beyond its boundary, and the other models are asked, each held against all the others as controls. That gives
the false matches; the owner's own candidates, by recipe, are held against all of them, students apart. A match by
decisions: p < .0001 over both kinds and more agreement than any control. By weights: `reconstruction.fingerprint`; by
hidden units: `compare_units`; both of the files, the same pairs, above six standard deviations.

Watermarks are put into models of their own: 30 trigger records, 64 bits in the largest layer. They survive where the
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
from crushproof.attacks.ownership.units import compare_units
from crushproof.attacks.ownership.watermark import bits_read, embed, new_key, triggers_known
from crushproof.attacks.reconstruction.fingerprint import SURE as SURE_OF_WEIGHTS
from crushproof.attacks.reconstruction.fingerprint import fingerprint
from crushproof.attacks.statistics.rates import clopper_pearson
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.digits import load_digits
from crushproof.targets.errors import CrushproofError
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, TrainingJob, train_many
from crushproof.training.networks import Mlp, digits_cnn

TUNE = {"epochs": 3, "learning_rate": 2e-3}
COMPRESSED: dict[str, Any] = {
    "int8": {"kind": "quantize", "weight_bits": 8},
    "int4": {"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False},
    "pruned 80 %": {"kind": "prune", "sparsity": 0.8, "fine_tune": TUNE},
    "16 shared values": {"kind": "share", "clusters": 16},
    "low rank": {"kind": "factorize"},
}
NETS = {
    "mlp": (Architecture("mlp", partial(Mlp, 64, 10, (128, 64))), Training(epochs=20, learning_rate=4e-3)),
    "cnn": (Architecture("cnn", digits_cnn), Training(epochs=9)),
}
WAYS = ("decisions", "weights", "hidden units")
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


def alike(file: bytes, owner: bytes, x: torch.Tensor) -> tuple[bool, bool]:
    """Whether a file is the owner's by weights, and by hidden units."""
    found = []
    for of in (lambda: fingerprint(file, owner), lambda: compare_units(file, owner, x)):
        try:
            found.append(of().deviations > SURE_OF_WEIGHTS)
        except CrushproofError:
            found.append(False)
    return found[0], found[1]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--net", choices=[*NETS, "both"], default="both")
    options.add_argument("--models", type=int, default=40)
    options.add_argument("--owners", type=int, default=8)
    options.add_argument("--first", type=int, default=0, help="seed of the first model")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    lines = [["net", "copies", "n", *(f"by {one}" for one in WAYS), "by any", "agreement", "best control", "triggers",
              "bits"]]  # fmt: skip
    for net in NETS if given.net == "both" else (given.net,):
        more, told = of_net(net, given)
        rows += more
        lines += told
    print_table(lines)
    publish(rows, given.json, {"copies": lines})


def of_net(net: str, given: Any) -> tuple[list[Row], list[list[str]]]:
    data = load_digits()
    assert data.members is not None
    members, x, shape = data.members, data.non_members.x[:300], tuple(data.members.x.shape[1:])
    (architecture, training), count = NETS[net], given.models
    seeds = tuple(range(given.first, given.first + count))
    job = TrainingJob(architecture, members, [torch.arange(len(members))] * count, seeds, torch.device("cpu"))
    models = [one.eval() for one in train_many(job, training)]
    files = [to_onnx(one, shape) for one in models]

    def shipped(recipe: Any, module: nn.Module, seed: int) -> bytes:
        made = RECIPES.parse(recipe).apply(copy.deepcopy(module), members, data.bounds, seed=seed)
        return to_onnx(made, shape)

    false: dict[str, list[bool]] = {way: [] for way in WAYS}
    own: dict[str, list[tuple[bool, bool, bool, float, float]]] = {}
    for owner in range(given.owners):
        asked = questions(models[owner], x, data.bounds, seed=owner)
        others = [agreements(one, asked) for at, one in enumerate(models) if at != owner]
        for at, one in enumerate(others):
            false["decisions"].append(together(matches(one, others[:at] + others[at + 1 :], asked))[1])
        for at, file in enumerate(files):
            if at != owner:
                for way, hit in zip(WAYS[1:], alike(file, files[owner], x), strict=True):
                    false[way].append(hit)
        for name, recipe in {**COMPRESSED, **STUDENTS}.items():
            file = shipped(recipe, models[owner], owner)
            found = matches(agreements(OnnxTarget(file).logits, asked), others, asked)
            hits = together(found)[1], *alike(file, files[owner], x)
            own.setdefault(name, []).append((*hits, found[0].agreement, found[0].best))
        print(f"{net}, owner {owner}: records {[len(labels) for _, labels in asked.values()]}", flush=True)
    marks = marked([*COMPRESSED.items(), *STUDENTS.items()], models[: given.owners], data, shipped, shape)
    lines: list[list[str]] = []
    for name, values in own.items():
        columns = np.array(values)
        lines.append([
            net, name, str(len(values)), *(f"{one:.2f}" for one in columns[:, :3].mean(0)),
            f"{columns[:, :3].any(1).mean():.2f}", *(f"{one:.3f}" for one in columns[:, 3:].mean(0)),
            *(f"{one:.2f}" for one in marks[name]),
        ])  # fmt: skip
    lines.append(
        [net, "without a watermark", str(given.owners), *[""] * 6, *(f"{one:.2f}" for one in marks["unmarked"])]
    )
    rows: list[Row] = []
    copies, students = ([any(one[:3]) for name in names for one in own[name]] for names in (COMPRESSED, STUDENTS))
    for name, hits, target in (("own candidates matched", copies, 0.95), ("students matched", students, None)):
        interval = clopper_pearson(sum(hits), len(hits))
        setting = f"{net}, {sum(hits)} of {len(hits)}, 95 % {interval.low:.3f} to {interval.high:.3f}"
        rows.append(Row(name, setting, float(np.mean(hits)), "share", target=target, better="higher"))
    for name, found in false.items():
        interval = clopper_pearson(sum(found), len(found))
        setting = f"{net}, {len(found)} pairs, at most {interval.high:.4f} with 97.5 %"
        rows.append(Row(f"false matches by {name}", setting, float(sum(found)), "pairs", target=0.0))
    return rows, lines


def marked(
    recipes: Any, models: Any, data: Any, shipped: Any, shape: tuple[int, ...]
) -> dict[str, tuple[float, float]]:
    """Share of the watermarked models whose triggers, and whose bits, are still read after each recipe."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for seed, plain in enumerate(models):
        module = copy.deepcopy(plain)
        weight = max((one.numel(), name) for name, one in module.named_parameters() if one.dim() > 1)[1]
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
