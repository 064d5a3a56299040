"""Commands that run a method in this process, or check its result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress as ProgressBar
from rich.table import Table

from touchstone.cli.console import err, out, show, show_certificate
from touchstone.errors import InvalidParameter
from touchstone.ledger.records import Progress
from touchstone.methods import Kind

if TYPE_CHECKING:
    from touchstone.check import Finding
    from touchstone.evaluation.run import JobOutcome

Photo = Annotated[Path, typer.Argument(help="PNG, JPEG or WebP.")]
OWN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def attack(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    photo: Photo,
    model: Annotated[str, typer.Option(help="A model's id.")] = "imagenet-efficientnet-lite0",
    method: Annotated[str, typer.Option("--attack", help="An attack's name.")] = "pgd",
    output: Annotated[Path, typer.Option("-o", "--output", help="File for the adversarial PNG.")] = Path(
        "adversarial.png"
    ),
    label: Annotated[
        str | None, typer.Option(help="The true class; default: the class that the model predicts.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The class to reach, by index or name.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Attack one photo in this process, without a server.

    The parameters of the attack are flags, too: --eps 2/255 --steps 40 --norm l2 --no-early-stop. `touchstone
    attacks NAME` lists them.
    """
    flags = own_flags(context.args)
    _check_writable(output)
    classes = {"label": label, "target": target}
    outcome = _run(photo, "attack", model=model, method=method, parameters=flags, seed=seed, **classes)
    _save(output, outcome.artifacts["adversarial.png"][0])
    if as_json:
        out.print_json(json.dumps(outcome.result))
    else:
        show(outcome.result)
        out.print(f"Saved {output}", highlight=False)


def certify(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    photo: Photo,
    model: Annotated[str, typer.Option(help="A model's id.")] = "imagenet-efficientnet-lite0",
    method: Annotated[str, typer.Option(help="A certificate's name.")] = "smoothing",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal noise.")] = 0,
    file: Annotated[
        Path | None, typer.Option("--json", help="File for the certificate, for `touchstone check`.")
    ] = None,
) -> None:
    """Certify one photo in this process, without a server.

    The parameters of the certificate are flags, too: --sigma 0.25 --n 10000 --rule e_process. `touchstone
    certificates NAME` lists them.
    """
    flags = own_flags(context.args)
    if file is not None:
        _check_writable(file)
    outcome = _run(photo, "certificate", model=model, method=method, parameters=flags, seed=seed)
    show_certificate(outcome.result)
    if file is not None:
        _save(file, json.dumps(outcome.result, indent=2).encode())
        out.print(f"Saved {file}", highlight=False)


def check(
    file: Annotated[Path, typer.Argument(help="A certificate's result, or its job, as JSON.")],
) -> None:
    """Recompute a certificate from its own numbers; exits with 0 if all agree, with 1 if not."""
    findings = _recompute(file)
    table = Table("what", "says", "recomputed", "ok")
    for finding in findings:
        cells = (escape(str(value)) for value in (finding.name, finding.claimed, finding.recomputed))
        table.add_row(*cells, "[green]yes[/]" if finding.agrees else "[red]no[/]")
    out.print(table)
    valid = all(finding.agrees for finding in findings)
    out.print("The certificate is valid." if valid else "The certificate is not valid.")
    raise typer.Exit(0 if valid else 1)


def _run(photo: Path, kind: Kind, *, model: str, method: str, **arguments: Any) -> JobOutcome:
    """Run one job in this process, with a progress bar."""
    from touchstone.evaluation.local import run_file  # noqa: PLC0415 - loads torch, which other commands do not need

    with ProgressBar(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"{method} on {model}", total=None)

        def report(done: Progress, _metric: dict[str, float]) -> None:
            bar.update(task, completed=done.done, total=done.total)

        return run_file(_read(photo), kind, model=model, method=method, report=report, **arguments)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be read: {error.strerror}") from None


def _check_writable(path: Path) -> None:
    """Refuse an output file that cannot be written, before hours of computing."""
    if path.is_dir():
        raise InvalidParameter(f"{path} cannot be written: it is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidParameter(f"{path} cannot be written: {path.parent} is no writable folder")


def _save(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidParameter(f"{path} cannot be written: {error.strerror}") from None


def _recompute(file: Path) -> list[Finding]:
    from touchstone.check import check as recompute  # noqa: PLC0415 - loads scipy

    try:
        return recompute(json.loads(_read(file)))
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
            parameters[_field_name(name)] = value
        elif rest and not rest[0].startswith("--"):
            parameters[_field_name(name)] = rest.pop(0)
        elif name.startswith("no-"):
            parameters[_field_name(name[3:])] = False
        else:
            parameters[_field_name(name)] = True
    return parameters


def _field_name(flag: str) -> str:
    return flag.replace("-", "_")
