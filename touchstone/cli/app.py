"""`touchstone …`: the service, and the same methods without it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import TextColumn
from rich.table import Table

import touchstone
from touchstone.cli import keys, tenants
from touchstone.cli.register import refusals, register
from touchstone.errors import Failure, InvalidParameter, StartError
from touchstone.evaluation.certificate_result import rounded_down
from touchstone.ledger.records import Progress
from touchstone.methods import Kind, card, catalogue, find

if TYPE_CHECKING:
    from touchstone.check import Finding
    from touchstone.evaluation.run import Finished

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out = Console()
err = Console(stderr=True)

Photo = Annotated[Path, typer.Argument(help="PNG, JPEG or WebP.")]
OWN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def main() -> None:
    """Run the command line; a failure is a sentence on stderr and exit code 2."""
    try:
        app()
    except Failure as failure:
        err.print(f"[red]{failure.code}[/]: {failure.detail}", highlight=False)
        raise SystemExit(2) from None
    except StartError as error:
        err.print(f"[red]not started[/]: {error}", highlight=False)
        raise SystemExit(2) from None


def _tell_version(wanted: bool) -> None:
    if wanted:
        out.print(f"touchstone {touchstone.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Test how robust an image classifier is."""


@app.command(context_settings=OWN_FLAGS)
def attack(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    photo: Photo,
    model: Annotated[str, typer.Option(help="A model's id.")] = "imagenet-efficientnet-lite0",
    method: Annotated[str, typer.Option("--attack", help="An attack's name.")] = "pgd",
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the adversarial PNG goes.")] = Path(
        "adversarial.png"
    ),
    label: Annotated[
        str | None, typer.Option(help="The true class; default: the model's own answer.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The class to reach, by index or name.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Attack one photo in this process, without a server.

    The attack's own parameters are flags, too: --eps 2/255 --steps 40 --norm l2 --no-early-stop. `touchstone
    attacks NAME` lists them.
    """
    flags = own_flags(context.args)
    _check_place(output)
    classes = {"label": label, "target": target}
    finished = _run(photo, "attack", model=model, method=method, parameters=flags, seed=seed, **classes)
    _save(output, finished.artifacts["adversarial.png"][0])
    if as_json:
        out.print_json(json.dumps(finished.result))
    else:
        show(finished.result)
        out.print(f"Saved {output}", highlight=False)


@app.command(context_settings=OWN_FLAGS)
def certify(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    photo: Photo,
    model: Annotated[str, typer.Option(help="A model's id.")] = "imagenet-efficientnet-lite0",
    method: Annotated[str, typer.Option(help="A certificate's name.")] = "smoothing",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal noise.")] = 0,
    file: Annotated[
        Path | None, typer.Option("--json", help="Where the certificate goes, for `touchstone check`.")
    ] = None,
) -> None:
    """Certify one photo in this process, without a server.

    The certificate's own parameters are flags, too: --sigma 0.25 --n 10000 --rule e_process. `touchstone
    certificates NAME` lists them.
    """
    flags = own_flags(context.args)
    if file is not None:
        _check_place(file)
    finished = _run(photo, "certificate", model=model, method=method, parameters=flags, seed=seed)
    show_certificate(finished.result)
    if file is not None:
        _save(file, json.dumps(finished.result, indent=2).encode())
        out.print(f"Saved {file}", highlight=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A certificate's result, or its job, as JSON.")],
) -> None:
    """Recompute a certificate from the numbers in it; exit 0 if all agree, 1 if not."""
    findings = _findings(file)
    table = Table("what", "says", "recomputed", "ok")
    for one in findings:
        cells = (escape(str(value)) for value in (one.what, one.says, one.found))
        table.add_row(*cells, "[green]yes[/]" if one.agrees else "[red]no[/]")
    out.print(table)
    valid = all(one.agrees for one in findings)
    out.print("The certificate is valid." if valid else "The certificate is not valid.")
    raise typer.Exit(0 if valid else 1)


@app.command()
def attacks(
    name: Annotated[str | None, typer.Argument(help="Show one attack and its flags.")] = None,
) -> None:
    """List the attacks, or show one."""
    _list_or_describe("attack", name)


@app.command()
def certificates(
    name: Annotated[str | None, typer.Argument(help="Show one certificate and its flags.")] = None,
) -> None:
    """List the certificates, or show one."""
    _list_or_describe("certificate", name)


Url = Annotated[str | None, typer.Option(help="A service's address, such as http://127.0.0.1:8000.")]


@app.command()
def models(url: Url = None) -> None:
    """List the models of the zoo, or with --url those of a service."""
    from touchstone.client import Client, api_key  # noqa: PLC0415 - only where a service is asked
    from touchstone.models.zoo import manifests  # noqa: PLC0415 - reads the cards only when they are asked for

    with refusals(err):
        cards = Client(url, api_key()).models() if url else [one.card() for one in manifests().values()]
    table = Table("model", "input", "classes", "accuracy", "licence")
    table.columns[0].no_wrap = True
    for one in cards:
        size = "{height}x{width}x{channels}".format(**one["input"])
        table.add_row(one["id"], size, str(len(one["classes"])), _accuracy(one), escape(one["licence"]))
    out.print(table)


def _accuracy(shown: dict[str, Any]) -> str:
    if not shown["accuracy"]:
        return ""
    known = shown["accuracy"][0]
    return f"{known['value']:.1%} {'measured' if known['measured'] else 'claimed'}, {known['data']}"


app.command()(register)
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")


@app.command(context_settings=OWN_FLAGS)
def train(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="standard, madry, fast or noise.")] = "standard",
    out_folder: Annotated[Path, typer.Option("--out", help="Where weights and card go.")] = Path("models"),
    model: Annotated[str | None, typer.Option(help="The new model's id; default: from the recipe.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that each image is seen.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 128,
    rate: Annotated[float, typer.Option(min=1e-6, max=1, help="The largest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal weights.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Where data sets are kept; default: in the home.")] = None,
) -> None:
    """Train a small network on Fashion-MNIST; started again after an interruption, it goes on.

    The recipe's own parameters are flags, too: --sigma 0.25 for noise; --eps 0.1 --steps 40 --step-size 0.01
    for madry; --eps 0.1 for fast.
    """
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment
    from touchstone.training import datasets, recipes  # noqa: PLC0415 - loads torch
    from touchstone.training import train as training  # noqa: PLC0415 - loads torch

    chosen = recipes.recipe(recipe, own_flags(context.args))
    plan = training.Plan(chosen, epochs=epochs, batch=batch, rate=rate, seed=seed)
    splits = datasets.fashion_mnist(data or Settings().home / "data")
    with Bar(
        *Bar.get_default_columns(), TextColumn("{task.fields[metric]}"), console=err, transient=True
    ) as bar:
        task = bar.add_task(recipe, total=None, metric="")

        def report(done: Progress, metric: dict[str, float]) -> None:
            told = " ".join(f"{name} {value:.3f}" for name, value in metric.items())
            bar.update(task, completed=done.done, total=done.total, metric=told)

        made = training.train(plan, splits, out_folder, model=model, report=report)
    out.print(
        f"{made.id}: {made.accuracy[0].value:.1%} on {made.accuracy[0].data}; in {out_folder}",
        highlight=False,
    )


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")] = None,
    home: Annotated[Path | None, typer.Option(help="The folder that holds everything written.")] = None,
) -> None:
    """Serve until Ctrl-C: the API, a worker and an embedded Valkey."""
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment
    from touchstone.supervisor.up import serve  # noqa: PLC0415 - starts processes

    chosen = {"host": host, "port": port, "home": home and home.resolve()}
    given = Settings().model_copy(update={key: value for key, value in chosen.items() if value is not None})
    raise typer.Exit(serve(given, lambda line: out.print(line, highlight=False)))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("demo"),
) -> None:
    """Start the service, attack a real photo through it, show what came of it, and stop the service."""
    from touchstone.cli.demo import run  # noqa: PLC0415 - starts processes

    run(folder, out)


def _run(photo: Path, kind: Kind, *, model: str, method: str, **asked: Any) -> Finished:
    """Run one job in this process, with a bar that shows how far it is."""
    from touchstone.evaluation.local import run_file  # noqa: PLC0415 - loads torch, which the other commands do without

    with Bar(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"{method} on {model}", total=None)

        def report(done: Progress, _metric: dict[str, float]) -> None:
            bar.update(task, completed=done.done, total=done.total)

        return run_file(_load(photo), kind, model=model, method=method, report=report, **asked)


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be read: {error.strerror}") from None


def _check_place(path: Path) -> None:
    """Refuse a file that cannot be written before hours are spent on what it is to hold."""
    if path.is_dir():
        raise InvalidParameter(f"{path} cannot be written: it is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidParameter(f"{path} cannot be written: no files can be made in {path.parent}")


def _save(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be written: {error.strerror}") from None


def _findings(file: Path) -> list[Finding]:
    from touchstone.check import check as recompute  # noqa: PLC0415 - loads scipy

    try:
        return recompute(json.loads(_load(file)))
    except KeyError as error:
        raise InvalidParameter(f"{file} is not a certificate: it has no field {error}") from None
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InvalidParameter(f"{file} is not a certificate: {error}") from None


def own_flags(words: list[str]) -> dict[str, Any]:
    """A method's parameters as flags: --eps 8/255, --eps=8/255, --early-stop, --no-early-stop."""
    parameters: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InvalidParameter(f"{word!r} is not a flag; parameters are written --name value")
        name, has_value, value = word[2:].partition("=")
        if has_value:
            parameters[_field(name)] = value
        elif rest and not rest[0].startswith("--"):
            parameters[_field(name)] = rest.pop(0)
        elif name.startswith("no-"):
            parameters[_field(name[3:])] = False
        else:
            parameters[_field(name)] = True
    return parameters


def _field(flag: str) -> str:
    return flag.replace("-", "_")


def show(result: dict[str, Any]) -> None:
    """Labels and confidences before and after, and how large the change is."""
    table = Table("", "label", "confidence")
    for when in ("original", "adversarial"):
        seen = result[when]
        table.add_row(when, f"{seen['name']} ({seen['label']})", f"{seen['confidence']:.1%}")
    out.print(table)
    size, asked = result["perturbation"], result["queries"]
    far = f"L∞ {size['linf'] * 255:.0f}/255, L2 {size['l2']:.3f}, SSIM {size['ssim']:.4f}"
    out.print(
        f"{result['outcome']}: {far}; {asked['forward']} forward and {asked['backward']} backward passes",
        highlight=False,
    )


def show_certificate(result: dict[str, Any]) -> None:
    """The outcome in a sentence, and the numbers behind it."""
    sampling = result["sampling"]
    out.print(result["statement"], highlight=False)
    table = Table("radius", "decision", "votes", "vote at least", "σ", "α", "stopped by")
    table.add_row(
        f"{rounded_down(result['radius']):.4f} ({result['norm']})",
        result["decision"] or "",
        f"{sampling['nA']:,} of {sampling['n_used']:,}",
        f"{sampling['pA_lower']:.4f}",
        f"{sampling['sigma']:g}",
        f"{sampling['alpha']:g}",
        result["stopped_by"],
    )
    out.print(table)


def _list_or_describe(kind: Kind, name: str | None) -> None:
    if name is None:
        out.print(_listing(kind))
    else:
        _describe(card(find(name, kind)))


def _listing(kind: Kind) -> Table:
    table = Table("name", "what", "norms", "knowledge", "paper")
    for method in catalogue(kind).values():
        info = method.info
        table.add_row(info.name, info.title, " ".join(info.norms), info.knowledge, info.paper)
    return table


def _preset(value: Any, field: dict[str, Any]) -> str:
    """A default as one would write it: a distance that is a number of 8-bit levels as their fraction."""
    if value is None:
        return "unset"
    levels = value * 255 if isinstance(value, float) and "/" in str(field.get("examples")) else 0.5
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-9 else str(value)


def _describe(shown: dict[str, Any]) -> None:
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", shown["description"])
    out.print(f"[bold]{shown['title']}[/] ({shown['name']}, {shown['knowledge']})\n\n{text}\n")
    table = Table("flag", "default", "meaning")
    for name, field in shown["schema"]["properties"].items():
        preset = _preset(shown["example"][name], field)
        table.add_row(f"--{name.replace('_', '-')}", preset, field["description"])
    out.print(table)
    out.print(f"{shown['paper']['title']}, {shown['paper']['url']}")
