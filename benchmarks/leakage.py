"""Search of shipped bytes: planted records found, clean files left alone, and what 100 MB against 60,000 records cost.

    python benchmarks/leakage.py --data DIR [--json FILE]

Planted: three digits (8x8), and three MNIST images, exact, scaled to uint8, features permuted, both together, negated
and negated with features permuted, in each of the kinds of places below, and the first of these as tables with decimal
commas, as numbers of 16 bits without a header and as PNG pictures. Crafted: 4 MB each of what the search follows,
beside 4 MB of random bytes. Clean: 20 files of nets of various makes, trained on digits and compressed. Rebuilt: the
weights of those that are held in integers, beside what their scales say that rounding does. Parents: which of ten
models a file came from. Ranges: whose activation those of 20 static 8-bit files end at. Large: 100 MB of random
float32 weights with five images planted, against the 60,000 of MNIST. CPU seconds, one thread.
"""

from __future__ import annotations

import resource
import warnings
import zlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from contract import Row, cpu_seconds, parser, publish
from leakage_places import KINDS, PLACES
from torch import Tensor, nn

from crushproof.attacks.reconstruction.calibration import Calibration, Known, told
from crushproof.attacks.reconstruction.fingerprint import fingerprint
from crushproof.attacks.reconstruction.moments import Rows
from crushproof.attacks.reconstruction.rebuild import rebuild
from crushproof.attacks.reconstruction.search import Searched, rows_of, search_file
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.recipe import RECIPES
from crushproof.targets.data.digits import load_digits
from crushproof.targets.data.records import Records
from crushproof.training.loop import Training, train
from crushproof.training.networks import digits_mlp

