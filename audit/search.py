"""`crushproof search`: the search of compression/search.py on a plan's model; what it finds becomes a plan."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..attacks.statistics.rates import clopper_pearson
from ..compression.search import Found, SearchSettings, TriedRecipe, as_row, from_row, search
from ..targets.errors import InputError, UnsafeInput
from ..targets.model import reproducible, resolve_device
from ..targets.technique import explain
from .engine.cells import cell_key
from .plan.plan import Plan, parse_plan
from .plan.yaml_text import SIZE_CAP, read_text
from .subject.resolve import resolve
from .suite.environment import versions
from .writing import write

HELD_OUT_WORDS = "accuracy on members that no model of the search was trained on"
LARGEST = 2**28  # bytes of the trials that are kept: nobody tried as many


def settings_of(**fields: Any) -> SearchSettings:
    """Raises InputError naming the option that does not fit; None stands for the default."""
    try:
        return SearchSettings.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise InputError(explain(error, "the search", SearchSettings)) from None


def run_search(
    plan: Plan,
    folder: Path,
    out: Path,
    settings: SearchSettings,
    *,
    show: Callable[[int, TriedRecipe], None] = lambda n, trial: None,
) -> Found:
    """Searches on the plan's model and writes a plan with what was found to `out`.

    Every trial is kept beside it as it is measured (`out` with the suffix .trials.jsonl), so that a search that was
    stopped goes on where it was. That file holds a section for each search that measures otherwise (another model,
    other data, other settings), so that none loses what another measured.

    Args:
        folder: where the plan lies; `out` must lie there too, since its paths are seen from there.
        show: told of each new trial and how many there are by now.

    Raises:
        InputError, UnsafeInput: the plan or what it names is refused, or `out` is no place for the new plan.
    """
    check_new_plan(out, folder, f"{plan.name}, found")
    subject = resolve(plan, folder)
    if subject.model is None:
        raise InputError("A search compresses a dense model, and this plan has none: name it under model.")
    identity = cell_key(
        subject.data.digest, subject.identity, plan.seed, versions(), settings.epochs, settings.batch, settings.times
    )
    path = out.with_suffix(".trials.jsonl")
    sections = _sections(path)
    known = sections.setdefault(identity, {})
    sections[identity] = sections.pop(identity)  # the last one, to which new trials are appended
    write(path, "".join(_lines(sections)))

    def keep(key: str, trial: TriedRecipe) -> None:
        with path.open("a") as file:
            file.write(json.dumps(as_row(key, trial), allow_nan=False) + "\n")
        known[key] = trial
        show(len(known), trial)

    with reproducible():
        found = search(
            settings,
            subject.model.architecture,
            subject.model.trainer,
            subject.data,
            seed=plan.seed,
            device=resolve_device(plan.device),
            known=known,
            tell=keep,
        )
    if found.chosen:
        write(out, plan_text(plan, found))
    return found


def check_new_plan(path: Path, folder: Path, name: str) -> None:
    """That a plan made of another, which lies in `folder`, can be written to a path, under the name it will have.

    Raises:
        InputError: it would lie elsewhere, or something else is there.
    """
    if path.absolute().parent.resolve() != folder.absolute().resolve():
        raise InputError(f"{path}: the new plan names files as seen from {folder}, so it must be written there.")
    if os.path.lexists(path) and _name_of(path) != name:
        raise InputError(f"{path} exists and is no earlier result of this command: name another file.")


def plan_text(plan: Plan, found: Found) -> str:
    """The plan with the Pareto set as its candidates; a comment beside each says what the search measured."""
    fields = plan.model_dump(mode="json", exclude_defaults=True, exclude={"candidates", "release"})
    fields["name"] = f"{plan.name}, found"
    lines = [
        "# Found by crushproof search. The figures beside the candidates are the search's own,",
        f"# {HELD_OUT_WORDS} (n = {found.dense.n}): choose by the audit's, which rest on evaluation records.",
        f"# Dense: {figures(found.dense)}.",
        yaml.safe_dump(fields, sort_keys=False).rstrip(),
        "candidates:",
    ]
    for number, trial in enumerate(found.chosen, 1):
        lines.append(f"  # {figures(trial)}")
        lines.append(f"  found-{number}: {json.dumps(short_recipe(trial.recipe))}")
    return "\n".join(lines) + "\n"


def figures(trial: TriedRecipe) -> str:
    """What a trial came to, in a line."""
    if trial.why_not is not None:
        return f"not usable: {trial.why_not}"
    time = "" if trial.latency_ms is None else f", {trial.latency_ms:.3g} ms"
    right = clopper_pearson(round(trial.accuracy * trial.n), trial.n)
    accuracy = f"accuracy {100 * right.estimate:.1f} % [{100 * right.low:.1f}, {100 * right.high:.1f}]"
    return f"{accuracy}, payload {trial.payload_bytes} bytes{time}"


def words_of(trial: TriedRecipe) -> str:
    """A trial's recipe in a phrase."""
    from ..compression.recipe import RECIPES

    return "uncompressed" if not trial.recipe else RECIPES.parse(trial.recipe).phrase


def short_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the fields that have their default value."""
    from ..compression.recipe import RECIPES

    parsed = RECIPES.parse(recipe)
    short = {"kind": parsed.kind, **parsed.model_dump(mode="json", exclude_defaults=True)}
    if "steps" in short and isinstance(short["steps"], list):
        short["steps"] = [short_recipe(step) for step in recipe["steps"]]
    return short


def _sections(path: Path) -> dict[str, dict[str, TriedRecipe]]:
    """Trials of earlier runs by the identity of their search; a line that was cut off or damaged is dropped."""
    sections: dict[str, dict[str, TriedRecipe]] = {}
    if not path.is_file() or path.stat().st_size > LARGEST:
        return sections
    own: dict[str, TriedRecipe] | None = None  # a section without its head belongs to no search
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if "search" in row:
                own = sections.setdefault(str(row["search"]), {})
            elif own is not None:
                key, trial = from_row(row)
                own[key] = trial
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # it is measured again
    return sections


def _lines(sections: dict[str, dict[str, TriedRecipe]]) -> Iterator[str]:
    for identity, trials in sections.items():
        yield json.dumps({"search": identity}) + "\n"
        for key, trial in trials.items():
            yield json.dumps(as_row(key, trial)) + "\n"


def _name_of(path: Path) -> str | None:
    try:
        return parse_plan(read_text(path, "plan", SIZE_CAP), path.name).name
    except (InputError, UnsafeInput, OSError):
        return None
