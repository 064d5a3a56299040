"""Commands that list attacks, certificates and models."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from touchstone.cli.console import err, out
from touchstone.cli.register import report_refusals
from touchstone.methods import Kind, build_card, catalogue, find


def attacks(
    name: Annotated[str | None, typer.Argument(help="Show one attack and its flags.")] = None,
) -> None:
    """List the attacks, or show one."""
    _list_or_describe("attack", name)


def certificates(
    name: Annotated[str | None, typer.Argument(help="Show one certificate and its flags.")] = None,
) -> None:
    """List the certificates, or show one."""
    _list_or_describe("certificate", name)


Url = Annotated[str | None, typer.Option(help="A service's address, such as http://127.0.0.1:8000.")]


def models(url: Url = None) -> None:
    """List the models of the zoo, or with --url those of a service."""
    from touchstone.cli.service_client import Client, api_key  # noqa: PLC0415 - only with --url
    from touchstone.models.zoo import manifests  # noqa: PLC0415 - reads the manifests only when needed

    with report_refusals(err):
        cards = (
            Client(url, api_key()).models() if url else [manifest.card() for manifest in manifests().values()]
        )
    table = Table("model", "input", "classes", "accuracy", "licence")
    table.columns[0].no_wrap = True
    for card in cards:
        size = "{height}x{width}x{channels}".format(**card["input"])
        table.add_row(
            card["id"], size, str(len(card["classes"])), _format_accuracy(card), escape(card["licence"])
        )
    out.print(table)


def _format_accuracy(model_card: dict[str, Any]) -> str:
    if not model_card["accuracy"]:
        return ""
    accuracy = model_card["accuracy"][0]
    source = "measured" if accuracy["measured"] else "claimed"
    return f"{accuracy['value']:.1%} {source}, {accuracy['data']}"


def _list_or_describe(kind: Kind, name: str | None) -> None:
    if name is None:
        out.print(_build_table(kind))
    else:
        _describe(build_card(find(name, kind)))


def _build_table(kind: Kind) -> Table:
    table = Table("name", "what", "norms", "knowledge", "paper")
    for method in catalogue(kind).values():
        info = method.info
        table.add_row(info.name, info.title, " ".join(info.norms), info.knowledge, info.paper)
    return table


def _format_default(value: Any, field: dict[str, Any]) -> str:
    """A default as a user writes it: a distance of whole 8-bit levels as a fraction of 255."""
    if value is None:
        return "unset"
    levels = value * 255 if isinstance(value, float) and "/" in str(field.get("examples")) else 0.5
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-9 else str(value)


def _describe(method_card: dict[str, Any]) -> None:
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", method_card["description"])
    out.print(
        f"[bold]{method_card['title']}[/] ({method_card['name']}, {method_card['knowledge']})\n\n{text}\n"
    )
    table = Table("flag", "default", "meaning")
    for name, field in method_card["schema"]["properties"].items():
        preset = _format_default(method_card["example"][name], field)
        table.add_row(f"--{name.replace('_', '-')}", preset, field["description"])
    out.print(table)
    out.print(f"{method_card['paper']['title']}, {method_card['paper']['url']}")
