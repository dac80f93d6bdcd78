"""Twins against ONNX Runtime: on networks of others, on time, and as what PGD follows on a file of others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compression_catalogue import EPSILON, case
from compression_nets import SEED, Task, mnist_cnn, parameters, resnet_50
from contract import Row, alternate, cpu_seconds
from torch import Tensor, nn

from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.apgd import Apgd
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.compression.quantization.quantize import Quantize
from crushproof.targets.certificate import certify
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.model import TorchTarget
from crushproof.targets.runtimes.onnx import OnnxTarget, integer_kernels
from crushproof.targets.seeds import generator
from crushproof.targets.twin.twin import twin_of
from crushproof.training.architecture import Architecture

ATTACKED = 500  # test records
EPSILONS = (0.05, EPSILON)
STARTS = 8  # random corners, and random points, of each box


def vnncomp_rows(folder: Path) -> Iterator[Row]:
    """Every network of VNN-COMP there: boxes' centres, their lowest, highest and random corners, random points."""
    for instances in sorted(folder.glob("vnncomp/*/instances.json")):
        described = json.loads(instances.read_text())
        arrays = np.load(instances.parent / "arrays.npz", allow_pickle=False)
        for name, network in described["nets"].items():
            own = [index for index, one in enumerate(described["instances"]) if one["onnx"] == name]
            low, high, centre = (torch.from_numpy(arrays[key][own]) for key in ("lb", "ub", "x0"))
            draw = generator(SEED, "vnncomp", name)
            spread = [torch.rand(low.shape, generator=draw) for _ in range(STARTS)]
            corners = [torch.where(share < 0.5, low, high) for share in spread]
            points = [low + share * (high - low) for share in spread]
            inputs = {"centres": [centre], "corners": [low, high, *corners], "points": points}
            shaped = {kind: torch.cat(parts).view(-1, *network["input_shape"][1:]) for kind, parts in inputs.items()}
            model = (instances.parent / name).read_bytes()
            found = certify(OnnxTarget(model), TorchTarget(twin_of(model)), shaped).overall
            setting = f"{found.n} inputs of {len(own)} boxes"
            yield Row(
                f"twin of {name}", f"same label, {setting}", 100 * found.label_agreement, "%", None, 100.0, "higher"
            )
            yield Row(
                f"twin of {name}", f"largest logit difference, {setting}", found.max_logit_difference, "", None, 1e-3
            )


def resnet_rows() -> Iterator[Row]:
    """How long the twin of a large int8 file takes to build; the weights are untrained, the graph is ResNet-50's."""
    dense = Architecture("resnet_50", resnet_50).fresh(SEED).eval()
    nobody = Records(torch.zeros(0, 3, 64, 64), torch.zeros(0, dtype=torch.int64))
    recipe = Quantize(calibration_inputs="noise", calibration_records=2)
    quantized = recipe.apply(dense, nobody, Bounds.of(0, 1), seed=SEED)
    for name, module in (("float32", dense), ("int8", quantized)):
        file = to_onnx(module, (3, 64, 64))
        seconds = sorted(cpu_seconds(partial(twin_of, file)) for _ in range(3))[1]
        setting = f"import, {parameters(dense) / 1e6:.1f} M parameters, {len(file) / 1e6:.0f} MB, CPU, median of 3"
        yield Row(f"twin of a {name} ResNet-50", setting, seconds, "s", None, 2.0)


def forward_rows() -> Iterator[Row]:
    """The int8 twin's forward pass against the recipe's fused fake-quantised module, and both against float32."""
    dense = Architecture("mnist_cnn", mnist_cnn).fresh(SEED).eval()
    nobody = Records(torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64))
    quantized = Quantize(calibration_inputs="noise").apply(dense, nobody, Bounds.of(0, 1), seed=SEED)
    twin = twin_of(to_onnx(quantized, (1, 28, 28)))
    x = torch.rand(256, 1, 28, 28, generator=generator(SEED, "timed inputs"))

    def forward(module: nn.Module, gradients: bool) -> None:
        records = x.clone().requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            logits = module(records)
            if gradients:
                torch.autograd.grad(logits.sum(), records)

    for work, gradients in (("forward", False), ("forward and gradient", True)):
        modules = [module.requires_grad_(False) for module in (twin, quantized, dense)]
        for module in modules:
            forward(module, gradients)
        times = alternate(*(partial(forward, module, gradients) for module in modules), rounds=9)
        setting = f"{work}, MNIST CNN, batch 256, CPU"
        target = None if gradients else 1.5
        yield Row("int8 twin / recipe's module", setting, 1e3 * times[0], "ms", 1e3 * times[1], target)
        yield Row("int8 twin / float32", setting, 1e3 * times[0], "ms", 1e3 * times[2])
        yield Row("recipe's module / float32", setting, 1e3 * times[1], "ms", 1e3 * times[2])


