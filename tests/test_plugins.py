"""Techniques of other packages: their code decides what is computed anew, and no name hides another."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crushproof.attacks.attack import ATTACKS, Attack
from crushproof.attacks.evasion.engine import PERTURBERS
from crushproof.attacks.evasion.evasion import Evasion
from crushproof.attacks.evasion.gradient.pgd import Pgd
from crushproof.attacks.evasion.preparations.crafted import CraftedOnParent
from crushproof.audit.catalogue import catalogue
from crushproof.audit.doctor import brought, examine
from crushproof.audit.engine.driver import run
from crushproof.audit.engine.schedule import Outcome
from crushproof.audit.engine.store import Store
from crushproof.audit.findings.assemble import assemble
from crushproof.audit.plan.plan import Plan, check_techniques
from crushproof.audit.plan.settings import technique_like
from crushproof.audit.subject import sources
from crushproof.audit.subject.identity import technique_identity
from crushproof.audit.subject.resolve import resolve
from crushproof.audit.subject.sources import release, source_digest
from crushproof.audit.suite.lineup import numbered
from crushproof.audit.suite.suite import Suite
from crushproof.audit.verdict.policy import BUILT_IN
from crushproof.compression.recipe import RECIPES
from crushproof.defenses.defense import DEFENSES
from crushproof.targets.errors import InputError
from crushproof.targets.runtimes import runtime
from crushproof.targets.runtimes.runtime import RUNTIMES

PLUGIN = """
from types import SimpleNamespace
from typing import ClassVar, Literal
import numpy as np
from crushproof.attacks.access import Access
from crushproof.attacks.attack import Attack
from crushproof.attacks.case import Evidence
from crushproof.attacks.evasion.engine import Perturber
from crushproof.attacks.measurement import Mean, Measurement
from crushproof.attacks.preparation import Ran
from crushproof.attacks.risk import Chart, Metric, Risk
from crushproof.compression.recipe import Recipe
from crushproof.targets.runtimes.runtime import Runtime
from plug_helper import VALUE

FIGURE = Metric(name="probed", title="Probed", subject="what was probed", unit="number", better="lower", meaning="")

class Probe(Attack):
    kind: Literal["candidate"] = "candidate"
    risk: ClassVar[Risk] = Risk(
        name="probe", title="Probe", question="", wants="", harm="", advice=(), reading="", chart=Chart(x="", curve="")
    )
    metrics: ClassVar[tuple[Metric, ...]] = (FIGURE,)
    def run(self, case, *, seed):
        return Evidence({"value": np.array([VALUE])}, {})
    def measure(self, results):
        return [Measurement(FIGURE, "probe", Mean(results.evidence(Ran(results.model.name)).arrays["value"]))]

class Part(Perturber):
    kind: Literal["probing"] = "probing"
    access: ClassVar[Access] = Access.SCORES
    def perturb(self, search, case):
        search.close()

class Echo(Runtime):
    '''Answers with ONNX Runtime, and says so.'''
    kind: Literal["echo"] = "echo"
    gain: float = 1.0
    phrase: ClassVar[str] = "the echo"
    packages: ClassVar[tuple[str, ...]] = ("plug",)
    def open(self, model, *, output=None):
        from crushproof.targets.runtimes.onnx import OnnxTarget
        if VALUE == 13:
            raise RuntimeError("unlucky")
        target = OnnxTarget(model, output=output)
        return SimpleNamespace(queries=0, logits=lambda x: self.gain * target.logits(x))

class Same(Recipe):
    kind: Literal["same"] = "same"
    phrase: ClassVar[str] = "as it is"
    trains: ClassVar[bool] = False
    touches_records: ClassVar[bool] = False
    def apply(self, module, records, bounds, *, seed):
        return module
