"""Evasion by changed features and tokens: how far robust accuracy falls, whether every input is valid, what is missed.

    python benchmarks/exchange.py --data DIR [--json FILE]

On UCI Adult (one-hot, sex and race immutable): validity is counted here, apart from the attack's own check; what a
search over all pairs of single changes finds more is counted on records that withstand one. On the tokens of
verdict.py a GRU, without a declared padding. Both as they ship, ONNX files with their twins; one thread.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract import Row, parser, publish
from torch import Tensor, nn
from verdict_targets import MODELS, adult, tokens

from crushproof.attacks.case import Case, Evidence
from crushproof.attacks.evasion.discrete.substitution import Substitution
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.data.structure import Structure
from crushproof.targets.runtimes.onnx import OnnxTarget
from crushproof.targets.twin.twin import twin_of

PAIRS = 100  # records on which all pairs are tried
REACH = 0.1


def trained(name: str, arrays: dict[str, Any], **parameters: Any) -> nn.Module:
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    x, y = torch.from_numpy(arrays["x_train"]).float(), torch.from_numpy(arrays["y_train"]).long()
    net: nn.Module = module.train(module.build(**parameters).train(), x, y, 0)
    return net.eval().requires_grad_(False)


def case_of(arrays: dict[str, Any], net: nn.Module, high: float, structure: Structure) -> Case:
    y = torch.from_numpy(arrays["y_test"]).long()
    records, names = (
        Records(torch.from_numpy(arrays["x_test"]).float(), y),
        [str(one) for one in range(int(y.max()) + 1)],
    )
    data = Data("data", None, records, Bounds.of(0, high), tuple(names), structure=structure)
    model = to_onnx(net, data.shape)
    twin = twin_of(model)
    ids = data.evaluation_ids.numpy()
    bounds, classes = data.bounds, data.classes
    deployed = OnnxTarget(model)
    return Case(
        deployed, twin, twin, net, data.evaluation, ids, data.attacker, bounds, classes, structure=data.structure
    )


def robust(evidence: Evidence, changes: int) -> float:
    return float(100 * (1 - evidence.arrays[f"worst/{changes}"].mean()))


def invalid(x: Tensor, clean: Tensor, structure: Structure, most: int) -> int:
    """Records that nobody could send, or with more changes than are allowed."""
    bad = (x[:, list(structure.immutable)] != clean[:, list(structure.immutable)]).any(1) | ((x < 0) | (x > 1)).any(1)
    numbers = sorted({*range(x.shape[1])} - {at for block in structure.one_hot for at in block})
    changed = (x[:, numbers] != clean[:, numbers]).sum(1)
    for block in structure.one_hot:
        own = x[:, list(block)]
        bad |= (own.sum(1) != 1) | ((own != 0) & (own != 1)).any(1)
        changed = changed + (own != clean[:, list(block)]).any(1)
    return int((bad | (changed > most)).sum())


def missed(case: Case, settings: Substitution, evidence: Evidence) -> tuple[int, int]:
    """Of the records that withstand one change, how many some pair of changes fools, and how many were missed."""
    features = settings.features(case)
    first, second = torch.triu_indices(len(features.feature), len(features.feature), 1)
    apart = features.feature[first] != features.feature[second]
    first, second = first[apart], second[apart]
    standing = np.flatnonzero(~evidence.arrays["worst/1"])[:PAIRS]
    falls = lost = 0
    for row in standing.tolist():
        x = case.evaluation.x[row].expand(len(first), -1)
        answers = case.deployed.logits(features.moved(features.moved(x, first), second)).argmax(1)
        if bool((answers != case.evaluation.y[row]).any()):
            falls += 1
            lost += not evidence.arrays["worst/2"][row]
    return falls, lost


def on_adult(folder: Path) -> list[Row]:
    arrays = adult(folder)
    blocks = [tuple(range(first, last + 1)) for first, last in arrays["_blocks"]]
    names = [str(name) for name in arrays["_names"]]
    held = (*blocks[names.index("sex")], *blocks[names.index("race")])
    structure = Structure(one_hot=tuple(blocks), immutable=held)
    case = case_of(arrays, trained("adult", arrays, columns=arrays["x_train"].shape[1]), 1.0, structure)
    rows = []
    for reach in (1.0, REACH, 0.0):
        told = Substitution(gate_changes=2, reach=reach)
        before = time.process_time()
        evidence = told.run(case, seed=0)
        seconds = time.process_time() - before
        clean = float(100 * evidence.arrays["clean_correct"].mean())
        x = torch.from_numpy(evidence.arrays["adversarial"])
        where = f"numbers by up to {100 * reach:g} % of their range, {len(x)} records"
        bad = invalid(x, case.evaluation.x[: len(x)], structure, 2)
        rows += [
            Row("Adult: points lost at 2 changes", where, clean - robust(evidence, 2), "points", None, 15.0, "higher"),
            Row("Adult: points lost at 1 change", where, clean - robust(evidence, 1), "points"),
            Row("Adult: invalid records", where, float(bad), "", None, 0.0),
            Row("Adult: CPU", where, seconds, "s"),
        ]
        if reach == REACH:
            falls, lost = missed(case, told, evidence)
            rows.append(
                Row("Adult: missed of what all pairs find", f"{falls} found by all pairs", float(lost), "", None, 1.0)
            )
        again = told.run(replace(case, parent=None), seed=0)
        same = all(np.array_equal(again.arrays[name], evidence.arrays[name]) for name in evidence.arrays)
        rows.append(Row("Adult: dense against itself differs", where, float(not same), "", None, 0.0))
    return rows


def on_tokens(folder: Path) -> list[Row]:
    arrays = tokens(folder)
    case = case_of(arrays, trained("tokens", arrays), 23.0, Structure(tokens=True))
    allowed = tuple(range(0, 24, 2))
    evidence = Substitution(gate_changes=2, reach=1.0, allowed=allowed).run(case, seed=0)
    x, clean = evidence.arrays["adversarial"], case.evaluation.x[: len(evidence.arrays["ids"])].numpy()
    odd = int((~np.isin(x[x != clean], allowed)).sum()) + int(((x != clean).sum(1) > 2).sum())
    lost = float(100 * evidence.arrays["clean_correct"].mean()) - robust(evidence, 2)
    return [
        Row("token GRU: points lost at 2 changes", "12 of 24 ids allowed", lost, "points", None, 15.0, "higher"),
        Row("token GRU: substitutes that are not allowed, or too many", "", float(odd), "", None, 0.0),
    ]


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    if options.data is None:
        raise SystemExit("--data: the folder with adult.npz is needed")
    torch.set_num_threads(1)
    publish([*on_adult(options.data), *on_tokens(options.data)], options.json)


if __name__ == "__main__":
    main()