def pgd_rows(task: Task) -> Iterator[Row]:
    """PGD and APGD through the twins of ONNX Runtime's own int8 files, and through that of the float32 file."""
    float32 = to_onnx(task.dense, task.shape)
    attacked = task.test.take(torch.arange(ATTACKED))
    plain = attack(float32, attacked, task.bounds)
    for form in ("QDQ", "QOperator"):
        file = quantized_by_onnxruntime(float32, task.train.x[:256], form)
        evidence = attack(file, attacked, task.bounds)
        name = f"PGD on ONNX Runtime's {form} file"
        for epsilon in EPSILONS:
            robust, peer = (100 * (1 - float(one[f"worst/{epsilon:g}"].mean())) for one in (evidence, plain))
            setting = f"eps {epsilon:g}, {ATTACKED} records"
            yield Row(name, f"robust accuracy, float32's as peer, {setting}", robust, "%", peer)
            yield Row(name, f"robust accuracy above float32's, {setting}", robust - peer, "points", None, 1.0)
        lost = unconfirmed(file, attacked, evidence, task.bounds)
        setting = f"successes at eps {EPSILON:g} that a new session of ONNX Runtime denies"
        yield Row(name, setting, float(lost), "records", None, 0.0)
        found = {"clean": attacked.x, "adversarial": torch.from_numpy(evidence["adversarial"])}
        agreement = certify(OnnxTarget(file), TorchTarget(twin_of(file)), found).overall
        kernels = ", ".join(f"{sum(kinds.values())} {name}" for name, kinds in integer_kernels(file).items())
        setting = f"same label as its twin; kernels: {kernels}"
        yield Row(name, setting, 100 * agreement.label_agreement, "%", None, 99.5, "higher")


def attack(file: bytes, records: Records, bounds: Bounds) -> dict[str, np.ndarray[Any, Any]]:
    """Evidence of white-box attacks through the file's twin, decided by ONNX Runtime; see `Evasion`."""
    parts = (Pgd(steps=40), Apgd(steps=40, restarts=2))
    evasion = Evasion(epsilons=EPSILONS, gate_epsilon=EPSILON, records=len(records), parts=parts)
    return evasion.run(case(OnnxTarget(file), twin_of(file), records, bounds), seed=SEED).arrays


def unconfirmed(file: bytes, records: Records, evidence: dict[str, np.ndarray[Any, Any]], bounds: Bounds) -> int:
    """Successes in the evidence that are no successes: right after all, out of bounds, or beyond epsilon."""
    fooled = torch.from_numpy(evidence[f"worst/{EPSILON:g}"])
    x = torch.from_numpy(evidence["adversarial"])
    wrong = OnnxTarget(file).logits(x).argmax(1) != records.y
    near = (x - records.x).abs().flatten(1).amax(1) <= EPSILON + 1e-6
    inside = ((x >= bounds.low) & (x <= bounds.high)).flatten(1).all(1)
    return int((fooled & ~(wrong & near & inside)).sum())


def quantized_by_onnxruntime(model: bytes, calibration: Tensor, form: str) -> bytes:
    """ONNX Runtime's static quantisation: u8 activations, s8 weights per channel; `form` is QDQ or QOperator."""
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
        def __init__(self) -> None:
            self.batches = iter(calibration.split(64))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        before, ready, after = (Path(folder) / f"{name}.onnx" for name in ("float32", "ready", "int8"))
        before.write_bytes(model)
        shape_inference.quant_pre_process(before, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready,
            after,
            Reader(),
            quant_format=quantization.QuantFormat[form],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return after.read_bytes()
