"""Finished files, audited from the command line and from a plan: no recipe, no architecture, perhaps a dense model."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from crushproof.audit import cli
from crushproof.audit.plan.command_line import candidate_name
from crushproof.audit.plan.plan import Plan
from crushproof.audit.plan.presets import ATTACK_PRESETS
from crushproof.audit.plan.sections import InterfacePlan
from crushproof.audit.schema.rows import Audit, Candidate
from crushproof.audit.subject import finished_file
from crushproof.audit.subject.finished_file import open_file, question_of, reading_of
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.suite.model_cells import take_file
from crushproof.audit.suite.suite import spawn_argument, suite_of
from crushproof.audit.verification.checks import verify
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.data import Data
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.recent import Recent
from crushproof.targets.runtimes.openvino import OpenVino, OpenVinoTarget
from crushproof.targets.serving.smoothed import PROPERTY
from crushproof.targets.untrusted import _check_onnx, model_file
from crushproof.targets.untrusted.model_file import CheckedOnnx, read_model_file
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

pytestmark = pytest.mark.usefixtures("undrawn", "without_forests")
ATTACKS = [
    {"kind": "evasion", "records": 20, "epsilons": [0.1], "parts": [{"kind": "pgd", "steps": 3}, "transfer"]},
    "membership",
]
EXTRACTION = {"kind": "extraction", "budgets": [40], "least_steps": 20, "most_rounds": 1}


def audit(*arguments: str | Path, folder: Path) -> tuple[int, str, Audit | None]:
    """Exit code, what was printed, and the audit that was written."""
    out = folder / "out"
    words = ["audit", *map(str, arguments), "--out", str(out), "--workers", "0"]
    done = CliRunner().invoke(cli.app, words)
    path = out / "audit.json"
    return done.exit_code, done.output, Audit.model_validate_json(path.read_bytes()) if path.is_file() else None


@pytest.fixture(scope="module")
def folder(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLP as ONNX, ONNX Runtime's own int8 file of it, one with a tampered layer, and the records, in 0..255."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    place = tmp_path_factory.mktemp("files")
    assert digits.members is not None
    model: nn.Module = train(Mlp(64, 10, (32,)), digits.members, Training(epochs=8), seed=0)
    (place / "model.onnx").write_bytes(to_onnx(model, digits.shape))

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.left = iter([{"input": digits.members.x[:128].numpy()}] if digits.members is not None else [])

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(
        place / "model.onnx",
        place / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    tampered = onnx.load(place / "int8.onnx")
    codes = max(tampered.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = onnx.numpy_helper.to_array(codes).copy()
    chosen = np.random.default_rng(0).permutation(values.size)[: values.size // 20]
    values.flat[chosen] = np.where(values.flat[chosen] > 0, values.flat[chosen] - 2, values.flat[chosen] + 2)
    codes.CopyFrom(onnx.numpy_helper.from_array(values, codes.name))
    onnx.save(tampered, place / "tampered.onnx")
    arrays = {"x_test": digits.non_members.x, "y_test": digits.non_members.y}
    few = {name: values[:200] for name, values in arrays.items()}
    members = {"x_train": digits.members.x[:400], "y_train": digits.members.y[:400]}
    for name, chosen_arrays in (("test", few), ("both", {**arrays, **members})):
        np.savez(
            place / f"{name}.npz",
            **{key: np.round(v.numpy() * 255).astype(np.uint8) for key, v in chosen_arrays.items() if key[0] == "x"},
            **{key: v.numpy() for key, v in chosen_arrays.items() if key[0] == "y"},
        )
    return place


def plan(folder: Path, name: str, **fields: Any) -> Path:
    raw = {"attacks": ATTACKS, "shadows": {"training_free": 2, "trained": 2}, **fields}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(raw))
    return path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every ONNX model that this process parses from now on; what it parsed before is forgotten."""
    monkeypatch.setattr(model_file, "_checked", Recent(model_file.AT_HAND))
    seen: list[bytes] = []
    parse = _check_onnx.parse
    monkeypatch.setattr(_check_onnx, "parse", lambda data: (seen.append(data), parse(data))[1])
    return seen


