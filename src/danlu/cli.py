"""The command line. Every command takes ``--json``; heavy imports happen inside."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from danlu import __version__
from danlu.errors import DanluError, Interrupted, from_machine

app = typer.Typer(
    name="danlu",
    help="丹炉: from raw data to a foundation model that you can defend, with one recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done · 1 the gate or a check failed · 2 the input is wrong · "
    "3 the machine let us down · 130, 143, 129 asked to leave by Ctrl-C, SIGTERM or a closed "
    "terminal, and saved",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override one recipe key; may be repeated."),
]
Fetch = Annotated[
    bool,
    typer.Option("--fetch", help="Consent to downloading the packages that the sources name."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into a message on stderr and the right exit code."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except DanluError as error:
            _stop(error, options.get("as_json", False))
        except Interrupted as error:
            _stop(error, options.get("as_json", False))
        except KeyboardInterrupt:
            _say_error("interrupted")
            raise SystemExit(130) from None
        except Exception as error:
            refused = from_machine(error)
            if refused is None:
                raise  # a bug of ours: the traceback is what we need to see
            _stop(refused, options.get("as_json", False))

    return run


def _say_error(text: str) -> None:
    typer.secho("danlu: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(text, err=True)


def _stop(error: DanluError | Interrupted, as_json: bool) -> None:
    if as_json:
        content = {
            "error": error.what,
            "where": error.where,
            "mend": error.mend,
            "exit": error.exit_code,
        }
        typer.echo(json.dumps(content, ensure_ascii=False), err=True)
    else:
        _say_error(str(error))
    raise SystemExit(error.exit_code)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False, indent=1))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@_guarded
def new(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file or a folder.")],
    target: Annotated[str | None, typer.Option(help="The column to be predicted.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RECIPE", help="Where to write it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at DATA and write a commented recipe that runs as it is."""
    from danlu.data.guess import look, write

    guess = look(data, target)
    path = write(guess, output)
    if as_json:
        _print_json({"recipe": str(path), **guess.to_dict()})
        return
    typer.echo(f"{path}")
    for reason in guess.reasons:
        typer.echo(f"  {reason}")
    typer.echo(f"next: danlu check {path}")


@app.command()
@_guarded
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    fetch: Fetch = False,
    as_json: AsJson = False,
) -> None:
    """Show what the model will see, and stop on what would go wrong. Trains nothing."""
    from danlu import recipe as recipes
    from danlu.log import Screen
    from danlu.preflight import check as preflight
    from danlu.preflight import show

    filled, derived = recipes.load(recipe, overrides)
    found = preflight(filled, derived, Screen(quiet=as_json), fetch)
    if as_json:
        _print_json(found)
    else:
        show(found)
    if found["problems"]:
        raise SystemExit(1)


@app.command()
@_guarded
def run(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; runs/NAME if not given.")
    ] = None,
    overrides: Overrides = None,
    fetch: Fetch = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also measure where the time of a step goes.")
    ] = False,
) -> None:
    """Run a recipe from raw data to a released model with its report."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the tracer's messages are not for users
    from danlu import launch, pipeline
    from danlu import recipe as recipes
    from danlu.log import Screen

    if launch.under_torchrun():
        overrides = [*(overrides or []), f"launch.processes={launch.world_size()}"]
        if not launch.leads():
            launch.follow()
            return
    filled, derived = recipes.load(recipe, overrides)
    screen = Screen(quiet=as_json or quiet)
    for path, rule in derived.items():
        screen.say(f"[dim]{path} = {_at(filled, path)}  ({rule})[/]")
    result = pipeline.run(filled, out or Path("runs") / filled.name, screen, profile, fetch)
    launch.dismiss()
    if as_json:
        _print_json({
            "run": str(result.folder), "headline": result.headline, "released": result.released,
            "built": result.built, "verdicts": result.verdicts,
        })  # fmt: skip
        return
    typer.secho(result.headline, bold=True)
    typer.echo(f"report:  {result.folder / 'report.html'}")
    if filled.data.task != "pretrain":
        asked = {"series": "--file history.csv", "events": """'["item", …]'"""}.get(
            filled.data.modality, '"…"'
        )
        typer.echo(f"predict: danlu predict {result.folder} {asked}")
        typer.echo(f"serve:   danlu serve {result.folder}")


def _at(recipe: Any, path: str) -> Any:
    for part in path.split("."):
        recipe = recipe[int(part)] if part.isdigit() else getattr(recipe, part)
    return recipe


@app.command()
@_guarded
def report(run: RunPath, as_json: AsJson = False) -> None:
    """Print a run's figures, and where its report is."""
    from danlu.artifact import read_json
    from danlu.errors import InputError

    path = run / "metrics.json"
    if not path.is_file():
        raise InputError("there is no finished run here", where=str(run), mend="danlu run RECIPE")
    rows = read_json(path)
    if as_json:
        _print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    from danlu.release.words import figure

    table = Table(
        "model", "split", "metric", "value", "95% interval", "n", title=str(run / "report.html")
    )
    for row in rows:
        if row["stage"] == "evaluate":
            unit = row["unit"]
            interval = (
                ""
                if row["low"] is None
                else f"{figure(row['low'], unit)} … {figure(row['high'], unit)}"
            )
            table.add_row(
                row["model"],
                row["split"],
                row["metric"],
                figure(row["value"], unit),
                interval,
                f"{row['n']:,}",
            )
    Console().print(table)


