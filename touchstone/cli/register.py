"""`touchstone register`: register a model file with a service."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as ProgressBar, TaskID
from rich.table import Table

from touchstone.cli.console import err, out
from touchstone.cli.service_client import Client, RefusedError, Upload, api_key
from touchstone.datasets.labelled_files import pack_folder
from touchstone.errors import Failure, InvalidParameter
from touchstone.models.external_data import Joined
from touchstone.registration.examples import FIELD, PACKED_LIMITS
from touchstone.registration.model_files import find_beside, open_model
from touchstone.registration.published.beside import default_id, read_beside

MAX_CLASSES_SHOWN = 4
_INPUT_FLAGS = ("resize", "interpolation", "channels", "layout", "channel_order", "straight_through")


def register(  # noqa: PLR0917 - each is an option of the command line
    file: Annotated[
        Path,
        typer.Argument(
            help="ONNX, safetensors, or a zip with an ONNX file and its weights. Weights in a second file, "
            "such as m.onnx.data, are found by themselves."
        ),
    ],
    url: Annotated[str, typer.Option(help="The service's address.")] = "http://127.0.0.1:8000",
    manifest: Annotated[
        Path | None, typer.Option(help="JSON file with the values of the flags below.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--id", help="The model's id; default: the file's name.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File with the names of the classes, one per line.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the input: 224, or HEIGHTxWIDTH.")] = None,
    resize: Annotated[
        int | None, typer.Option(help="Scale the shorter side to this before the center crop.")
    ] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear or bicubic.")] = None,
    channels: Annotated[int | None, typer.Option(help="3 or 1.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc.")] = None,
    channel_order: Annotated[str | None, typer.Option(help="rgb or bgr.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of pixels in [0,1]: 0.485,0.456,0.406")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise: 0.229,0.224,0.225")] = None,
    span: Annotated[
        str | None, typer.Option("--range", help="Instead: the values of black and white: -1,1")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="For safetensors: torchvision/NAME, timm/NAME or one of the zoo's.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Of an ONNX file with several outputs: the name of the logits.")
    ] = None,
    randomized: Annotated[
        bool | None, typer.Option("--randomized", help="An ONNX file that draws random numbers on purpose.")
    ] = None,
    straight_through: Annotated[
        bool | None,
        typer.Option("--straight-through", help="Pass gradients past the rounding of a quantized network."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights.")] = None,
    provenance: Annotated[str | None, typer.Option(help="Where the model comes from.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Up to 100 labelled images to try it with: a folder or zip with a folder for each class, or "
            "with a metadata.csv of file_name and label."
        ),
    ] = None,
) -> None:
    """Register a model with a service: upload it, wait for its trial, and show the findings."""
    with report_refusals(err):
        flags = {
            **{"id": model, "size": size, "resize": resize, "interpolation": interpolation},
            **{"channels": channels, "layout": layout, "channel_order": channel_order},
            **{"mean": parse_numbers(mean, "--mean"), "std": parse_numbers(std, "--std")},
            **{"range": parse_numbers(span, "--range"), "randomized": randomized},
            **{"straight_through": straight_through},
            **{"architecture": architecture, "output": output, "licence": licence, "provenance": provenance},
        }
        fields = _add_published(file, build_manifest(file, manifest, flags))
        parts = _read_parts(fields, classes)
        with _open_file(file) as joined, ProgressBar(console=err, transient=True) as bar:
            upload = Upload.of(joined, parts, _read_examples(examples))
            answer = _register(Client(url, api_key()), upload, bar)
        _show(answer, out)


@contextmanager
def report_refusals(err: Console) -> Iterator[None]:
    """If a service refuses, print its reason to stderr and exit with 1."""
    try:
        yield
    except RefusedError as error:
        err.print(f"[red]refused[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None


@contextmanager
def _open_file(file: Path) -> Iterator[Joined]:
    """The one file that a model is, also where it came as two or as a zip."""
    if not file.is_file():
        raise RefusedError(f"{file} is no file that can be read")
    try:
        with open_model(file, find_beside(file), limit=sys.maxsize) as model:
            yield model.joined
    except Failure as failure:
        raise RefusedError(failure.detail) from None


def _add_published(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with the configurations that are beside the file."""
    try:
        return read_beside(file, fields)
    except InvalidParameter as failure:
        raise RefusedError(failure.detail) from None


def _read_parts(manifest: Mapping[str, Any], classes: Path | None) -> dict[str, bytes]:
    """The parts of the form besides the file."""
    labels = {} if classes is None else {"labels": read_file(classes)}
    published = ("config", "preprocessor_config", "architecture")  # may say it
    if "input" not in manifest and not any(name in manifest for name in published):
        raise RefusedError("the size of the network's input is missing: add --size 224, or HEIGHTxWIDTH")
    return {"manifest": json.dumps(manifest).encode(), **labels}


def _read_examples(source: Path | None) -> dict[str, bytes]:
    """The part of the form with the examples in a folder or a zip."""
    if source is None:
        return {}
    if source.is_dir():
        return {FIELD: pack_folder(source, PACKED_LIMITS)}
    return {FIELD: read_file(source)}


