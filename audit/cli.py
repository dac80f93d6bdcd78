"""The command line. Everything heavy is imported inside the commands, so that `crushproof --help` answers at once."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..targets.errors import Incomplete, InputError
from .console import run
from .exit_codes import EXIT_CODES, INCOMPLETE, PASS, FailOn, code_of, exit_codes
from .export.command import encrypt, exposure, sign, verify
from .hardening.command import harden
from .paths import shown

if TYPE_CHECKING:
    from .schema.rows import Audit

DEFAULT_OUT = Path("crushproof-audit")

app = typer.Typer(
    name="crushproof",
    help="Robustness and privacy audits of compressed neural networks.",
    epilog=f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"crushproof {__version__}")
        raise typer.Exit(PASS)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
FailOnOption = Annotated[FailOn, typer.Option(help="The mildest verdict that gives an exit code other than 0.")]


@app.command()
def audit(
    plan: Annotated[Path | None, typer.Argument(help="A plan in YAML; without it the built-in one on digits.")] = None,
    out: Annotated[Path, typer.Option(help="Where results go; a second run there resumes.")] = DEFAULT_OUT,
    only: Annotated[str | None, typer.Option(help="Just this finding, by its id: candidate/attack.")] = None,
    as_json: JsonOption = False,
    fail_on: FailOnOption = FailOn.INCONCLUSIVE,
    workers: Annotated[
        int | None, typer.Option(min=0, max=256, help="Processes of this machine; 0 works in this one.")
    ] = None,
    artifact: Annotated[Path | None, typer.Option(help="In place of a plan: a finished .onnx or .tflite file.")] = None,
    data: Annotated[Path | None, typer.Option(help="With --artifact: .npz with x_test, y_test.")] = None,
    dense: Annotated[Path | None, typer.Option(help="With --artifact: the uncompressed model, .onnx.")] = None,
    recipe: Annotated[str | None, typer.Option(help="With --dense: how it was compressed, e.g. int8.")] = None,
    bounds: Annotated[tuple[float, float] | None, typer.Option(help="Smallest and largest value of an input.")] = None,
    layout: Annotated[str | None, typer.Option(help="channels-first, channels-last or flat.")] = None,
    channels: Annotated[str | None, typer.Option(help="Its order of colours: rgb or bgr; the data's is rgb.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel, of pixels in [0, 1]: 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="The same for the standard deviation.")] = None,
    units: Annotated[str | None, typer.Option(help="What it takes: 'as given', 0..1, 0..255 or -1..1.")] = None,
    output: Annotated[str | None, typer.Option(help="Name of the file's output that holds the classes.")] = None,
    outputs: Annotated[str | None, typer.Option(help="logits, probabilities or log-probabilities.")] = None,
    policy: Annotated[str | None, typer.Option(help="Of --artifact: release, robustness, or a YAML file.")] = None,
    labels: Annotated[str | None, typer.Option(help="For each class, the file's output for it: 1,2,0.")] = None,
    hours: Annotated[float | None, typer.Option(help="Of processor time that asking the file may take.")] = None,
) -> None:
    """Audit compressed candidates, or one finished file.

    Writes audit.json and report.html. Can be stopped; the same command goes on from there.
    """
    with exit_codes():
        from .engine.progress import progress_on
        from .plan.plan import check_techniques, load_plan

        of_file: dict[str, Any] = {
            "--data": data,
            "--dense": dense,
            "--recipe": recipe,
            "--bounds": bounds,
            "--layout": layout,
            "--channels": channels,
            "--mean": mean,
            "--std": std,
            "--units": units,
            "--output": output,
            "--outputs": outputs,
            "--labels": labels,
            "--hours": hours,
            "--policy": policy,
        }
        folder = Path()
        if artifact is not None:
            from .plan.command_line import plan_of_options

            if plan is not None:
                raise InputError(f"Give either a plan ({plan}) or --artifact {artifact}: a plan names its own files.")
            loaded = plan_of_options(artifact, of_file)
        elif astray := [option for option, value in of_file.items() if value is not None]:
            raise InputError(
                f"{astray[0]} belongs to --artifact FILE, which is missing; a plan says such things itself."
            )
        elif plan is None:
            from .plan.builtin import builtin_plan

            loaded = builtin_plan()
        else:
            loaded, folder = load_plan(plan), plan.parent
        progress = progress_on(sys.stderr)
        progress.note(f"audit {loaded.name!r}: reading plan, data and model")
        check_techniques(loaded)
        from .run import run_audit

        # The findings name the command that reproduces them. --out is not part of it, so that they stay the same bytes.
        words = ["crushproof", "audit", *([shown(plan)] if plan else [])]
        if artifact is not None:
            from .plan.command_line import words_of_options

            words += words_of_options(artifact, of_file)
        with contextlib.redirect_stdout(sys.stderr):  # what a model's own code prints; --json is read by programs
            result = run_audit(
                loaded,
                folder,
                out,
                workers=workers,
                only=only,
                progress=progress,
                command=shlex.join(words),
            )
        from .report.terminal import show

        show(result, as_json, None if only else out / "report.html", only)
        raise typer.Exit(code_of(result.verdict if only is None else verdict_of_finding(result), fail_on))


@app.command()
def search(
    plan: Annotated[
        Path | None, typer.Argument(help="A plan whose model is compressed; default: the built-in.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The plan to write, beside PLAN; default: found.yaml.")] = None,
    trials: Annotated[int | None, typer.Option(help="Recipes to try; default 40.")] = None,
    objectives: Annotated[str | None, typer.Option(help="Of accuracy,payload,latency; default the first two.")] = None,
    max_payload: Annotated[int | None, typer.Option(help="Bytes of packed weights, at most.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Milliseconds of a call, at most.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Points of accuracy lost, at most.")] = None,
    batch: Annotated[int | None, typer.Option(help="Records per call when latency is measured; default 1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of fine-tuning; default 2.")] = None,
) -> None:
    """Search for recipes under limits of size, time and accuracy.

    The best trade-offs become the candidates of a new plan. Can be stopped; the same command goes on from there.
    """
    with exit_codes():
        from .plan.plan import check_techniques, load_plan

        if plan is None:
            from .plan.builtin import builtin_plan

            loaded, folder = builtin_plan(), Path()
        else:
            loaded, folder = load_plan(plan), plan.parent
        check_techniques(loaded)
        from ..compression.search import TriedRecipe
        from .search import figures, run_search, settings_of, words_of

        settings = settings_of(
            trials=trials,
            objectives=None if objectives is None else tuple(objectives.replace(" ", "").split(",")),
            largest_payload=max_payload,
            largest_latency=max_latency,
            largest_loss=None if max_loss is None else max_loss / 100,
            batch=batch,
            epochs=epochs,
        )
        target = folder / "found.yaml" if out is None else out
        with contextlib.redirect_stdout(sys.stderr):  # with what a model's own code prints

            def show(at: int, one: TriedRecipe) -> None:
                typer.echo(f"[{at}] {words_of(one)}: {figures(one)}")

            found = run_search(loaded, folder, target, settings, show=show)
        typer.echo(f"dense: {figures(found.dense)} (n = {found.dense.n}, members held out)")
        for number, trial in enumerate(found.chosen, 1):
            typer.echo(f"found-{number}: {figures(trial)}; {words_of(trial)}")
        if not found.chosen:
            raise InputError(
                f"None of {len(found.trials)} recipes keeps to the limits. Nearest: {words_of(found.nearest)} "
                f"({figures(found.nearest)}; dense: {figures(found.dense)}). Try more (--trials) or allow more; what "
                "was measured is kept."
            )
        typer.echo(f"wrote {target}. Audit what was found: crushproof audit {shlex.quote(str(target))}")


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Made when it is not there.")] = Path()) -> None:
    """Write a commented plan and a model to start from."""
    with exit_codes():
        from .plan.starter import write_starter

        for path in write_starter(folder):
            typer.echo(f"wrote {path}")
        plan = shlex.quote(str(folder / "plan.yaml"))
        typer.echo(f"Try them as they are, in about a minute: crushproof audit {plan}")
        typer.echo("Then change them to your model and data; the plan says how.")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Holds audit.json.")]) -> None:
    """Draw report.html anew.

    From audit.json; nothing is measured again.
    """
    with exit_codes():
        from .schema.read import folder_of, read_audit
        from .verification.rebuild import held_against_evidence

        folder = folder_of(folder)
        found, standing = held_against_evidence(read_audit(folder), folder)
        from .report.html import render
        from .writing import writing

        with writing(folder):
            render(found, folder / "report.html", standing)
        typer.echo(f"wrote {folder / 'report.html'}. {standing.sentence}")


@app.command()
def gate(
    folder: Annotated[Path, typer.Argument(help="Holds audit.json.")],
    policy: Annotated[
        str | None, typer.Option(help="A built-in policy (release) or a YAML file of limits; default: the audit's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where report.html and audit.json of this verdict go.")] = None,
    as_json: JsonOption = False,
    fail_on: FailOnOption = FailOn.INCONCLUSIVE,
) -> None:
    """Judge a finished audit again, by another policy or its own.

    Nothing is measured again, and its audit.json stays as it is.
    """
    with exit_codes():
        from .schema.read import folder_of, read_audit
        from .schema.standing import told
        from .verdict.judging import rejudge
        from .verdict.policy import load_policy
        from .verification.rebuild import held_against_evidence

        folder = folder_of(folder)
        if policy is not None:
            load_policy(policy, Path(), None)  # before anything that takes longer
        result, standing = held_against_evidence(read_audit(folder), folder)
        if policy is not None:
            result = rejudge(result, load_policy(policy, Path(), result.metrics), by="gate")
        if out is not None:
            from .report.html import render
            from .writing import write_verdict, writing

            if result.verdict == "pass" and not standing.verified:  # the file would say so without a word of doubt
                raise Incomplete(f"{out} is not written. {standing.sentence}")
            with writing(out):
                write_verdict(out, folder, result.model_dump_json(by_alias=True, indent=1))
                render(result, out / "report.html", standing)
        from .report.terminal import show

        result = told(result, standing)
        show(result, as_json, None if out is None else out / "report.html", None, standing)
        raise typer.Exit(code_of(result.verdict, fail_on))


for command in (harden, sign, verify, encrypt, exposure):
    app.command()(command)


@app.command()
def catalogue(
    word: Annotated[str | None, typer.Argument(help="Just this kind (quantize) or sort (recipe, plug-in).")] = None,
    as_json: JsonOption = False,
) -> None:
    """List techniques with their parameters, and plug-ins."""
    with exit_codes():
        from dataclasses import asdict

        from .catalogue import catalogue as entries_of

        entries = entries_of(word)
        if as_json:
            typer.echo(json.dumps([asdict(entry) for entry in entries], indent=1, allow_nan=False))
            return
        if not entries:
            typer.echo("No other package brings anything.")
        for entry in entries:
            typer.echo(f"{entry.sort} {entry.kind}: {entry.summary}")
            for one in entry.parameters:
                bounds = f" ({one.bounds})" if one.bounds else ""
                default = "required" if one.required else f"default {json.dumps(one.default)}"
                typer.echo(f"    {one.name}: {one.type}{bounds}, {default}")
                if one.description:
                    typer.echo(textwrap.indent(textwrap.fill(one.description, 100), " " * 8))
            for figure in entry.figures:
                typer.echo(f"  measures {figure.name} ({figure.unit}, {figure.better} is better)")
                typer.echo(textwrap.indent(textwrap.fill(figure.meaning, 100), " " * 8))
            typer.echo()


@app.command()
def schema() -> None:
    """Print the JSON schema of audit.json."""
    with exit_codes():
        from .schema.json_schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))


@app.command()
def doctor() -> None:
    """Say whether this machine can run an audit."""
    code = PASS
    with exit_codes():
        from .doctor import examine

        for check in examine(Path.cwd()):
            typer.echo(f"{check.state:>4}  {check.what}: {check.words}")
            code = INCOMPLETE if check.state == "bad" else code
        raise typer.Exit(code)


def verdict_of_finding(result: Audit) -> str:  # of `--only`: what no policy judged did not pass, measured or not
    return next((one.verdict for one in result.findings[:1] if one.gated), "not-measured")


def main() -> None:
    """The console script."""
    run(app, sys.argv[1:])