def row(found: Audit | None, name: str) -> Candidate:
    assert found is not None
    return next(one for one in found.candidates if one.name == name)


def test_one_line_on_a_file_alone(
    folder: Path, tmp_path: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {one["kind"]: one for one in ATTACK_PRESETS["standard"]}
    for name, value in EXTRACTION.items():  # of its usual size it takes longer than all the rest
        monkeypatch.setitem(usual["extraction"], name, value)
    monkeypatch.setitem(usual["evasion"], "records", 15)
    code, said, found = audit(
        "--artifact", folder / "int8.onnx", "--data", folder / "test.npz", "--bounds", "0", "255", folder=tmp_path
    )
    assert code == 3  # nothing to compare with, and the built-in policy limits changes only
    assert said.index("Nothing can be judged") < said.index("steps to compute")
    assert "--dense model.onnx" in said
    candidate = row(found, "int8")
    assert found is not None
    assert candidate.kernels is not None
    assert candidate.kernels.integer > 0
    assert candidate.certificate is not None
    assert candidate.certificate.label_agreement >= 0.995
    assert any("0..1" in line and "overrule" in line for line in candidate.assumed), candidate.assumed
    risks = {finding.risk: finding for finding in found.findings if finding.id.count("/") == 1}
    assert risks["evasion"].threat_model.access == "white-box"
    assert risks["evasion"].estimate is not None
    assert risks["evasion"].changes == []
    assert {part.name for part in risks["evasion"].parts if part.estimate is not None} >= {
        "pgd",
        "apgd-targeted",
        "square",
    }
    assert "training records" in (risks["membership"].reason or "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "A differentiable twin was read" in page
    assert "int8.onnx" in page
    assert parsed.count((folder / "int8.onnx").read_bytes()) == 1  # whoever runs, follows or weighs it
    assert {check.what: check.words for check in verify(tmp_path / "out") if check.state == "bad"} == {}


def test_with_the_dense_model_the_lineage_is_checked(folder: Path, tmp_path: Path, parsed: list[bytes]) -> None:
    written = plan(
        folder,
        "both",
        data={"kind": "npz", "path": "both.npz"},
        model={"file": "model.onnx"},
        runtimes=["openvino", "tensorrt"],
        candidates={
            "int8": {"file": "int8.onnx", "recipe": "int8"},
            "tampered": {"file": "tampered.onnx"},
            "made": {"kind": "quantize", "weight_bits": 4, "keep_ends_8bit": False},
            "phone": {"recipe": "int8", "deploy": "tflite"},
        },
    )
    _, _, found = audit(written, folder=tmp_path)
    honest, tampered, made = row(found, "int8"), row(found, "tampered"), row(found, "made")
    assert honest.lineage is not None
    assert honest.lineage.verdict == "confirmed"
    assert tampered.lineage is not None
    assert tampered.lineage.verdict == "not a rounding of the dense model"
    assert any("5.0 %" in line or "4.9 %" in line for line in tampered.lineage.sentences)
    assert made.lineage is None  # its bytes were made here
    assert [parsed.count((folder / name).read_bytes()) for name in ("int8.onnx", "tampered.onnx", "model.onnx")] == [
        1
    ] * 3
    for one in (honest, made):
        assert [(runtime.name, runtime.phrase) for runtime in one.runtimes] == [("openvino", "OpenVINO")]
        assert one.runtimes[0].label_agreement >= 0.98
    assert found is not None
    gaps = {gap.what: gap.reason for gap in found.not_measured if gap.candidate == "int8"}
    assert "no GPU" in gaps["in tensorrt"]
    gate = {gate.candidate: gate.verdict for gate in found.policy if gate.rule == "lineage"}
    assert gate == {"int8": "pass", "tampered": "inconclusive"}  # how the latter was made is not declared
    assert honest.disagreement is not None
    assert honest.disagreement.estimate < 0.05
    assert honest.quality_change is not None
    assert honest.quality_change.baseline == "dense"
    assert made.footprint.ratio > 4
    assert found is not None
    membership = {finding.candidate: finding for finding in found.findings if finding.risk == "membership"}
    assert membership["int8"].estimate is not None
    assert "shadows-differ" in membership["tampered"].flags  # how it was compressed is not declared
    assert "in OpenVINO: " in (tmp_path / "out" / "report.html").read_text()
    phone, (shipped,) = row(found, "phone"), (tmp_path / "out").rglob("model.tflite")
    assert (phone.digest, phone.kernels) == (hashlib.sha256(shipped.read_bytes()).hexdigest(), None)
    assert phone.certificate is not None
    assert phone.certificate.label_agreement >= 0.98
    assert all(one.estimate is not None for one in found.findings if one.candidate == "phone")
    assert (
        "no ONNX file"
        in {gap.what: gap.reason for gap in found.not_measured if gap.candidate == "phone"}["in openvino"]
    )


def test_what_was_found_is_asked_again_in_every_runtime_and_the_worst_counts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that gets all wrong that it rounds."""

    opened = OpenVino.open

    def spoilt(self: OpenVino, model: CheckedOnnx, *, output: str | None = None) -> OpenVinoTarget:
        target = opened(self, model, output=output)
        if b"QuantizeLinear" in model.usable:
            answers = target.logits
            monkeypatch.setattr(target, "logits", lambda x: -answers(x))
        return target

    monkeypatch.setattr(OpenVino, "open", spoilt)  # no class of its own, whose every import would be digested
    written = plan(
        folder,
        "elsewhere",
        data={"kind": "npz", "path": "both.npz"},
        model={"file": "model.onnx"},
        attacks=ATTACKS[:1],
        policy={"changes": {"robust_accuracy": -0.05}},
        runtimes=["openvino"],
        candidates={"int8": {"file": "int8.onnx", "recipe": "int8"}},
    )
    code, _, found = audit(written, folder=tmp_path)
    assert (code, found is None) == (1, False)
    assert found is not None
    dense, int8 = (next(one for one in found.findings if one.candidate == name) for name in ("dense", "int8"))
    again = {one.candidate: {part.name: part for part in one.parts}["asked again in OpenVINO"] for one in (dense, int8)}
    assert int8.estimate is not None
    assert dense.estimate is not None
    assert int8.estimate.estimate == again["int8"].estimate == 0 < dense.estimate.estimate
    assert again["dense"].estimate is not None
    assert dense.estimate.estimate <= again["dense"].estimate
    change = int8.changes[0]
    assert "asked again in OpenVINO" in [part.name for part in int8.parts if part.counted]
    assert change.difference == -change.baseline_estimate < 0


def test_what_is_kept_of_a_file_follows_from_its_identity(folder: Path, digits: Data) -> None:
    """What was declared of it is not in the kept result, which would go on saying it when it is declared otherwise."""
    data = replace(
        digits, bounds=Bounds.of(0.0, 255.0), non_members=Records(digits.non_members.x * 255, digits.non_members.y)
    )
    found = open_file("int8.onnx", folder, InterfacePlan(), data)
    declared = replace(found, notes=("Declared: units 0..1.", *found.notes))
    assert found.identity == declared.identity
    assert take_file(found, data, 0).document == take_file(declared, data, 0).document


def test_members_without_a_dense_model(folder: Path, tmp_path: Path) -> None:
    written = plan(
        folder,
        "members",
        data={"kind": "npz", "path": "both.npz"},
        candidates={"int8": {"file": "int8.onnx"}},
        attacks=[ATTACKS[1], EXTRACTION],
    )
    _, _, found = audit(written, folder=tmp_path)
    assert found is not None
    assert all(one.estimate is not None for one in found.findings if one.id == "int8/extraction")
    exposed = next(one for one in found.findings if one.id == "int8/membership")
    assert exposed.estimate is not None
    assert "no-shadows" in exposed.flags
    assert exposed.attack.startswith("population")


def test_mistakes_end_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> tuple[int, str]:
        code, said, found = audit(*arguments, folder=tmp_path)
        assert found is None
        assert "Traceback" not in said
        return code, " ".join(said.split())

    file, data = folder / "int8.onnx", folder / "test.npz"
    code, said = refused("--data", data)
    assert (code, "--data belongs to --artifact" in said) == (2, True)
    code, said = refused("--artifact", file)
    assert (code, "x_test and y_test" in said) == (2, True)
    code, said = refused("--artifact", file, "--data", data, "--mean", "grey")
    assert (code, "--mean" in said) == (2, True)
    code, said = refused("--artifact", file, "--data", data, "--mean", "40", "--std", "0.01")
    assert code == 2
    code, said = refused("--artifact", file, "--data", data, "--recipe", "int8")
    assert (code, "dense model" in said) == (2, True)
    code, said = refused("--artifact", folder / "int9.onnx", "--data", data)
    assert (code, "int8.onnx" in said) == (2, True)  # did you mean
    crafted = tmp_path / "crafted.onnx"
    torch.save({"a": torch.zeros(3)}, crafted)
    assert refused("--artifact", crafted, "--data", data)[0] == 5
    voted = onnx.load(folder / "model.onnx")
    voted.metadata_props.add(key=PROPERTY, value='{"sigma": 2, "samples": 4, "shape": [], "scale": [2]}')
    onnx.save(voted, tmp_path / "voted.onnx")
    code, said = refused("--artifact", tmp_path / "voted.onnx", "--data", data)
    assert (code, "audited as it answers by itself" in said) == (2, True), "it would be served otherwise"
    code, said = refused("--artifact", file, "--data", data, folder / "both.yaml")
    assert (code, "Give either a plan" in said) == (2, True)


@pytest.mark.parametrize("name", ["dense.onnx", "dense-int8.onnx", "model (1).onnx", "-.onnx"])
def test_any_file_name_gives_a_name_that_a_plan_takes(name: str) -> None:
    called = candidate_name(Path(name))
    data = {"kind": "npz", "path": "test.npz"}
    assert list(Plan.model_validate({"data": data, "candidates": {called: {"file": name}}}).candidates) == [called]


def test_plans_of_files_are_checked(folder: Path, tmp_path: Path) -> None:
    data = {"kind": "npz", "path": "test.npz"}
    wrong = {
        "no dense model to compress": {"data": data, "candidates": {"int8": "int8"}},
        "nothing can be compressed as": {"data": data, "candidates": {"a": {"file": "int8.onnx", "recipe": "int8"}}},
        "either architecture": {"data": data, "model": {}, "candidates": {"a": {"file": "int8.onnx"}}},
        "no finished file, or": {"data": data, "candidates": {"a": {"interface": {"layout": "flat"}}}},
    }
    for words, fields in wrong.items():
        code, said, _ = audit(plan(folder, "wrong", **fields), folder=tmp_path)
        assert code == 2, words
        if words != "no finished file, or":
            assert words in " ".join(said.split())


def test_what_a_file_means_is_found_out_once(folder: Path, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker, and the next run, are told; a file that changed in the meantime is looked at again."""
    shipped = folder / "shipped.onnx"
    shutil.copy(folder / "int8.onnx", shipped)
    data = {"kind": "npz", "path": "test.npz", "bounds": [0, 255]}
    plan = Plan.model_validate({"data": data, "candidates": {"shipped": {"file": "shipped.onnx"}}})
    first = resolve(plan, folder)
    asked: list[str] = []
    monkeypatch.setattr(finished_file, "assume", lambda *_: asked.append("assume"))
    monkeypatch.setattr(finished_file, "read_model_file", lambda *_: asked.append("read"))
    second = suite_of(spawn_argument(plan, folder, first)).subject
    assert asked == []
    assert second.files["shipped"].identity == first.files["shipped"].identity
    assert second.files["shipped"].notes == first.files["shipped"].notes
    told = {"shipped": reading_of(first.files["shipped"]).model_dump(mode="json")}
    monkeypatch.setattr(
        finished_file, "read_model_file", lambda path, record: (asked.append("read"), read_model_file(path, record))[1]
    )
    assert resolve(plan, folder, lambda question: told if question == first.question else None).files
    assert asked == ["read"], "what an output folder says of a file does not vouch for its bytes"
    shutil.copy(folder / "tampered.onnx", shipped)
    monkeypatch.undo()
    assert resolve(plan, folder, lambda question: told).files["shipped"].digest != first.files["shipped"].digest
    assert question_of(plan, folder, first.data) != first.question
