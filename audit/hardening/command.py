"""The command `harden`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..exit_codes import exit_codes
from ..paths import shown


def harden(
    plan: Annotated[Path | None, typer.Argument(help="A plan in YAML; without it the built-in one on digits.")] = None,
    candidate: Annotated[list[str] | None, typer.Option(help="Just this one; may be given again.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, max=100_000, help="By the clock, for audit and trials.")] = 10.0,
    out: Annotated[Path, typer.Option(help="Where audit and report go; a second run goes on.")] = Path(
        "crushproof-harden"
    ),
    write_to: Annotated[Path | None, typer.Option("--plan", help="The plan to write; default: hardened.yaml.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, max=256, help="Processes of this machine.")] = None,
) -> None:
    """Try what would mend the candidates that fail, cheapest first.

    Ends in a plan whose candidates pass, or in a sentence that says what could not be reached (exit 1). What neither
    fails nor passes is named and left out (exit 3).
    """
    with exit_codes():
        from ..plan.plan import check_techniques, load_plan

        if plan is None:
            from ..plan.builtin import builtin_plan

            loaded, folder = builtin_plan(), Path()
        else:
            loaded, folder = load_plan(plan), plan.parent
        check_techniques(loaded)
        from ..engine.progress import progress_on
        from ..search import check_new_plan
        from ..writing import write
        from .harden import harden as hardened
        from .harden import new_name

        target = folder / "hardened.yaml" if write_to is None else write_to
        check_new_plan(target, folder, new_name(loaded))
        words = ["crushproof", "harden", *([shown(plan)] if plan else [])]
        with contextlib.redirect_stdout(sys.stderr):
            done = hardened(
                loaded,
                folder,
                out,
                names=candidate or [],
                minutes=minutes,
                workers=workers,
                progress=progress_on(sys.stderr),
                command=shlex.join(words),
                tell=lambda line: typer.echo(line, err=True),
            )
        for name, trial in done.found.items():
            typer.echo(f"{name}: mended by {trial.name}, {trial.words}")
        for sentence in (*done.missed.values(), *done.open.values()):
            typer.echo(sentence)
        if done.text:
            write(target, done.text)
            typer.echo(f"wrote {target}: {'every candidate in it passes' if done.found else 'nothing failed'}")
        typer.echo(f"report: {out / 'report.html'}")
        raise typer.Exit(1 if done.missed else 3 if done.open else 0)
