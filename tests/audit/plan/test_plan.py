"""Plans: what YAML may say, and that every fault is one sentence that names its line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crushproof.audit.plan.plan import Plan, check_techniques, load_plan, parse_plan
from crushproof.audit.plan.sections import ModelPlan
from crushproof.audit.plan.starter import write_starter
from crushproof.audit.plan.yaml_text import load_yaml
from crushproof.targets.errors import CrushproofError, InputError, UnsafeInput

BASE = """\
name: test
data: {kind: digits}
model:
  architecture: my_model:build
candidates:
  int8: int8
  half: {recipe: {kind: prune, sparsity: 0.5}, control: true}
"""


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_plan(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plan_says_what_it_says() -> None:
    plan = parse_plan(BASE + "shadows: {trained: 8}\ndeclared: {tee: no, at: 12:30}\nseed: 7\n")
    assert plan.candidates["int8"].recipe == "int8"
    assert plan.candidates["half"].recipe == {"kind": "prune", "sparsity": 0.5}
    assert plan.up_for_release == ("int8",)
    assert (plan.seed, plan.shadows.trained, plan.shadows.training_free) == (7, 8, 16)
    assert plan.declared == {"tee": "no", "at": "12:30"}  # not False, not 750
    assert plan.where("candidates", "half", "recipe", "sparsity") == "plan.yaml, line 7"


@pytest.mark.parametrize(
    ("text", "free", "trained"),
    [
        ("{training_free: 0}", 0, 0),
        ("{training_free: 1}", 1, 1),
        ("{training_free: 4}", 4, 4),
        ("{training_free: 64}", 64, 16),
        ("{trained: 0}", 16, 0),
        ("{training_free: 16, trained: 1}", 16, 1),
        ("{training_free: 2, trained: 4}", 2, 4),
    ],
)
def test_shadows_may_be_few_or_none_and_no_more_where_they_cost_more(text: str, free: int, trained: int) -> None:
    plan = parse_plan(BASE + f"shadows: {text}\n")
    assert (plan.shadows.training_free, plan.shadows.trained) == (free, trained)
    again = Plan.model_validate(plan.model_dump(mode="json"))
    assert (again.shadows, again.digest) == (plan.shadows, plan.digest)


def test_a_plan_survives_json_with_its_digest() -> None:
    plan = parse_plan(BASE)
    copy = Plan.model_validate(plan.model_dump(mode="json"))
    assert copy.digest == plan.digest
    assert parse_plan(BASE + "engine: {kind: local, workers: 3}").digest == plan.digest
    assert parse_plan(BASE + "seed: 3").digest != plan.digest


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("-1/2", -0.5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("0x1F", 31),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("True", True),
        ('"8/255"', "8/255"),
        ("'true'", "true"),
        ("a/b", "a/b"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    read = load_yaml(f"x: {text}", "p")[0]["x"]
    assert read == value
    assert type(read) is type(value)


BAD_YAML = [
    ("a: 1\nb: 2\na: 3", "line 3: the key 'a' was already given in line 1"),
    ("x: {a: 1,\n a: 2}", "line 2: the key 'a'"),
    ("a: &x [1]\nb: *x", "line 1: anchors"),
    ("a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b]", "line 1: anchors"),
    ("b: 1\n<<: *x", "line 2: anchors"),
    ("a:\n  b: !!float 1", "line 2: tags"),
    ("[" * 5000, "nested more than"),
    ("a: " + "{a: " * 5000, "nested more than"),
    ("\n".join(" " * depth + "a:" for depth in range(300)), "nested more than"),
    ("a: 1\nb: .nan", "line 2: .nan is not a finite number"),
    ("a: -.inf", "not a finite"),
    ("a: 1e999", "not a finite"),
    ("a: 1/0", "divides by zero"),
    ("a: " + "9" * 5000, "more than 18 digits"),
    ("a: " + "9" * 5000 + "/3", "not a finite number"),
    ("a: [1", "line 1: not valid YAML"),
    ("a: 1\nb: c: d", "line 2: not valid YAML"),
    ("a: 1\n b: 2", "line 2: not valid YAML: mapping values are not allowed here. In this line or the one above: keys"),
    ("a:\n  z: 1\n  b:c\n  d: 1", "a key ends in a colon and a blank"),
    ("a: 1\n\tb: 2", "Indent with spaces"),
    ('a: 1\nb: "\\0"', "line 2: the character U+0000"),
    ('a: "\\e[31m"', "U+001B"),
    ('a: "\\ud800"', "U+D800"),
    ("a: 1\nb: \x00", "line 2: the character U+0000"),
    ("a: 1\n---\nb: 2", "second document"),
    ("? [1]\n: 2", "a key must be a word"),
    ("{}\n# \ud800", "U+D800"),
]


@pytest.mark.parametrize(("text", "message"), BAD_YAML, ids=[message[:30] for _, message in BAD_YAML])
def test_bad_yaml_names_its_line(text: str, message: str) -> None:
    assert message in refused(text)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system"])
def test_python_tags_are_unsafe_and_run_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeInput, match="line 2"):
        parse_plan(f"name: x\ndata: {tag}")
    assert list(tmp_path.iterdir()) == []


BAD_PLANS = [
    (BASE + "polcy: release", "line 8: polcy: is not a key; did you mean 'policy'?"),
    (BASE.replace("architecture", "architectur"), "line 4: model.architectur: is not a key; did you mean"),
    (BASE.replace("{recipe:", "{recipie:"), "line 7: candidates.half.recipie: is not a key; did you mean 'recipe'?"),
    (BASE.replace("my_model:build", "my_model.build"), "line 4: model.architecture"),
    (BASE.replace("digits}", "npz}"), "line 2: data.path: is missing"),
    (BASE.replace("digits}", "npz, pth: x}"), "line 2: data.pth: is not a key; did you mean 'path'?"),
    (BASE.replace("digits}", "digts}"), "line 2: data.kind: must be digits, npz or csv"),
    (BASE.replace("digits}", "memory, name: x}"), "kind memory is for Python"),
    (BASE.replace("digits}", "npz, path: x, bounds: [0]}"), "line 2: data.bounds"),
    (BASE + "seed: true", "line 8: seed"),
    (BASE + "seed: -1", "line 8: seed"),
    (BASE + "engine: {kind: local, workers: -1}", "line 8: engine.workers"),
    (BASE + "engine: {kind: local, workers: true}", "line 8: engine.workers"),
    (BASE + "engine: {kind: rey}", "line 8: engine.kind: must be local or ray"),
    (BASE + "engine: {workers: 2}", "line 8: engine.kind: must be local or ray"),
    (BASE + "engine: {kind: ray, adress: x}", "line 8: engine.adress: is not a key; did you mean 'address'?"),
    (BASE + "engine: {kind: ray}\ndevice: cuda:1", "line 9: device: on a cluster Ray chooses the GPU"),
    (BASE + "engine: {kind: ray, address: 'ray://x'}", "line 8: engine.address"),
    (BASE + "workers: 2", "line 8: workers: is not a key"),
    (BASE + "device: gpu", "line 8: device"),
    (BASE + "release: [int7]", "line 8: release.0: there is no candidate 'int7'; did you mean 'int8'?"),
    (BASE + "release: []", "line 8: release: names no candidate"),
    (BASE + "attacks: quik", "did you mean 'quick'?"),
    (BASE + "attacks:\n  - evasion\n  - {steps: 3}", "line 10: attacks.1: needs a kind"),
    (BASE + "shadows: {trained: -1}", "line 8: shadows.trained"),
    (BASE + "shadows: {training_free: 1, trained: 2}", "line 8: shadows.trained: is 2, more than training_free: 1"),
    (BASE + "shadows: {leak: 0.05, trained: 8}", "line 8: shadows.leak: decides the numbers"),
    (BASE + "shadows: {within: 20 min}", "line 8: shadows.within: is the time for a leak"),
    (BASE + "shadows: {leak: 0.05, within: 20}", "line 8: shadows.within: must be a number and s, min or h"),
    (BASE + "shadows: {leak: 0.01}", "line 8: shadows.leak"),
    (BASE + "policy: []", "line 8: policy"),
    (BASE.replace("int8: int8", "dense: int8"), "line 6: candidates.dense: 'dense' is a name of the uncompressed"),
    (BASE.replace("int8: int8", "../x: int8"), "line 6: candidates.../x: a candidate's name"),
    (BASE.replace("int8: int8", "Half: int8"), "differ only in case"),
    (BASE.replace("int8: int8", "int8: {recipe: {weight_bits: 3}}"), "line 6: candidates.int8.recipe: needs a kind"),
    (BASE.replace("int8: int8", "int8:"), "line 6: candidates.int8: must be a mapping"),
    (BASE.replace("  int8: int8\n", "").replace("  half", "# half"), "line 5: candidates: must be a mapping"),
    ("- 1", "expected a mapping with the keys name"),
    ("", "expected a mapping"),
    ("just text", "expected a mapping"),
]


@pytest.mark.parametrize(("text", "message"), BAD_PLANS, ids=[message[:40] for _, message in BAD_PLANS])
def test_bad_plans_name_line_and_cure(text: str, message: str) -> None:
    assert message in refused(text)


def test_all_faults_are_listed_at_once() -> None:
    message = refused(BASE + "seed: -1\nengine: {kind: local, workers: lots}\n")
    assert "line 8" in message
    assert "line 9" in message


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: x\nlabel: \xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * 300_000)
    (tmp_path / "zero.yaml").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.yaml")
    cases = {
        "missing.yaml": "not exist",
        "link.yaml": "link to",
        ".": "folder",
        "latin.yaml": "line 2: not UTF-8",
        "large.yaml": "bytes",
        "zero.yaml": "empty",
        "pipe.yaml": "pipe",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            load_plan(tmp_path / name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int8: int8", "int8: int9", "line 6.*did you mean 'int8'"),
        ("sparsity: 0.5", "sparcity: 0.5", "line 7.*did you mean 'sparsity'"),
        ("sparsity: 0.5", "sparsity: 1.5", "line 7.*sparsity"),
        ("kind: prune", "kind: prun", "line 7.*'prune'"),
        ("control: true", "defense: adversarial-trainin", "line 7.*'adversarial-training'"),
        ("my_model:build", "my_model:build\n  training: {epoch: 3}", "line 5: model.training.epoch"),
        ("name: test", "attacks: [{kind: evasion, epsilons: [8], gate_epsilon: 8}]", "line 1.*255"),
    ],
)
def test_faults_inside_techniques_name_their_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_techniques(parse_plan(BASE.replace(old, new)))


def test_the_starter_plan_is_valid(tmp_path: Path) -> None:
    plan = load_plan(write_starter(tmp_path)[0])
    check_techniques(plan)
    assert set(plan.up_for_release) < set(plan.candidates)  # one is there to be seen failing


def test_what_the_starter_plan_has_commented_out_is_valid_too(tmp_path: Path) -> None:
    text = write_starter(tmp_path)[0].read_text()
    standing = yaml.safe_load(text)
    top = re.findall(r"^# (?:data|policy):.*\n(?:#   .*\n)+", text, re.M)
    within = re.findall(r"^  # (\w+: .*)\n", text, re.M)  # of the model, then of the candidates
    assert (len(top), len(within)) == (3, 5)
    for block in top:
        other = yaml.safe_load(block[2:].replace("\n#", "\n"))
        check_techniques(parse_plan(yaml.safe_dump(standing | other)))
    for line in within:
        ((key, value),) = yaml.safe_load(line).items()
        section = "model" if key in ModelPlan.model_fields else "candidates"
        changed = {**standing[section], key: value}
        if key == "training_function":
            del changed["training"]
        check_techniques(parse_plan(yaml.safe_dump({**standing, section: changed})))


def test_loading_a_plan_needs_no_torch() -> None:
    heavy = "assert not {'torch', 'numpy'} & set(sys.modules)"
    code = f"import sys, crushproof.audit.plan.plan, crushproof.audit.verdict.policy; {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="ab:[]{},-& *!?|>'\"%@\n\t0.#", max_size=40))
def test_any_text_gives_a_value_or_one_sentence(text: str) -> None:
    try:
        load_yaml(text, "p")
        message = "p, line"
    except CrushproofError as error:
        message = str(error)
    assert message.startswith("p, line")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz8/_-", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abcxyz", min_size=1), values, max_size=3))
def test_what_pyyaml_dumps_is_read_back(document: dict[str, object]) -> None:
    """An oracle: PyYAML's own emitter, with all text quoted and no anchors."""

    class Quoting(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
    assert load_yaml(yaml.dump(document, Dumper=Quoting, allow_unicode=True), "p")[0] == document
