"""Models that predict values: their error is audited, attacks on classes are rows that say they do not apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import crushproof
from crushproof.attacks.statistics import rates
from crushproof.audit.plan.plan import parse_plan
from crushproof.audit.result import AuditResult
from crushproof.audit.subject.records import load_data
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.verdict.judging import check_verdicts
from crushproof.compression.deployment.onnx_export import to_onnx
from crushproof.targets.data.csv import load_csv
from crushproof.targets.data.npz import load_npz
from crushproof.targets.data.records import Bounds, Records
from crushproof.targets.errors import InputError
from crushproof.targets.model import TorchTarget
from crushproof.targets.model_checks import check_model
from crushproof.targets.seeds import global_seed
from crushproof.training.loop import Training, train
from crushproof.training.networks import Mlp

pytestmark = pytest.mark.usefixtures("undrawn")


def friedman(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Friedman's first test function (1991) in units of its standard deviation."""
    x = np.random.default_rng(seed).random((n, 6), dtype=np.float32)
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x, ((y - 14.4) / 4.9).astype(np.float32)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    members, others = friedman(600, 0), friedman(600, 1)
    records = Records(torch.from_numpy(members[0]), torch.from_numpy(members[1]).reshape(-1, 1))
    with global_seed(0, "friedman"):
        start = Mlp(6, 1, (32, 32))
    module = train(start, records, Training(epochs=40), seed=0)
    return crushproof.audit_model(
        module,
        members,
        others,
        {"int8": "int8", "prune30": "prune30", "coarse": {"kind": "prune", "sparsity": 0.9}},
        task="regression",
        out=tmp_path_factory.mktemp("regression"),
    )


def test_the_error_is_judged_against_the_parent(result: AuditResult) -> None:
    rows = {row.name: row for row in result.audit.candidates}
    assert rows["dense"].accuracy is None
    assert rows["dense"].quality.estimate < 0.15
    assert rows["int8"].verdict == "pass"
    assert rows["coarse"].verdict == "fail"
    assert rows["coarse"].quality_change is not None
    assert rows["coarse"].quality_change.low > 0.02
    assert {gate.rule for gate in result.audit.policy} == {"mean_squared_error"}
    assert result.audit.policy_name == "release, without evasion and membership: the model predicts values"
    check_verdicts(result.audit, Path())  # as `report` and `gate` do


def test_attacks_on_classes_are_rows_that_do_not_apply(result: AuditResult) -> None:
    kinds = {finding.risk for finding in result.audit.findings}
    assert kinds == {"evasion", "membership", "extraction", "churn", "leakage", "tampering"}
    for finding in result.audit.findings:
        if finding.risk == "leakage":  # the file is searched whatever the model answers
            assert finding.estimate is not None
            continue
        assert finding.estimate is None
        assert finding.reason is not None
        assert "not applicable" in finding.reason


def test_the_report_says_error_and_not_accuracy(result: AuditResult, tmp_path: Path) -> None:
    page = result.to_html(tmp_path / "report.html").read_text()
    assert "Mean squared error against size" in page
    assert "Accuracy against size" not in page
    assert 'data-label="Mean squared error"' in page  # what stands over the figure on a phone
    assert 'data-label="Accuracy"' not in page
    assert ", values to predict," in page
    assert result.audit.power == []


def test_a_finished_file_of_values_is_refused_in_a_sentence(tmp_path: Path) -> None:
    x, y = friedman(40, 0)
    np.savez(tmp_path / "d.npz", x_test=x, y_test=y)
    (tmp_path / "model.onnx").write_bytes(to_onnx(torch.nn.Linear(6, 1), (6,)))
    data = "data: {kind: npz, path: d.npz, task: regression}"
    for rest in ("candidates: {a: {file: model.onnx}}", "model: {file: model.onnx}\ncandidates: {a: int8}"):
        with pytest.raises(InputError, match="a finished file of a model that predicts values"):
            resolve(parse_plan(f"{data}\n{rest}\n"), tmp_path)


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(1, 2, 50)
    found = rates.mean(values)
    reference = stats.ttest_1samp(values, 0)
    low, high = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(reference.pvalue)
    assert rates.mean(np.zeros(5)).p_value == 1


def test_values_from_files(tmp_path: Path) -> None:
    x, y = friedman(40, 0)
    np.savez(tmp_path / "d.npz", x_test=x, y_test=y)
    data = load_npz(tmp_path / "d.npz", regression=True)
    assert data.regression
    assert (data.outputs, data.class_names) == (1, ())
    assert torch.equal(data.non_members.y[:, 0], torch.from_numpy(y))
    with pytest.raises(InputError, match="task: regression"):
        load_npz(tmp_path / "d.npz")
    lines = ["a,b,target", *(f"{row[0]},{row[1]},{value}" for row, value in zip(x, y, strict=True))]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    table = load_csv(None, tmp_path / "d.csv", label="target", regression=True)
    assert torch.allclose(table.non_members.y[:, 0], torch.from_numpy(y))
    (tmp_path / "bad.csv").write_text("\n".join([*lines, "1,1,high"]))
    with pytest.raises(InputError, match="numbers to predict"):
        load_csv(None, tmp_path / "bad.csv", label="target", regression=True)


def test_a_plan_says_task(tmp_path: Path) -> None:
    x, y = friedman(40, 0)
    np.savez(tmp_path / "d.npz", x_test=x, y_test=y)
    plan = parse_plan(
        "data: {kind: npz, path: d.npz, task: regression}\nmodel: {architecture: a:b}\ncandidates: {int8: int8}\n"
    )
    assert load_data(plan, tmp_path).regression


def test_a_model_that_explains_nothing_is_refused() -> None:
    x, y = (torch.from_numpy(part) for part in friedman(100, 0))
    zero = torch.nn.Linear(6, 1)
    torch.nn.init.zeros_(zero.weight)
    records = Records(x, y.reshape(-1, 1))
    with pytest.raises(InputError, match="predicting their mean does as well"):
        check_model(TorchTarget(zero), records, Bounds.of(0, 1), 1)
    with pytest.raises(InputError, match="one number per value"):
        check_model(TorchTarget(torch.nn.Linear(6, 2)), records, Bounds.of(0, 1), 1)


def test_members_and_others_predict_the_same_values() -> None:
    (x, y), (other, wanted) = friedman(40, 0), friedman(40, 1)
    two = np.stack([y, y], 1)
    with pytest.raises(InputError, match=r"\(y_train\) has 2 values to predict and a test record \(y_test\) 1"):
        crushproof.audit_model(Mlp(6, 1, (8,)), (x, two), (other, wanted), "int8", task="regression")