@app.command()
@_guarded
def predict(
    run: RunPath,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Texts, rows or histories in JSON, or files of images or sounds; `-` reads stdin.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="JSONL, CSV, TSV or Parquet: the same comes out, with columns added; of a "
            "history its forecast, or what to recommend to each user.",
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="The file's text column.")] = "text",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the file's answers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer about texts, rows, images or sounds, a file of many, or the lines of stdin."""
    from danlu.api import load
    from danlu.errors import InputError

    if bool(texts) == (file is not None):
        raise InputError("give texts, or a file with --file", mend='danlu predict RUN "a text"')
    predictor = load(run)
    if file is not None:
        from danlu.serve.files import predict_file

        written, rows, counts = predict_file(predictor.engine, file, column, output)
        if as_json:
            _print_json({"output": str(written), "rows": rows, **counts})
        else:
            told = "".join(f", {count:,} {what}" for what, count in counts.items())
            typer.echo(f"{written}: {rows:,} rows{told}")
        return
    wanted = texts or []
    if wanted == ["-"]:
        wanted = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    records = [_record(predictor.engine, question) for question in wanted]
    for number, record in enumerate(records, 1):
        if not predictor.engine.reader.clean(record):
            raise InputError("it is empty", where=f"question {number}")
    answers = predictor.predict(records)
    if as_json:
        _print_json(answers)
        return
    for answer in answers:
        for line in _lines(answer):
            typer.echo(line)


def _lines(answer: dict[str, Any]) -> list[str]:
    """Return what is printed of an answer."""
    if "times" in answer:
        return _lines_of_series(answer)
    if "items" in answer:
        strange = f"({answer['unknown']:,} of the items are unknown)"
        found = [f"{one['item']}\t{one['probability']:.4f}" for one in answer["items"]]
        return [*([strange] if answer["unknown"] else []), *found]
    return [_answer_line(answer)]


def _record(engine: Any, question: str) -> Any:
    """Return what a question on the command line is about: a text, a row in JSON, a file."""
    from danlu.errors import InputError

    if engine.modality == "text":
        return question
    if engine.modality in ("image", "audio"):
        blob = _bytes_of(question)
        try:
            return engine.reader.parse(blob)
        except InputError as error:
            raise InputError(error.what, where=question) from None
    try:
        row = json.loads(question)
        for name in engine.images:
            if isinstance(row, dict) and row.get(name):
                row[name] = _bytes_of(str(row[name]))
        return engine.reader.parse(row)
    except ValueError:
        raise InputError(
            "this is not JSON",
            where=question[:60],
            mend='give a history as ["item", …]'
            if engine.modality == "events"
            else 'give a row as {"column": value, …}',
        ) from None


def _bytes_of(path: str) -> bytes:
    """Return what a file holds that a question names."""
    from danlu.errors import InputError

    if not Path(path).is_file():
        raise InputError("there is no such file", where=path)
    return Path(path).read_bytes()


def _lines_of_series(answer: dict[str, Any]) -> list[str]:
    """Return a forecast's medians with their widest interval, or a detector's alarms."""
    if "alarms" in answer:
        found = [f"{a['start']}\t{a['end']}\t{a['peak']:.6g}" for a in answer["alarms"]]
        return found or ["no alarm"]
    middle = answer["levels"].index(0.5)
    return [
        f"{time}\t{values[middle]:.6g}\t[{values[0]:.6g}, {values[-1]:.6g}]"
        for time, values in zip(answer["times"], answer["quantiles"], strict=True)
    ]


def _answer_line(answer: dict[str, Any]) -> str:
    if "text" in answer:
        return str(answer["text"])
    cut = "\t(cut: too long)" if answer.get("truncated") else ""
    if "value" in answer:
        others = {k: v for k, v in answer.get("quantiles", {}).items() if k != "0.5"}
        spread = "".join(f"\tq{level} {value:.6g}" for level, value in others.items())
        return f"{answer['value']:.6g}{spread}{cut}"
    if "labels" in answer:
        return f"{', '.join(answer['labels']) or '(none)'}{cut}"
    return f"{answer['label']}\t{answer['probability']:.4f}{cut}"


@app.command()
@_guarded
def serve(
    run: RunPath,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8321,
    as_json: AsJson = False,
) -> None:
    """Serve a run's model over HTTP, with a page to try it."""
    from danlu.api import load
    from danlu.serve.http import serve_forever

    def ready(address: str) -> None:
        if as_json:
            typer.echo(json.dumps({"url": address}))
        else:
            typer.echo(f"danlu serves {run} at {address} (Ctrl-C stops it)")

    serve_forever(load(run).engine, host, port, ready)


@app.command()
@_guarded
def export(
    run: RunPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Write a run's model of texts as a checkpoint of an open family (Hugging Face layout)."""
    from danlu import export as exporting

    found = exporting.export(run, folder)
    if as_json:
        _print_json(found)
    else:
        typer.echo(exporting.line(found))


@app.command()
@_guarded
def schema(as_json: AsJson = False) -> None:  # noqa: ARG001 - every command takes --json, and this prints nothing else
    """Print the JSON Schema of recipes, for editors."""
    from danlu.recipe import schema as recipe_schema

    _print_json(recipe_schema())


def main() -> None:
    """Run the command line."""
    app()