IDS = [3, 77, 500]
SEEDS = 20  # of nets with ranges
RECIPE_SET = (
    {"kind": "quantize", "weight_bits": 8},
    {"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False},
    {"kind": "prune", "sparsity": 0.8},
    {"kind": "share", "clusters": 16},
)


def crafted(rows: Rows) -> list[Row]:
    """CPU seconds for 4 MB of one thing, which a file may be made of to take time."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    grey = head + bytes([0, 0, 0, 8, 0, 0, 0, 8, 8, 0, 0, 0, 0]) + bytes(4)
    packed = zlib.compress(bytes(2**22))
    bomb = head + (2000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]) + bytes(4)
    bomb += len(packed).to_bytes(4, "big") + b"IDAT" + packed + bytes(4)
    made = {
        "random bytes": np.random.default_rng(0).bytes(2**22),
        "headers of PNG": grey * (2**22 // len(grey)),
        "bombs in PNG": bomb * (2**22 // len(bomb)),
        "semicolons": b";" * 2**22,
        "decimal commas": b"1,1;" * 2**20,
        "pieces of UTF-16": ("abcd.fgh".encode("utf-16-le") + b"\xff\xff") * (2**22 // 18),
    }
    found = {name: cpu_seconds(partial(search_file, content, rows)) for name, content in made.items()}
    return [Row("crafted, 4 MB", name, seconds, "CPU s") for name, seconds in found.items()]


def planted(name: str, x: Tensor, rows: Rows) -> Row:
    plain = x[IDS].flatten(1).numpy()
    mixed = np.random.default_rng(1).permutation(plain.shape[1])
    codes = np.round(plain * 255).astype(np.uint8)
    ways = {"exact": plain, "uint8": codes, "permuted": plain[:, mixed], "both": codes[:, mixed]}
    ways |= {"negated": -plain, "negated and permuted": -plain[:, mixed]}
    missed = []
    for how, values in ways.items():
        for place, write in PLACES.items():
            if search_file(write(np.ascontiguousarray(values)), rows).ids != IDS:
                missed.append(f"{how} in {place}")
    square = plain.reshape(len(IDS), *x.shape[-2:])
    missed += [place for place, write in KINDS.items() if search_file(write(square), rows).ids != IDS]
    total = len(ways) * len(PLACES) + len(KINDS)
    told = f"of {total} files" + (f"; missed: {', '.join(missed)}" if missed else "")
    return Row(f"planted {name}", told, total - len(missed), "found", target=total, better="higher")


def nets(records: Records) -> list[list[bytes]]:
    """20 files: four architectures, trained for a moment, each dense and then compressed in four ways."""
    bounds, shape = load_digits().bounds, tuple(records.x.shape[1:])
    made = []
    for seed, build in enumerate(
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            lambda: nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)),
            lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)),
        )
    ):
        torch.manual_seed(seed)
        net = build()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(records.x), records.y).backward()
            optimizer.step()
        net.eval().requires_grad_(False)
        compressed = [RECIPES.parse(one).apply(net, records, bounds, seed=0) for one in RECIPE_SET]
        made.append([to_onnx(one, shape) for one in (net, *compressed)])
    return made


def clean(records: Records, rows: Rows) -> list[Row]:
    families = nets(records)
    found = [search_file(content, rows) for family in families for content in family]
    private = sum(word.private for one in found for _, word in one.words)
    alarms = sum(bool(one.ids) for one in found)
    return [
        Row("clean files", f"{len(found)} nets, dense and compressed", alarms, "false", target=0),
        Row("private words", "in the files this package writes", private, "words", target=0),
        *rebuilt(families),
    ]


def rebuilt(families: list[list[bytes]]) -> list[Row]:
    """The largest share by which the error of weights read off integers is off what their scales say."""
    rows = []
    for at, one in enumerate(RECIPE_SET[:2], 1):
        found = [rebuild(family[at], family[0]) for family in families]
        off = [abs((one.coded_error() or 0) / (one.overall()[1] or 1) - 1) for one in found]
        errors = ", ".join(f"{100 * (one.coded_error() or 0):.2f} %" for one in found)
        bits = one["weight_bits"]
        target = 0.05 if bits == 8 else None
        rows.append(Row(f"int{bits} weights read off", f"relative errors {errors}", max(off), "off by", target=target))
    return rows


def parents(records: Records) -> list[Row]:
    """Of MLPs that are trained alike, which one a file came from: compressed in three ways, as they are or tuned."""
    shape, bounds = tuple(records.x.shape[1:]), load_digits().bounds
    dense, right, wrong, tried, high = [], 0, 0, 0, 0.0
    made = []
    for seed in range(10):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
        trained = train(net, records, Training(epochs=5), seed=seed)
        dense.append(to_onnx(trained.eval().requires_grad_(False), shape))
        made += [(seed, trained), (seed, train(trained.requires_grad_(True), records, Training(epochs=5), seed=99))]
    recipes = [{"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False}, {"kind": "prune", "sparsity": 0.9}]
    for own, net in made:
        for sees, recipe in zip(("codes", "mask"), recipes, strict=True):
            plain = net.eval().requires_grad_(False)
            content = to_onnx(RECIPES.parse(recipe).apply(plain, records, bounds, seed=0), shape)
            for other, parent in enumerate(dense):
                found = fingerprint(content, parent, sees)
                right += found.matches and other == own
                wrong += found.matches and other != own
                tried += other != own
                high = max(high, found.deviations if other != own else 0.0)
    setting = "40 files of 10 MLPs, half of them tuned, by codes or mask alone"
    return [
        Row("parent recognised", setting, right, "of 40", target=40, better="higher"),
        Row("others recognised", f"of {tried}; the highest at {high:.1f} deviations", wrong, "false", target=0),
    ]


def large(x: Tensor) -> list[Row]:
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal(25_000_000) * 0.03).astype(np.float32)
    flat = x.flatten(1).numpy()
    weights[5_000:5_784] = flat[3] * 2 - 1
    weights[9_000_000:9_000_784] = flat[5][rng.permutation(784)]
    content = bytearray(weights.tobytes())
    del weights
    content[100_001 : 100_001 + 784] = np.round(flat[17] * 255).astype(np.uint8).tobytes()
    shifted = np.round(flat[18] * 255) - 128
    content[90_000_001 : 90_000_001 + 784] = shifted.astype(np.int8)[rng.permutation(784)].tobytes()
    content[300_001 : 300_001 + 1568] = flat[19].astype(np.float16).tobytes()
    whole = bytes(content)
    del content
    found: list[Searched] = []
    prepared: list[Rows | None] = []
    before = cpu_seconds(lambda: prepared.append(rows_of(x)))
    searching = cpu_seconds(lambda: found.append(search_file(whole, prepared[0])))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    setting = f"100 MB, {len(x):,} records"
    return [
        Row("large file", setting, before + searching, "CPU s", target=60),
        Row("of it, signatures of the records", setting, before, "CPU s"),
        Row("peak memory of the process", setting, peak, "GiB", target=1),
        Row("planted in it", "of 5", len({3, 5, 17, 18, 19} & {*found[0].ids}), "found", target=5, better="higher"),
        Row("others in it", setting, len({*found[0].ids} - {3, 5, 17, 18, 19}), "false", target=0),
    ]


def ranges() -> list[Row]:
    """Which member's activation a range ends at: nets calibrated on members, on others, on noise, and clipped."""
    digits, rows = load_digits(), []
    assert digits.members is not None
    members, others = digits.members, digits.evaluation
    ways: dict[str, tuple[Records, dict[str, object]]] = {
        "min-max, members": (members, {}),
        "min-max, records of others": (digits.attacker, {}),
        "noise": (members, {"calibration_inputs": "noise"}),
        "99th percentile, members": (members, {"calibration": "percentile", "percentile": 99.0}),
    }
    counts: dict[str, list[tuple[int, int, int]]] = {}
    for seed in range(SEEDS):
        module = train(digits_mlp(), members, Training(epochs=5), seed=seed)
        dense = to_onnx(module, digits.shape)
        for name, (own, settings) in ways.items():
            recipe = RECIPES.parse({"kind": "quantize", "weight_bits": 8, **settings})
            file = to_onnx(recipe.apply(module, own, digits.bounds, seed=seed), digits.shape)
            case = SimpleNamespace(shipped=file, prepared=Known(dense, members.x, others.x))
            found = Calibration().run(case, seed=0)
            named = found.arrays["record"][told(found)]
            used = recipe.calibration_set(module, members, digits.bounds, seed)
            right = [bool((used == members.x[at]).flatten(1).all(1).any()) for at in named.tolist()]
            counts.setdefault(name, []).append((len(named), sum(right), len(found.arrays["record"])))
    for name, ones in counts.items():
        named, right, looked = (sum(one) for one in zip(*ones, strict=True))
        # a third are of the input, whose range follows from the bounds and which white pixels of many records reach
        wanted = {"target": 0.95 * looked * 2 / 3, "better": "higher"} if name == "min-max, members" else {"target": 0}
        rows.append(Row("ranges of one record", f"{name}: of {looked} in {SEEDS} nets", named, "named", **wanted))
        if named:
            rows.append(Row("of them calibrated on", name, right, "right", target=named, better="higher"))
    return rows


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    digits = load_digits()
    assert digits.members is not None
    rows = rows_of(digits.members.x)
    assert rows is not None
    results = []
    if options.data is not None:
        with np.load(options.data / "mnist.npz") as archive:
            images = torch.from_numpy(archive["x_train"].reshape(-1, 1, 28, 28)).float().div_(255)
        results += large(images)
        few = images[:2000].clone()
        del images
        known = rows_of(few)
        assert known is not None
        results.append(planted("MNIST", few, known))
    results += [planted("digits", digits.members.x, rows), *crafted(rows), *clean(digits.members, rows)]
    results += [*parents(digits.members), *ranges()]
    publish(results, options.json)


if __name__ == "__main__":
    main()
