"""Large inputs: what an audit of a MobileNet-sized net on 224x224x3 takes, and what a kill costs it.

300 records, 200 of them attacked; the net has random weights after one pass of batch norm, and what it answers are the
labels, so that there is something to attack without a training. The audit, on two workers as by default on two cores,
is killed with its workers once a part of its first attack is kept, and started again. Memory is that of the whole
family of processes: each page that they share counts once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from contract import Row, arguments, publish, resident
from safetensors.torch import save_file
from torch import Tensor, nn
from verdict import FORECAST

if TYPE_CHECKING:
    from crushproof.targets.steps import Arrays

SIDE, CLASSES, RECORDS = 224, 100, 300
GIGABYTES, MOST = 1e9, 4.0
LOG = "LARGE_PARTS"  # names the file in which the parts that are computed are noted
PLAN = """
name: large
data: {kind: npz, path: data.npz, bounds: [0, 1]}
model: {architecture: "large:mobile_net", weights: weights.safetensors}
candidates: {int8-weights: {kind: quantize, weight_bits: 8, calibration_inputs: noise}}
attacks:
  - kind: evasion
    epsilons: [0.00001]
    records: 200
    parts: [{kind: pgd, steps: 3}, transfer, {kind: square, queries: 5}]
  - kind: extraction
    budgets: [30, 60]
    answers: [scores]
    training: {epochs: 1, batch_size: 16}
    least_steps: 4
    most_rounds: 1
    transfer_records: 40
    transfer_steps: 2
"""
# expansion, channels, how often, stride: a MobileNetV2 (Sandler et al. 2018)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST = 2560


def normalised(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and batch norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [*normalised(inputs, wide), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*normalised(wide, wide, 3, stride, groups=wide), nn.ReLU6()]
        self.body = nn.Sequential(*widen, *depthwise, *normalised(wide, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def mobile_net() -> nn.Module:
    """Inverted residuals, about 3 million parameters. Whoever asks for one is watched from then: each process does."""
    if LOG in os.environ:
        note_parts(Path(os.environ[LOG]))
    layers: list[nn.Module] = [*normalised(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in STAGES:
        for repeat in range(repeats):
            layers.append(InvertedResidual(channels, outputs, stride if repeat == 0 else 1, expansion))
            channels = outputs
    layers += [*normalised(channels, LAST), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.BatchNorm1d(LAST), nn.Linear(LAST, CLASSES))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth coloured patches with a little grain, float32 [count, 3, 224, 224] in [0, 1]."""
    stream = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        coarse = torch.rand(1, 3, int(torch.randint(2, 12, (1,), generator=stream)), 7, generator=stream)
        picture = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False)
        found.append(picture + 0.05 * torch.randn(picture.shape, generator=stream))
    return (torch.cat(found).clamp(0, 1) * 255).round() / 255


def calibrated(net: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """Random weights, and the statistics of batch norm from one pass over `x`."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # the mean over the passes
    with torch.no_grad():
        net.train()
        for batch in x.split(50):
            net(batch)
    return net.eval()


def note_parts(log: Path) -> None:
    """From now on, each part that this process computes and keeps is noted in `log`."""
    from crushproof.audit.engine.store import Store

    keep = Store.keep
    if keep.__name__ == "noted":
        return

    def noted(self: Store, owner: str, name: str, arrays: Arrays) -> None:
        keep(self, owner, name, arrays)
        with log.open("a") as stream:
            stream.write(f"{owner} {name}\n")

    Store.keep = noted  # type: ignore[method-assign]  # to see what it is asked to keep


@dataclass
class Ended:
    """An audit that ran to its end or until it was killed.

    Args:
        largest: resident bytes of its largest process, in GB; family: of all of them, as seen every half second.
        computed: names of the parts it computed, each with its owner, in order.
    """

    code: int
    seconds: float
    largest: float
    family: float
    computed: list[str]
    output: str


def run(folder: Path, name: str, *, kill_after: str | None = None) -> Ended:
    """Runs the audit in processes of its own; kills them once a part whose name contains `kill_after` is kept."""
    log, output = folder / f"{name}.parts", folder / f"{name}.txt"
    log.touch()
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), LOG: str(log)}
    started, largest, family = time.monotonic(), 0, 0
    with output.open("w") as stream:
        command = [sys.executable, "-m", "crushproof", "audit", "plan.yaml", "--out", "out", "--workers", "2"]
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        while child.poll() is None:
            if kill_after is not None and kill_after in log.read_text():
                os.killpg(child.pid, signal.SIGKILL)
                kill_after = None
            sizes = resident(child.pid)
            largest, family = max([largest, *sizes]), max(family, sum(sizes))
            time.sleep(0.5)
    seconds = time.monotonic() - started
    computed = log.read_text().splitlines()
    return Ended(child.returncode, seconds, largest / GIGABYTES, family / GIGABYTES, computed, output.read_text())


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "plan.yaml").write_text(PLAN)
        x = pictures(RECORDS)
        net = calibrated(mobile_net(), x[:100])
        with torch.no_grad():
            y = torch.cat([net(batch).argmax(1) for batch in x.split(20)])
        save_file(net.state_dict(), folder / "weights.safetensors")
        names = np.array([f"class {label}" for label in range(CLASSES)])
        np.savez(folder / "data.npz", x_test=x.numpy(), y_test=y.numpy(), class_names=names)
        killed, resumed = run(folder, "killed", kill_after="pgd/"), run(folder, "resumed")
    assert killed.code == -signal.SIGKILL, killed.output
    assert resumed.code in (0, 1, 3), resumed.output
    repeated = sorted(set(killed.computed) & set(resumed.computed))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    setting = f"{parameters / 1e6:.1f} M parameters, {len(y.unique())} classes occur"
    told = [line for ended in (killed, resumed) for line in ended.output.splitlines() if "forecast" in line]
    announced = FORECAST.search(killed.output)
    assert announced is not None, killed.output
    forecast = float(announced[1]) * {"s": 1, "min": 60, "h": 3600}[announced[2]]
    ratio = forecast / (killed.seconds + resumed.seconds)
    rows = [
        Row("forecast off by a factor of", "both runs together", max(ratio, 1 / ratio), "", target=2.0),
        Row("peak memory", setting, max(killed.family, resumed.family), "GB", target=MOST),
        Row("largest process", setting, max(killed.largest, resumed.largest), "GB"),
        Row("time until the kill", f"{len(killed.computed)} parts kept", killed.seconds, "s"),
        Row("time of the rest", f"{len(resumed.computed)} parts", resumed.seconds, "s"),
        Row("finished parts computed again", "after SIGKILL", float(len(repeated)), "", target=0.0),
        Row("classes that occur", "at least 50", float(len(y.unique())), "", target=50.0, better="higher"),
    ]
    publish(rows, options.json, {"forecasts": told, "again": repeated, "kept": killed.computed})
    for line in told:
        print(line)


if __name__ == "__main__":
    main()
