"""Pages written while the site is built, from the models themselves: what they say is never older than the code."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import crushproof
from crushproof.attacks.risk import QUALITIES
from crushproof.audit.catalogue import Figure, Parameter, catalogue, parameters_of
from crushproof.audit.exit_codes import EXIT_CODES
from crushproof.audit.plan.plan import Plan
from crushproof.audit.plan.presets import ATTACK_PRESETS
from crushproof.audit.plan.sections import MemoryData
from crushproof.audit.schema.rows import SCHEMA, Audit
from crushproof.audit.verdict.policy import BUILT_IN, Policy
from crushproof.compression.words import RECIPE_WORDS
from crushproof.targets.technique import Technique

NESTED = re.compile(r"(\w+) \{\.\.\.\}")  # how the catalogue writes a model inside a model

PUBLIC = tempfile.TemporaryDirectory()  # gone when the build ends


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Shows mkdocstrings the modules of the public face alone, through links: to read the whole package takes 8 s."""
    root = Path(crushproof.__file__).parent
    for home in {*crushproof._HOMES.values()}:
        file = Path(*home.split(".")[1:]).with_suffix(".py")
        for part in (file, *(folder / "__init__.py" for folder in file.parents)):
            link = Path(PUBLIC.name, "crushproof", part)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(root / part)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [PUBLIC.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The hook: adds the generated pages to those of the folder."""
    pages = {
        "plan.md": plan_page(),
        "policy.md": policy_page(),
        "catalogue.md": catalogue_page(),
        "audit_json.md": schema_page(),
        "python.md": python_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


# Pages ----------------------------------------------------------------------------------------------------------------


def plan_page() -> str:
    lines = [
        "# Plan",
        "A plan is one YAML file; paths and modules in it are looked up in its folder. `crushproof init` writes one "
        "with comments. A key that is not in these tables is refused, with the line and the nearest key.",
    ]
    lines += sections([one for one in models_in(Plan) if one is not MemoryData and not issubclass(one, Technique)])
    lines += ["## Short words", "A recipe may be one of these words, a kind from the [catalogue](catalogue.md), or a "]
    lines[-1] += "mapping with `kind` and its parameters."
    lines += table(("word", "stands for"), ((f"`{word}`", code(recipe)) for word, recipe in RECIPE_WORDS.items()))
    lines += ["`attacks` is a list of kinds and mappings, or one of these words:"]
    lines += table(
        ("word", "stands for"),
        ((f"`{word}`", "<br>".join(code(attack) for attack in attacks)) for word, attacks in ATTACK_PRESETS.items()),
    )
    return page(lines)


def policy_page() -> str:
    lines = ["# Policy and exit codes", "What may be shipped: limits on figures, judged by their whole 95 % interval."]
    lines += sections([Policy])
    lines += ["What may be limited: how well a model does its task, and what the attacks of the plan measure."]
    own = [Figure(one.name, one.unit, one.better, one.meaning) for one in QUALITIES]
    lines += figures([*own, *(figure for entry in catalogue() for figure in entry.figures)])
    lines += [
        "## Without a policy",
        "`release` is taken without the limits on figures that the inputs cannot give, and is called by what it lacks: "
        "`release, without evasion: token inputs`. What is left out stands in audit.json (`policy_limits`) and in the "
        "report. Under a policy that is named nothing is left out: a figure that was not measured keeps its candidate "
        "from passing. Without a dense model there is no change to judge: name one, or limits under `absolutes`.",
        "## Built-in policies",
    ]
    for name, policy in BUILT_IN.items():
        lines += [f"### `{name}`"]
        limits = [("changes", policy.changes), ("absolutes", policy.absolutes)]
        lines += table(
            ("limit on", "metric", "value"),
            ((sort, f"`{metric}`", f"{limit:g}") for sort, values in limits for metric, limit in values.items()),
        )
    lines += [
        "## Exit codes",
        "Of `crushproof audit`, `gate` and every other command; with `--fail-on fail` an inconclusive verdict gives 0:",
    ]
    lines += table(("code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))
    return page(lines)


def catalogue_page() -> str:
    lines = ["# Catalogue", "What there is to choose from; `crushproof catalogue` prints the same, with what other "]
    lines[-1] += "packages have brought."
    sort = ""
    for entry in catalogue():
        if entry.sort != sort:
            sort = entry.sort
            lines += [f"## {sort.capitalize()}s"]
        lines += [f"### `{entry.kind}` {{ #{sort.replace(' ', '-')}-{entry.kind} }}", entry.summary]
        lines += parameters(entry.parameters)
        lines += figures(entry.figures)
    return page(lines)


def schema_page() -> str:
    lines = [
        "# audit.json",
        f"The product of an audit, in the schema `{SCHEMA}`; the HTML report is a view of it. `crushproof schema` "
        "prints it as JSON Schema (2020-12), which is also [here](audit.schema.json). A reader of another program "
        "should refuse a `schema` that it does not know.",
    ]
    return page([*lines, *sections(models_in(Audit))])


def python_page() -> str:
    lines = [
        "# Python",
        "Everything below is `crushproof.<name>`, and is imported when it is first used. The parameters of recipes, "
        "attacks and defenses are those of the plan.",
    ]
    for name, home in crushproof._HOMES.items():
        module = importlib.import_module(home, "crushproof")
        found = getattr(module, name)
        lines += [f"::: {module.__name__}.{name}"]
        if isinstance(found, type) and issubclass(found, Technique):
            lines += parameters(parameters_of(found))
        elif isinstance(found, type) and not issubclass(found, BaseModel | Exception):
            lines[-1] += "\n    options: {members: true, filters: ['!^_']}"
    return page(lines)


# Pieces ---------------------------------------------------------------------------------------------------------------


def models_in(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and those that its fields hold, however deep, each once and in the order of the fields."""
    found = [model]
    for inner in found:  # grows while it is walked
        for field in inner.model_fields.values():
            found += [one for one in _models(field.annotation) if one not in found]
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from dict.fromkeys(_models(inner))


def sections(models: Sequence[type[BaseModel]]) -> list[str]:
    """For each model a heading, what it is, and its fields; a field that is another of them is a link."""
    anchors = {model.__name__.lower(): words(model) for model in models}
    return [block for model in models for block in _section(model, anchors)]


def _section(model: type[BaseModel], anchors: Mapping[str, str]) -> list[str]:
    kind = model.model_fields.get("kind")
    named = kind is not None and get_origin(kind.annotation) is Literal
    title = f"`kind: {get_args(kind.annotation)[0]}`" if kind is not None and named else words(model)
    text = inspect.cleandoc(model.__dict__.get("__doc__") or "")  # its own, not one that it inherits
    return [f"## {title} {{ #{model.__name__.lower()} }}", text, *parameters(parameters_of(model), anchors)]


def parameters(rows: Iterable[Parameter], anchors: Mapping[str, str] = {}) -> list[str]:
    def linked(match: re.Match[str]) -> str:
        return f"[{anchors[match[1]]}](#{match[1]})" if match[1] in anchors else match[0]

    return table(
        ("key", "value", "default", ""),
        (
            (
                f"`{row.name.rstrip('_')}`",
                NESTED.sub(linked, row.type) + (f", {row.bounds}" if row.bounds else ""),
                "required" if row.required else code(row.default),
                row.description,
            )
            for row in rows
        ),
    )


def words(model: type[BaseModel]) -> str:
    """`CandidatePlan` as `Candidate`, `LayerRounding` as `Layer rounding`."""
    name = model.__name__.removesuffix("Plan") or "Plan"
    return "".join(f" {letter.lower()}" if letter.isupper() and place else letter for place, letter in enumerate(name))


def figures(rows: Iterable[Figure]) -> list[str]:
    found = ((f"`{row.name}`", row.unit, f"{row.better} is better", row.meaning) for row in rows)
    return table(("figure", "unit", "", ""), found)


def code(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """As Markdown; nothing where there is no row."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
    return ["\n".join(lines)] if cells else []


def page(blocks: list[str]) -> str:
    return "\n\n".join(blocks) + "\n"
