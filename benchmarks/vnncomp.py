"""Counterexamples of verification benchmarks, through `evade` with a box per input and no tolerance.

    python benchmarks/vnncomp.py --data DIR

DIR holds folders with `instances.json`, `arrays.npz` (`lb`, `ub`, `x0`: float32 [n, inputs]) and the ONNX files that
the instances name. Each claim is checked by ONNX Runtime and NumPy alone. An instance is "sat" where a counterexample
is known, "unsat" where verifiers proved that there is none.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from contract import Row, arguments, publish

from crushproof.attacks.evasion.call.attackable import Attackable, attackable
from crushproof.attacks.evasion.evade import evade


def claimed(folder: Path, net: dict[str, Any], name: str, instance: dict[str, Any], x: np.ndarray[Any, Any]) -> bool:
    """Whether the net itself answers x, of its own shape, as the instance forbids."""
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    logits = session.run(None, {net["input_name"]: x.reshape(net["input_shape"])})[0].reshape(-1)
    label, wanted = instance["label"], instance["target"]
    if instance["kind"] == "untargeted":
        return bool(np.delete(logits, label).max() >= logits[label])
    return bool(logits[wanted] >= np.delete(logits, wanted).max())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    rows, spent, missed, wrong = [], list[float](), list[str](), list[str]()
    for folder in sorted(path.parent for path in Path(options.data).rglob("instances.json")):
        described = json.loads((folder / "instances.json").read_text())
        arrays = np.load(folder / "arrays.npz", allow_pickle=False)
        opened: dict[str, Attackable] = {}
        found, known = 0, 0
        for number, instance in enumerate(described["instances"]):
            name, net = instance["onnx"], described["nets"][instance["onnx"]]
            lower, upper, x = (torch.from_numpy(arrays[key][number : number + 1]) for key in ("lb", "ub", "x0"))
            if name not in opened:
                opened[name] = attackable(folder / name, tuple(x.shape[1:]))
            targeted = None if instance["kind"] == "untargeted" else instance["target"]
            label = torch.tensor([instance["label"] if instance["label"] is not None else 0])
            began = time.process_time()
            got = evade(
                opened[name], x.clamp(lower, upper), label,
                lower=lower, upper=upper, target_class=targeted, budget="thorough",
            )  # fmt: skip
            spent.append(time.process_time() - began)
            sat = instance["verdict"] == "sat"
            known += sat
            inside = bool(((got.adversarial >= lower) & (got.adversarial <= upper)).all())
            success = bool(got.success) and inside and claimed(folder, net, name, instance, got.adversarial.numpy())
            found += success and sat
            missed += [f"{folder.name} {number}"] if sat and not success else []
            wrong += [f"{folder.name} {number}"] if success and not sat else []
            wrong += [f"{folder.name} {number}: a claim that does not hold"] if bool(got.success) != success else []
        rows.append(Row(folder.name, f"of {known} sat", float(found), "", target=float(known), better="higher"))
    rows.append(Row("claims that cannot be", "unsat, or refuted by the net", float(len(wrong)), "", target=0.0))
    rows.append(Row("processor time", "median over instances", float(np.median(spent)), "s", target=0.5))
    rows.append(Row("processor time", "longest", max(spent), "s"))
    publish(rows, options.json, {"missed": missed, "wrong": wrong, "seconds": spent})
    for line in (*(f"missed: {name}" for name in missed), *(f"wrong: {name}" for name in wrong)):
        print(line)


if __name__ == "__main__":
    main()
