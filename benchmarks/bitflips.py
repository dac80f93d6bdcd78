"""Bit flips to chance, beside random flips and a naive progressive bit search; one flip beside brute force.

    python benchmarks/bitflips.py [--data DIR] [--seeds 5] [--only NAME] [--forms FORM ...] [--json FILE]

For digits (an MLP and the residual CNN) and, with `DIR/mnist.npz`, an MNIST MLP: as float32, int8, int4, pruned (80 %,
fine-tuned, int8), with 16 shared values (code book and uint8 indices in the file) and as float16. Each seed trains its
own network and draws its own 128 records of the attacker. Flips count on the file in ONNX Runtime, at an accuracy on
300 other records that is no better than always naming the commonest class. Searched: any bit of the parameters, and the
weights' alone (codes, indices, or floats without their exponents). Naive: the search of Rakin et al. 2019 on the same
bits: of each tensor the flip of the largest gradient times change is tried, the one with the largest cross-entropy is
kept; it ends after twice our flips. Random: bits of the same ones; their number is doubled until the file is at chance,
then bisected.

Oracle: ten networks of 114 weights, float32 and int8 in turns. Every single flip of every stored bit is made in the
file and run. The search is right where its one flip leaves no more on the right classes than the best, or .01 more.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import onnx
import torch
from contract import Row, alternate, parser, print_table, publish
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from crushproof.attacks.access import Ledger
from crushproof.attacks.tampering.files import Files, random_flips
from crushproof.attacks.tampering.goal import Goal
from crushproof.attacks.tampering.integrity import CHECKS, Checksums, noticed, signatures
from crushproof.attacks.tampering.ranking import Allowed, expected_harm
from crushproof.attacks.tampering.search import search
from crushproof.attacks.tampering.stored import CODES, INDICES, WEIGHTS, Flip, Stored, parameters
from crushproof.attacks.tampering.surrogate import Surrogate, cross_entropy
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.untrusted.model_file import check_onnx
from crushproof.training.architecture import Architecture
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp, digits_cnn

BUDGET, RANDOM, CAP, OWN, MEASURED = 60, 64, 16384, 128, 300
TUNE = {"epochs": 3, "learning_rate": 4e-3}
FORMS: dict[str, Any] = {
    "float32": None,
    "int8": [{"kind": "quantize", "weight_bits": 8}],
    "int4": [{"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False}],
    "pruned int8": [{"kind": "prune", "sparsity": 0.8, "fine_tune": TUNE}, {"kind": "quantize", "weight_bits": 8}],
    "shared": [{"kind": "share", "clusters": 16}],
    "float16": [{"kind": "quantize", "number": "float16", "activations": "float"}],
}


@dataclass(frozen=True)
class Subject:
    """Data and how a network for it is trained."""

    members: Records
    others: Records
    build: Callable[[], nn.Module]
    training: Training


def subjects(folder: Any) -> dict[str, Subject]:
    digits = load_digits()
    assert digits.members is not None
    mlp = partial(Mlp, 64, 10, (128, 64))
    found = {
        "digits MLP": Subject(digits.members, digits.non_members, mlp, Training(epochs=20, learning_rate=4e-3)),
        "digits CNN": Subject(digits.members, digits.non_members, digits_cnn, Training(epochs=9)),
    }
    if folder is not None:
        with np.load(folder / "mnist.npz", allow_pickle=False) as file:
            x, y = file["x_train"][:10_000, None] / np.float32(255), file["y_train"][:10_000].astype(np.int64)
        records = Records(torch.from_numpy(x), torch.from_numpy(y))
        halves = records.take(torch.arange(8000)), records.take(torch.arange(8000, 10_000))
        found["MNIST MLP"] = Subject(*halves, partial(Mlp, 784, 10, (64,)), Training(epochs=3))
    return found


def file_of(form: str, module: nn.Module, subject: Subject, seed: int) -> bytes:
    for recipe in FORMS[form] or ():
        module = RECIPES.parse(recipe).apply(copy.deepcopy(module), subject.members, Bounds.of(0, 1), seed=seed)
    data = to_onnx(module, tuple(subject.members.x.shape[1:]))
    return with_books(data) if form == "shared" else data


def with_books(data: bytes) -> bytes:
    """Weights of few values as a code book and indices: what a runtime with shared weights holds."""
    model = onnx.load_model_from_string(data)
    graph, looked_up = model.graph, []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        book, indices = np.unique(values, return_inverse=True)
        if values.ndim < 2 or len(book) > 256:
            continue
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(book, f"{name}/book"))
        codes = indices.reshape(values.shape).astype(np.uint8)
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}/codes"))
        looked_up += [
            helper.make_node("Cast", [f"{name}/codes"], [f"{name}/places"], to=TensorProto.INT64),
            helper.make_node("Gather", [f"{name}/book", f"{name}/places"], [name]),
        ]
    nodes = [*looked_up, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def any_bit(one: Stored, bit: int) -> bool:
    return True


def weights_alone(one: Stored, bit: int) -> bool:
    return one.role in (CODES, INDICES, WEIGHTS) and not one.exponent(bit)


WHICH: dict[str, Allowed] = {"any bit": any_bit, "weights": weights_alone}


@dataclass
class Attacked:
    """A file, and what is asked of it."""

    tensors: list[Stored]
    surrogate: Surrogate
    files: Files
    goal: Goal

    def useless(self, flips: list[Flip]) -> bool:
        told = self.files.answers(flips, self.goal.records.x)
        return told is not None and self.goal.reached(told[1])


def attacked(data: bytes, subject: Subject, seed: int) -> Attacked:
    checked = check_onnx(data)
    tensors = parameters(checked)
    order = torch.randperm(len(subject.others), generator=torch.Generator().manual_seed(seed))
    own, measured = (subject.others.take(rows) for rows in (order[:OWN], order[OWN : OWN + MEASURED]))
    commonest = float(torch.bincount(measured.y).max()) / len(measured)
    chance = commonest + 2 * (commonest * (1 - commonest) / len(measured)) ** 0.5
    goal = Goal(own, torch.ones(len(own)), lambda right: float(right.float().mean()) <= chance, chance / 2)
    return Attacked(tensors, Surrogate(checked, tensors, None), Files(checked, tensors, None, measured), goal)


def naive(one: Attacked, allowed: Allowed, budget: int) -> int:
    """Flips of the plain progressive bit search, at most `budget` (then one more)."""
    x, y, chosen = one.goal.records.x, one.goal.records.y, list[Flip]()
    for _ in range(budget):
        one.surrogate.keep(x)
        gradients = one.surrogate.gradients(x, cross_entropy(y, torch.ones(len(y))))
        tried: list[tuple[float, Flip]] = []
        for number, (stored, gradient) in enumerate(zip(one.tensors, gradients, strict=True)):
            bits = [bit for bit in stored.tried if allowed(stored, bit)]
            if gradient is None or not bits:
                continue
            harm, _ = expected_harm(gradient, one.surrogate.moved(number, bits))
            for flip in chosen:
                if flip.tensor == number and flip.bit in bits:
                    harm[bits.index(flip.bit), flip.element] = 0
            bit, element = divmod(int(harm.argmax()), harm.shape[1])
            flip = Flip(number, element, bits[bit])
            loss = float(F.cross_entropy(one.surrogate.with_flip(flip), y).nan_to_num(torch.inf))
            tried.append((loss, flip))
        _, flip = max(tried)
        chosen.append(flip)
        one.surrogate.flip(flip)
        if one.useless(chosen):
            break
    done = one.useless(chosen)
    for flip in chosen:
        one.surrogate.flip(flip)
    return len(chosen) if done else budget + 1


def at_random(one: Attacked, allowed: Allowed, seed: int) -> tuple[float, int]:
    """Accuracy after `RANDOM` of the bits, and how many of them it takes, at most `CAP` (then one more)."""
    total = sum(len(stored.raw) * stored.width for stored in one.tensors)
    drawn = [
        flip
        for flip in random_flips(one.tensors, min(total, 4 * CAP), seed)
        if allowed(one.tensors[flip.tensor], flip.bit)
    ][:CAP]
    told = one.files.answers(drawn[:RANDOM], one.goal.records.x)
    accuracy = float("nan") if told is None else float(told[1].float().mean())
    low, high = 0, 1
    while high < len(drawn) and not one.useless(drawn[:high]):
        low, high = high, 2 * high
    if high >= len(drawn) and not one.useless(drawn):
        return accuracy, len(drawn) + 1
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if one.useless(drawn[:middle]) else (middle, high)
    return accuracy, high


def flips_to_chance(name: str, subject: Subject, seeds: int, forms: Sequence[str]) -> tuple[list[Row], list[list[str]]]:
    rows: list[Row] = []
    lines: list[list[str]] = []
    kind = Architecture(name, subject.build)
    nets = [train(kind.fresh(seed), subject.members, subject.training, seed=seed) for seed in range(seeds)]
    for form in forms:
        found: dict[str, list[tuple[int, int, int, float, float]]] = {which: [] for which in WHICH}
        seen: list[tuple[bool, ...]] = []
        accuracies = []
        for seed, net in enumerate(nets):
            one = attacked(file_of(form, net, subject, seed), subject, seed)
            told = one.files.answers([], one.goal.records.x)
            assert told is not None
            accuracies.append(float(told[1].float().mean()))
            for which, allowed in WHICH.items():
                one.goal.intact = None  # each search pays for its own begin
                before = time.process_time()
                result = search(one.surrogate, one.files, one.goal, BUDGET, allowed, set(), Ledger())
                seconds = time.process_time() - before
                flips = len(result.flips) if result.reached else BUDGET + 1
                accuracy, random = at_random(one, allowed, seed)
                found[which].append((flips, naive(one, allowed, 2 * flips + 2), random, accuracy, seconds))
                if result.reached:
                    seen.append(noticed(one.tensors, result.flips, 64, seed).by)
        for which, values in found.items():
            ours, plain, random, accuracy, seconds = (
                statistics.median(one[column] for one in values) for column in range(5)
            )
            counts = [one[0] for one in values]
            lines.append([
                name, form, which, f"{statistics.median(accuracies):.3f}", f"{ours:g} [{min(counts)}-{max(counts)}]",
                f"{plain:g}", f"{'>' * (random > CAP)}{min(random, CAP):g}", f"{accuracy:.3f}", f"{seconds:.2f}",
            ])  # fmt: skip
            print("  ".join(lines[-1]), flush=True)
            setting = f"{name}, {form}, {which}"
            rows.append(Row("flips beside naive search", setting, ours, "flips", plain, 1.0))
            rows.append(Row("flips beside random flips", setting, ours, "flips", random, 0.1))
            rows.append(Row("search of a file", setting, seconds, "CPU s", target=2.0))
        for check, column in zip(CHECKS, zip(*seen, strict=True), strict=True):
            asked = None if check.startswith("of 2 bits") else 0.95
            share = float(np.mean(column))
            rows.append(Row(f"noticed by {check}", f"{name}, {form}", share, "share", target=asked, better="higher"))
    return rows, lines


def against_brute_force(nets: int) -> Row:
    """How often the search's one flip is as good as the best of all."""
    digits = load_digits()
    assert digits.members is not None
    small = digits.members.take(torch.nonzero(digits.members.y < 3)[:, 0])
    pooled = Records(F.avg_pool2d(small.x, 2), small.y)
    hits, tried = 0, 0
    small = Architecture("small", lambda: Mlp(16, 3, (6,)))
    for seed in range(nets):
        net = train(small.fresh(seed), pooled, Training(epochs=20, learning_rate=2e-2), seed=seed)
        assert float((net(pooled.x).argmax(1) == pooled.y).float().mean()) > 0.7, "it has learnt what can be lost"
        form = RECIPES.parse({"kind": "quantize", "weight_bits": 8})
        net = form.apply(net, pooled, Bounds.of(0, 1), seed=seed) if seed % 2 == 0 else net
        checked = check_onnx(to_onnx(net, (1, 4, 4)))
        tensors = parameters(checked)
        order = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(seed))
        own = pooled.take(order[:64])
        files = Files(checked, tensors, None, pooled.take(order[64:65]))
        goal = Goal(own, torch.ones(len(own)), lambda right: False, -1.0)
        values: dict[Flip, float] = {}
        for number, stored in enumerate(tensors):
            for element, bit in product(range(len(stored.raw)), range(stored.width)):
                flip = Flip(number, element, bit)
                told = files.answers([flip], own.x)
                values[flip] = float("inf") if told is None else goal.value(told[0])
        for which, allowed in WHICH.items():
            goal.intact = None
            found = search(Surrogate(checked, tensors, None), files, goal, 1, allowed, set(), Ledger())
            some = [flip for flip in values if allowed(tensors[flip.tensor], flip.bit)]
            best = min(some, key=lambda flip: values[flip])
            ours = values[found.flips[0]] if found.flips else float("inf")
            hits += ours <= values[best] + 0.01
            tried += 1
            print(
                f"net {seed}, {which}: {len(some)} flips, best {values[best]:.3f} ({tensors[best.tensor].name}, "
                f"bit {best.bit}), found {ours:.3f}",
                flush=True,
            )
    return Row("the best single flip is found", f"{tried} cases", hits / tried, "share", None, 0.9, "higher")


