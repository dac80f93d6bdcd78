"""The search: what it proposes is legal, what it chooses is the Pareto set, and stopping it loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crushproof.audit.plan.plan import Plan, check_techniques, load_plan
from crushproof.audit.search import run_search, settings_of
from crushproof.compression.search import SearchSettings, TriedRecipe, beyond, pareto, split, values
from crushproof.targets.data.data import Data
from crushproof.targets.errors import InputError

MLP = {
    "data": {"kind": "digits"},
    "model": {"architecture": "crushproof.training.networks:digits_mlp", "training": {"epochs": 3, "batch_size": 64}},
    "candidates": {"int8": "int8"},
}

measured = st.builds(
    TriedRecipe,
    recipe=st.just({}),
    accuracy=st.integers(0, 5).map(lambda n: n / 5),
    payload_bytes=st.integers(1, 6),
    latency_ms=st.integers(1, 4).map(float),
)


@given(st.lists(measured, max_size=12), st.sampled_from([("accuracy", "payload"), ("accuracy", "payload", "latency")]))
@settings(max_examples=60, deadline=None)
def test_the_pareto_set_is_that_of_the_definition(trials: list[TriedRecipe], objectives: tuple[str, ...]) -> None:
    wanted = SearchSettings(objectives=objectives)

    def better(one: TriedRecipe, other: TriedRecipe) -> bool:
        signs = (1, *(-1 for _ in objectives[1:]))
        mine, theirs = ([s * v for s, v in zip(signs, values(t, wanted), strict=True)] for t in (one, other))
        return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs

    front = pareto(trials, wanted)
    expected = {tuple(values(t, wanted)) for t in trials if not any(better(other, t) for other in trials)}
    assert [tuple(values(t, wanted)) for t in front] == sorted(
        expected, key=lambda row: (-row[0], *row[1:])
    )  # each once, the most accurate first


def test_limits_are_kept_or_exceeded() -> None:
    wanted = SearchSettings(largest_payload=100, largest_loss=0.02, largest_latency=2.0)
    reference = TriedRecipe({}, accuracy=0.9, payload_bytes=400)
    kept = beyond(TriedRecipe({}, accuracy=0.89, payload_bytes=100, latency_ms=2.0), reference, wanted)
    assert all(excess <= 0 for excess in kept.values())
    broken = beyond(TriedRecipe({}, accuracy=0.87, payload_bytes=101, latency_ms=2.1), reference, wanted)
    assert {name for name, excess in broken.items() if excess > 0} == {"payload", "loss", "latency"}
    assert beyond(TriedRecipe({}, why_not="no"), reference, wanted)["usable"] > 0


def test_held_out_members_are_not_trained_on(digits: Data) -> None:
    assert digits.members is not None
    own, held_out = split(digits.members, 0)
    assert len(own) + len(held_out) == len(digits.members)
    rows = {row.numpy().tobytes() for row in own.x}
    assert sum(row.numpy().tobytes() in rows for row in held_out.x) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


def test_what_is_found_is_a_plan_and_a_second_run_resumes(folder: Path) -> None:
    plan, out, seen = Plan.model_validate(MLP), folder / "found.yaml", []
    wanted = settings_of(trials=6, epochs=1)
    first = run_search(plan, folder, out, wanted, show=lambda n, trial: seen.append(trial))
    assert len(first.trials) == 6
    assert len(seen) == len({str(trial.recipe) for trial in first.trials if trial.recipe}) + 1  # the dense one
    found = load_plan(out)
    check_techniques(found)
    assert list(found.candidates) == [f"found-{n}" for n in range(1, len(first.chosen) + 1)]
    text = out.read_bytes()

    kept = folder / "found.trials.jsonl"
    kept.write_text(kept.read_text()[:-20])  # killed while the last line was written
    again: list[TriedRecipe] = []
    second = run_search(plan, folder, out, wanted, show=lambda n, trial: again.append(trial))
    assert len(again) == 1
    assert second == first
    assert out.read_bytes() == text

    other: list[TriedRecipe] = []
    run_search(plan, folder, out, settings_of(trials=1, epochs=2), show=lambda n, trial: other.append(trial))
    assert len(other) == 2  # the dense one and a recipe: another search, which takes nothing over ...
    third = run_search(plan, folder, out, wanted, show=lambda n, trial: again.append(trial))
    assert (third, len(again)) == (first, 1)  # ... and loses nothing


def test_refusals(folder: Path, tmp_path: Path) -> None:
    plan = Plan.model_validate(MLP)
    with pytest.raises(InputError, match="objectives"):
        settings_of(objectives=("speed",))
    with pytest.raises(InputError, match="must be written there"):
        run_search(plan, folder, tmp_path / "found.yaml", SearchSettings())
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(InputError, match="no earlier result"):
        run_search(plan, tmp_path, tmp_path / "mine.yaml", SearchSettings())
    assert not (tmp_path / "mine.trials.jsonl").exists()