"""
PLAN: dict[str, Any] = {
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 1}},
    "candidates": {"plain": "int8", "same": {"kind": "same"}, "deep": {"kind": "chain", "steps": ["same", "quantize"]}},
    "attacks": [
        {"kind": "candidate"},
        {"kind": "evasion", "records": 100, "parts": [{"kind": "probing"}]},
        "extraction",
    ],
}
Write = Callable[..., None]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A package with four entry points, as one installed by a link to its sources. It writes and loads its code."""
    for registry in (ATTACKS, PERTURBERS, RECIPES, DEFENSES, RUNTIMES):
        known = dict(registry.kinds())
        monkeypatch.setattr(registry, "_classes", known)
        monkeypatch.setattr(registry, "_folded", {kind: known[kind] for kind in known})
        monkeypatch.setattr(registry, "_complete", False)
    folder = tmp_path / "plugin"
    (folder / "plug-1.dist-info").mkdir(parents=True)
    (folder / "plug-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (folder / "plug-1.dist-info" / "entry_points.txt").write_text(
        "[crushproof.attacks]\na = plug:Probe\n[crushproof.perturbers]\nb = plug:Part\n"
        "[crushproof.recipes]\nc = plug:Same\n[crushproof.runtimes]\nd = plug:Echo\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # bytecode misses edits within one second

    def write(text: str = PLUGIN, value: int = 1) -> None:
        """The code, in this process as a fresh one would have it."""
        (folder / "plug.py").write_text(text)
        (folder / "plug_helper.py").write_text(f"VALUE = {value}\n")
        for name in ("plug_helper", "plug"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        release.cache_clear()
        for registry in (ATTACKS, PERTURBERS, RECIPES, RUNTIMES):
            registry._complete = False

    write()
    return write


def suite(**changes: Any) -> Suite:
    plan = Plan.model_validate({**PLAN, **changes})
    check_techniques(plan)
    return Suite(plan, resolve(plan, Path()))


def keys(work: Suite) -> dict[str, str]:
    return {cell.name: cell.key for cell in work.cells()}


def touched(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The cells whose work changed."""
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def compute(work: Suite, out: Path, *names: str) -> Outcome:
    with Store(out) as store:
        outcome = run(work, store, cells=work.closure(list(names)))
    assert outcome.failed == {}
    return outcome


PROBED = {f"attack/candidate/{name}" for name in ("dense", "plain", "same", "deep")}
ATTACKED = {f"attack/{label}/{name}" for label in ("evasion", "extraction") for name in ("same", "deep")}
PARTED = {f"attack/evasion/{name}" for name in ("dense", "plain")} | {"room/evasion/dense"}
PARTED |= {f"evade_only/evasion/{name}" for name in ("plain", "same", "deep")}  # the dense model is asked about them
PARTED |= {f"asked-of-others/evasion/{name}" for name in ("dense", "plain", "same", "deep")}  # and so is every other
MADE = {"latency"} | {f"{sort}/{name}" for sort in ("candidate", "memory") for name in ("same", "deep")}


@pytest.mark.parametrize(
    "edit",
    [
        lambda write: write(PLUGIN + "# another line\n"),
        lambda write: write(value=2),
        lambda write: write(PLUGIN.replace("return module", "return module.eval()")),
    ],
)
def test_edited_code_is_computed_anew_and_only_where_it_is_in_play(plugin: Write, edit: Any) -> None:
    before = keys(suite())
    plugin()
    assert keys(suite()) == before
    edit(plugin)
    assert touched(before, keys(suite())) == PROBED | ATTACKED | PARTED | MADE


def test_another_version_is_computed_anew(plugin: Write, tmp_path: Path) -> None:
    before = keys(suite())
    (tmp_path / "plugin" / "plug-1.dist-info" / "METADATA").write_text("Name: plug\nVersion: 2\n")
    plugin()
    assert "attack/candidate/plain" in touched(before, keys(suite()))


def test_an_attack_named_like_a_sort_of_cell_runs_and_runs_again_when_edited(plugin: Write, tmp_path: Path) -> None:
    cell, out = "attack/candidate/plain", tmp_path / "out"
    for value in (1, 1, 2):
        plugin(value=value)
        work = suite()
        outcome = compute(work, out, cell)
        assert Store(out).get(work.cell(cell).key).arrays["value"].tolist() == [value]
    assert outcome.computed == [cell]
    assert compute(work, out, cell).computed == []


def test_code_edited_and_not_reloaded_does_not_pass_for_the_new_one(plugin: Write, tmp_path: Path) -> None:
    suite()
    old = ATTACKS.kinds()["candidate"]()
    text = PLUGIN.replace("[VALUE]", "[VALUE + 1]")
    (tmp_path / "plugin" / "plug.py").write_text(text)
    stale = technique_identity(old)
    plugin(text)
    assert technique_identity(ATTACKS.parse("candidate")) != stale


def test_a_class_without_a_file_counts_by_its_code() -> None:
    found = []
    for body in ("return 1", "return 2", "return 1"):
        names: dict[str, Any] = {"Attack": Attack, "ClassVar": ClassVar, "__name__": "__main__"}
        methods = f"  def run(self, case, *, seed): {body}\n  def measure(self, results): return []"
        methods += "\n  risk: ClassVar[int] = 1\n  metrics: ClassVar[int] = 1"
        exec(f"class Own(Attack):\n  kind: str = 'own'\n{methods}", names)
        found.append(technique_identity(names["Own"]()))
    assert found[0] == found[2] != found[1]
    assert technique_identity(Evasion()) == [Evasion().model_dump(mode="json")], "ours: the version in every key"


def test_the_version_of_an_imported_library_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.py").write_text("import scipy.stats\n")
    before = source_digest(["m"], tmp_path)
    monkeypatch.setattr(sources, "release", lambda name: "99" if name == "scipy" else "")
    assert source_digest(["m"], tmp_path) != before


# What is missing now --------------------------------------------------------------------------------------------------


def test_a_runtime_that_was_missing_is_asked_once_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = suite(candidates={"plain": "int8"}, attacks=["extraction"], runtimes=["openvino", "tensorrt"])
    cells = [f"runtime/{runtime}/plain" for runtime in ("openvino", "tensorrt")]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        outcome = compute(work, tmp_path, *cells)
    assert "not installed" in outcome.unavailable[cells[0]]
    assert "no GPU" in outcome.unavailable[cells[1]]
    outcome = compute(work, tmp_path, *cells)
    assert outcome.computed == cells[:1]
    assert list(outcome.unavailable) == cells[1:]


def test_another_version_of_a_runtime_is_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"candidates": {"plain": "int8"}, "attacks": ["extraction"], "runtimes": ["openvino"]}
    before, known = keys(suite(**settings)), runtime.version
    monkeypatch.setattr(runtime, "version", lambda name: "99" if name == "openvino" else known(name))
    assert touched(before, keys(suite(**settings))) == {"runtime/openvino/plain", "runtime/openvino/dense"}


def test_a_runtime_of_another_package_runs_and_is_listed(plugin: Write, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"candidates": {"plain": "int8"}, "attacks": ["extraction"]}
    work = suite(**settings, runtimes=["echo", {"kind": "echo", "gain": 2}])
    cells = ["runtime/echo/plain", "runtime/echo-2/plain"]
    compute(work, tmp_path / "out", *cells)
    same, doubled = (Store(tmp_path / "out").get(work.cell(cell).key).document for cell in cells)
    assert same["label_agreement"] == doubled["label_agreement"] == 1
    assert same["max_logit_difference"] == 0 < doubled["max_logit_difference"]
    entry = next(entry for entry in catalogue() if entry.kind == "echo")
    assert (entry.sort, entry.summary) == ("runtime", "Answers with ONNX Runtime, and says so.")
    assert [parameter.name for parameter in entry.parameters] == ["gain"]
    checks = {check.what: check for check in examine(tmp_path)}
    assert (checks["echo"].state, checks["echo"].words) == ("ok", "plug 1")
    before = keys(work)
    plugin(value=2)
    assert touched(before, keys(suite(**settings, runtimes=["echo", {"kind": "echo", "gain": 2}]))) >= set(cells)


def test_a_runtime_that_cannot_run_a_file_or_is_not_there_is_a_row(plugin: Write, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"candidates": {"plain": "int8"}, "attacks": ["extraction"], "runtimes": ["echo"]}
    cell = "runtime/echo/plain"
    plugin(value=13)
    work = suite(**settings)
    compute(work, tmp_path / "out", cell)
    reason = Store(tmp_path / "out").get(work.cell(cell).key).document["not_applicable"]
    assert "the echo cannot run it: RuntimeError: unlucky (plug.py" in reason
    plugin(PLUGIN.replace('("plug",)', '("plug-engine",)'))
    outcome = compute(suite(**settings), tmp_path / "out", cell)
    assert "the echo is not installed: pip install plug-engine" in outcome.unavailable[cell]
    checks = {check.what: check for check in examine(tmp_path)}
    assert checks["echo"].state == "note"
    with pytest.raises(InputError, match=r"no runtime of kind 'ehco'.* Did you mean 'echo'"):
        suite(**{**settings, "runtimes": ["ehco"]})


# Names ----------------------------------------------------------------------------------------------------------------


def named(kind: str, module: str, base: type = Pgd, name: str = "Pgd") -> Any:
    return type(name, (base,), {"__annotations__": {"kind": str}, "kind": kind, "__module__": module})


@pytest.mark.parametrize("kind", ["pgd", "PGD"])
@pytest.mark.parametrize("name", ["Pgd", "Other"])
def test_a_second_technique_of_a_kind_is_refused_and_both_are_named(kind: str, name: str) -> None:
    ours = PERTURBERS.kinds()["pgd"]
    with pytest.raises(InputError, match=r"crushproof\.attacks\.evasion\.gradient\.pgd\.Pgd and theirs\." + name):
        PERTURBERS.register(named(kind, "theirs", name=name))
    assert PERTURBERS.kinds()["pgd"] is ours


def test_a_reloaded_module_takes_its_own_place(plugin: Write) -> None:
    first = RECIPES.kinds()["same"]
    plugin(PLUGIN + "\nRECIPES_AGAIN = True\n")
    assert RECIPES.kinds()["same"] is not first
    assert RECIPES.register(first) is first


@pytest.mark.parametrize("kind", ["a/b", "", " x", "x\n", "рgd", "-x", None])
def test_a_kind_is_a_plain_word(kind: Any) -> None:
    with pytest.raises(InputError, match=r"theirs\.Pgd has the kind"):
        PERTURBERS.register(named(kind, "theirs"))


def test_a_class_that_would_be_exchanged_for_another_is_refused() -> None:
    for technique in (named("pgd", "theirs")(), Evasion(parts=(named("pgd", "theirs")(),))):
        with pytest.raises(ValueError, match=r"theirs\.Pgd is not what 'pgd' stands for"):
            technique_like(technique)
    assert technique_like(Pgd())["kind"] == "pgd"


def test_a_recipe_named_like_a_word_is_asked_about(plugin: Write) -> None:
    plugin(PLUGIN.replace('["same"] = "same"', '["int8"] = "int8"'))
    with pytest.raises(InputError, match="'int8' is a word of crushproof's and the kind of another package's recipe"):
        suite(candidates={"plain": "int8"})
    assert suite(candidates={"a": {"kind": "int8"}}).models["a"].recipe is not None


WRONG_MEASURES = {
    "raise KeyError('mine')": "KeyError: 'mine'",
    "return None": "TypeError",
    "return 2 * [Measurement(FIGURE, 'probe', Mean(np.ones(2)))]": "none twice",
    "return [Measurement(FIGURE, 'probe', Mean(np.array([1, np.nan])))]": "no number",
    "return [Measurement(FIGURE, 'probe', Rate(np.ones(2)))]": "true or false per record, not float64",
    "return [Measurement(FIGURE, 'probe', Rate(np.ones(0, bool)))]": "one value per record",
    "return [Measurement(FIGURE.model_copy(update={'name': 'odd'}), 'probe', Mean(np.ones(2)))]": "'odd', which is not",
    "return [Measurement(FIGURE, 'probe', Mean(np.ones(2)), "
    "comparisons=(Comparison('dense', Mean(np.ones(2)), Mean(np.ones(1))),))]": "the same records, not of 2 and 1",
}


def test_an_attack_that_cannot_measure_is_a_row_and_costs_nobody_else(plugin: Write, tmp_path: Path) -> None:
    head = PLUGIN.replace("Mean, Measurement", "Comparison, Mean, Measurement, Rate")
    for line, words in WRONG_MEASURES.items():
        own = next(one for one in head.splitlines() if "results.evidence" in one)
        plugin(head.replace(own, f"        {line}"))
        work = suite(candidates={"plain": "int8"}, attacks=[{"kind": "candidate"}])
        with Store(tmp_path / "out") as store:
            outcome = run(work, store)
            assert not outcome.failed
            audit = assemble(work, store, outcome, BUILT_IN["release"], "crushproof audit")
            trace = next((store.private / "failures").glob("measure*")).read_text()
        assert outcome.failed.keys() == {f"measure/candidate/{name}" for name in work.models}, line
        assert [row.id for row in audit.findings] == ["dense/candidate", "plain/candidate"]
        assert all(row.verdict == "not-measured" and words in str(row.reason) for row in audit.findings), line
        assert len(audit.candidates) == 2
        assert trace.startswith("Traceback")


def test_an_attack_without_metrics_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match="Bare declares no risk and no metrics"):
        exec("class Bare(Attack):\n  kind: str = 'bare'", {"Attack": Attack})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[crushproof.attacks]\nprobe = zero:Probe", "zero:Probe, which the package plug brings.*ZeroDivisionError"),
        ("[crushproof.attacks]\nprobe = gone:Probe", "gone:Probe, which .*ModuleNotFoundError"),
        ("[crushproof.attacks]\nprobe = plug:Same", "plug:Same .*is no class of that sort"),
        ("[crushproof.attacks]\nprobe = plug:FIGURE", "is no class of that sort"),
        ("[crushproof.attacks]\nprobe = bare:Probe", "declares no risk and no metrics"),
        ("[crushproof.attacks]\nprobe = odd:Probe", "has `metrics` that are no tuple of"),
        ("[crushproof.attacks]\nprobe = half:Probe", "does not define measure"),
        ("[crushproof.attacks]\nprobe = taken:Probe", "Two techniques are of the kind 'evasion'.*crushproof"),
        ("[crushproof.attacks]\nprobe = plug:Probe\nb = again:Probe", "Two techniques are of the kind 'candidate'"),
        ("[crushproof.attack]\nprobe = plug:Probe", "nobody reads the group.*mean 'crushproof.attacks'"),
        ("[crushproof.recipes]\nprobe = plug:Same\nb = again:Same", "Two techniques are of the kind 'same'"),
        ("[crushproof.recipes]\nprobe = ends:Same", "cannot be imported: SystemExit"),
        ("[crushproof.runtimes]\nprobe = wordless:Echo", "does not define phrase"),
    ],
)
def test_a_faulty_plugin_is_named_and_left_out(plugin: Write, tmp_path: Path, line: str, words: str) -> None:
    folder = tmp_path / "plugin"
    for name, text in {
        "again": PLUGIN,
        "zero": "1 / 0",
        "ends": "raise SystemExit(0)",
        "bare": PLUGIN.replace("    metrics: Cla", "    other: Cla").replace("    risk: ", "    rest: "),
        "odd": PLUGIN.replace("(FIGURE,)", "('probed',)"),
        "half": PLUGIN.replace("def measure", "def measured"),
        "taken": PLUGIN.replace('"candidate"', '"evasion"'),
        "wordless": PLUGIN.replace('    phrase: ClassVar[str] = "the echo"\n', ""),
    }.items():
        (folder / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    (folder / "plug-1.dist-info" / "entry_points.txt").write_text(line)
    registry = RECIPES if "recipes" in line else RUNTIMES if "runtimes" in line else ATTACKS
    known = set(registry.kinds())
    own = {
        "evasion",
        "substitution",
        "membership",
        "extraction",
        "churn",
        "patch",
        "smoothing",
        "leakage",
        "bit-flips",
        "rebuilding",
    }
    own |= {"openvino", "tensorrt"}
    assert known <= own | {*RECIPES.kinds()} - {"same"}
    noted = [check for check in brought() if check.what == "probe"]  # doctor's rows of plug-ins
    assert [check.state for check in noted] == ["note"]
    assert re.search(words, noted[0].words), noted[0].words
    listed = [entry.summary for entry in catalogue("plug-in")]
    assert any(re.search(words, summary) for summary in listed)
    assert suite(candidates={"plain": "int8"}, attacks=["extraction"]).models.keys() == {"dense", "plain"}
    if registry is ATTACKS and "crushproof.attack]" not in line:
        with pytest.raises(InputError, match=words):  # a plan that wants it is told why it is not there
            suite(candidates={"plain": "int8"}, attacks=["probe"])
    if registry is RECIPES:
        with pytest.raises(InputError, match=words):
            suite(candidates={"a": "probe"})


def test_what_is_sound_is_listed_as_a_plugin(plugin: Write, tmp_path: Path) -> None:
    listed = {entry.kind: entry.summary for entry in catalogue("plug-in")}
    assert listed.keys() == {"candidate", "probing", "same", "echo"}
    assert listed["probing"] == "plug:Part of the package plug, a technique of the sort perturber."
    words = {check.what: check.words for check in examine(tmp_path) if check.state == "ok"}
    assert words["c"] == "plug-in: recipe same, plug:Same of plug (crushproof.recipes)"


def test_numbers_never_meet_a_name() -> None:
    assert numbered("a", []) == "a"
    assert numbered("a", ["a"]) == "a-2"
    assert numbered("a", ["a", "a-2"]) == "a-3"
    assert numbered("a", ["a"], ["a", "a-2"]) == "a-3"
    assert numbered("a-2", ["a", "a-3"], ["a", "a-2"]) == "a-2"


KINDS = (
    "candidate",
    "memory",
    "train",
    "shadows",
    "signals",
    "transfer",
    "lineage",
    "blind",
    "runtime",
    "attack",
    "openvino",
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_attack_shares_a_cell_with_anything(kind: str, plugin: Write) -> None:
    plugin(PLUGIN.replace('"candidate"', f'"{kind}"'))
    work = suite(
        candidates={"plain": "int8", kind: {"kind": "same"}},
        attacks=[kind, kind, "membership", "evasion"],
        runtimes=["openvino"],
        shadows={"training_free": 2, "trained": 2},
    )
    names = ("dense", "plain", kind)
    assert all(work.has(f"attack/{label}/{name}") for label in (kind, f"{kind}-2") for name in names)
    others = {cell.key for cell in work.cells() if not cell.name.startswith(f"attack/{kind}")}
    assert not others & {work.cell(f"attack/{kind}/{name}").key for name in names}


def test_shared_work_of_one_name_is_one_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attacks that need the same share it; one that gives other work the name of ours is refused."""
    attacks: list[Any] = [{"kind": "evasion", "epsilons": [0.1], "records": records} for records in (40, 20)]
    work = suite(candidates={"plain": "int8"}, attacks=[*attacks, attacks[0]])
    names = [cell.name for cell in work.cells() if cell.name.startswith("transfer/")]
    assert len(names) == len(set(names)) == 2
    monkeypatch.setattr(CraftedOnParent, "name", property(lambda self: "train/dense"))
    with pytest.raises(InputError, match=r"called 'train/dense'.*a name of its own"):
        suite(candidates={"plain": "int8"}, attacks=attacks)