def cost_of_checks() -> list[Row]:
    """Of 4 MB of weights: one check by each, once the key's order is known."""
    import hashlib

    content = np.random.default_rng(0).integers(0, 256, 2**22).astype(np.uint8)
    checks = Checksums(len(content), 64, 0)

    digest, sums = alternate(
        lambda: hashlib.sha256(content.tobytes()).digest(),
        lambda: signatures(checks.sums(content), CHECKS[0]),
    )
    return [
        Row(
            "a check of 4 MB", "keyed checksums of 64 bytes in numpy; peer: SHA-256", 1e3 * sums, "CPU ms", 1e3 * digest
        ),
        Row("what a check keeps", "8 bits for 64 bytes", 100 / 64, "% of the bytes"),
    ]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--only", default="", help="names of subjects that hold this word; oracle, checks")
    options.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    given = options.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    lines = [["data", "form", "bits", "accuracy", "flips", "naive", "random", f"after {RANDOM}", "CPU s"]]
    for name, subject in subjects(given.data).items():
        if given.only in name:
            more, told = flips_to_chance(name, subject, given.seeds, given.forms)
            rows += more
            lines += told
    if given.only in "oracle":
        rows.append(against_brute_force(10))
    if given.only in "checks":
        rows += cost_of_checks()
    print_table(lines)
    publish(rows, given.json, {"flips": lines})


if __name__ == "__main__":
    main()