def _show(answer: Mapping[str, Any], out: Console) -> None:
    """Print a job that has succeeded, or the card of a version that was registered before."""
    if answer.get("kind") == "registration":
        card, probe = answer["result"]["model"], answer["result"]["probe"]
        out.print(f"Registered {card['id']} as {card['digest']}", highlight=False)
    else:
        card, probe = answer, answer["probe"]
        out.print(f"{card['id']} was registered before, as {card['digest']}", highlight=False)
    out.print(_build_card_table(card, probe))
    for warning in ((probe or {}).get("examples") or {}).get("warnings", ()):
        out.print(f"[yellow]warning[/]: {escape(warning['detail'])}", highlight=False)


def build_manifest(file: Path, written: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a JSON file, overridden by flags; by default the model is named after its file."""
    fields: dict[str, Any] = {"id": default_id(file)}
    fields |= _read_object(written) if written else {}
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    spec: dict[str, Any] = {name: given.pop(name) for name in _INPUT_FLAGS if name in given}
    if size := given.pop("size", None):
        height, _, width = str(size).partition("x")
        spec |= {"height": parse_number(height, "--size"), "width": parse_number(width or height, "--size")}
    if spec:
        fields["input"] = {**fields.get("input", {}), **spec}
    return fields | given


def parse_numbers(text: str | None, flag: str) -> list[float] | None:
    """0.485,0.456,0.406 as numbers."""
    return None if text is None else [parse_number(part, flag) for part in text.split(",")]


def parse_number(text: str, flag: str) -> float:
    """A number; an integer if it is written as one."""
    try:
        return int(text) if text.strip().lstrip("-").isdigit() else float(text)
    except ValueError:
        raise RefusedError(f"{flag}: {text[:40]!r} is no number") from None


def read_file(path: Path) -> bytes:
    """The bytes of a small file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_file(path))
    except ValueError as error:
        raise RefusedError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError(f"{path} holds no JSON object")
    return value


def _register(client: Client, upload: Upload, bar: ProgressBar) -> dict[str, Any]:
    """The job once it has succeeded, or the card of a version that was registered before."""
    task = bar.add_task("uploading it", total=upload.file.size)
    answer = client.register(upload, lambda size: bar.update(task, advance=size))
    if answer.get("kind") != "registration":
        return answer
    phases = Phases(bar, task)
    return client.wait_for_job(answer, phases.show)


@dataclass
class Phases:
    """What a registration does while it does it: a line for each phase that has begun, and a bar."""

    bar: ProgressBar
    task: TaskID
    shown: int = 0

    def show(self, job: Mapping[str, Any]) -> None:
        """Show a job's progress; called again and again."""
        done, phases = job["progress"]["done"], job.get("phases", ())
        begun = phases[: done + 1] if job["status"] == "running" else ()
        for phase in begun[self.shown :]:
            self.bar.console.print(phase)
        self.shown = max(self.shown, len(begun))
        what = begun[-1] if begun else "waiting for a worker"
        self.bar.update(self.task, description=what, completed=done, total=len(phases) or None)


def _build_card_table(card: Mapping[str, Any], probe: Mapping[str, Any] | None) -> Table:
    """The main properties of a model."""
    spec, names = card["input"], card["classes"]
    more = " …" if len(names) > MAX_CLASSES_SHOWN else ""
    table = Table(show_header=False)
    rows = {
        "input": f"{spec['height']}x{spec['width']}x{spec['channels']}, {spec['interpolation']}"
        + (", BGR" if spec.get("channel_order") == "bgr" else ""),
        "classes": escape(f"{len(names):,}: {', '.join(names[:MAX_CLASSES_SHOWN])}{more}"),
        "architecture": escape(card["architecture"]),
        "parameters": f"{card['parameters']:,}",
        "gradients": card.get("gradients", "exact"),
        "at its end": describe_activation(card.get("output_activation", ())),
        **_format_sources(card.get("sources", {})),
        **(_format_probe(probe) if probe else {}),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _format_sources(sources: Mapping[str, str]) -> dict[str, str]:
    """The fields that were read and not stated, by their sources."""
    return {
        f"read from {escape(source)}": ", ".join(name for name, one in sources.items() if one == source)
        for source in sources.values()
    }


def describe_activation(steps: Iterable[Mapping[str, Any]]) -> str:
    """What stands between logits and output, in words."""
    return ", ".join(f"{step['function']} ({step['handling']})" for step in steps) or "logits"


def _format_probe(probe: Mapping[str, Any]) -> dict[str, str]:
    agrees, invariant, examples = probe["gradient_agrees"], probe["batch_invariant"], probe.get("examples")
    undefined = ", ".join(probe.get("gradient_not_finite_at", ()))
    rows = {
        "gradient check": "agrees with finite differences" if agrees else "[red]does not agree[/]",
        **({"gradient not finite at": undefined} if undefined else {}),
        "latency per image": f"{probe['forward_ms']:.2f} ms, {probe['gradient_ms']:.2f} ms with gradient",
        "batch-invariant": "yes" if invariant else "[red]no[/]: its jobs do not share passes",
    }
    if examples:
        counts = f"{examples['correct']} of {examples['count']}"
        rows["accuracy on examples"] = f"{examples['accuracy']:.1%} ({counts})"
    return rows
