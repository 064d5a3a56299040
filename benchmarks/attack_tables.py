"""The tables of docs/attacks.md: from the catalogue, and from the records of `benchmarks.attacks`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from touchstone.methods import Method, catalogue

DOCUMENT = Path(__file__).parents[1] / "docs/attacks.md"
TABLE, PEERS, BLACK_BOX = "attack-table", "attacks-beside-peers", "attacks-beside-peers-black-box"
EQUALLY_NEAR, MANY_IMAGES = "attacks-equally-near", "attacks-beside-peers-200"

RowCells = Callable[[dict[str, Any]], list[str]]
"""What a table says of two attacks that were measured beside each other."""

STEP_COUNTS = (3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 75, 100)
"""Numbers of steps that are tried."""

ACCESS = {
    "gradients": "gradient-based",
    "scores": "score-based",
    "decisions": "decision-based",
    "transfer": "transfer-based",
}
BUDGET = {"fixed": "fixed radius", "minimal": "minimum-norm"}
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def write() -> None:
    """Bring the document up to date with the catalogue and the records."""
    DOCUMENT.write_text(fill_tables(DOCUMENT.read_text()))


def fill_tables(text: str) -> str:
    """The document with its tables as they should be."""
    return _replace_between(_replace_between(text, "catalogue", method_table()), "figures", result_tables())


def _replace_between(text: str, what: str, table: str) -> str:
    marks = f"<!-- {what} -->", f"<!-- end of {what} -->"
    inside = f"{marks[0]}\n{table}\n{marks[1]}" if table else "\n".join(marks)
    return re.sub(f"{marks[0]}.*?{marks[1]}", lambda _: inside, text, flags=re.DOTALL)


def method_table() -> str:
    """All attacks, those that need most of a model first."""
    order = list(ACCESS)
    attacks = sorted(
        catalogue("attack").values(), key=lambda one: (order.index(one.info.access), one.info.name)
    )
    return "\n".join(
        [
            "| attack | title | access | norms | targeted | budget | paper |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *map(_method_row, attacks),
        ]
    )


def _method_row(method: type[Method]) -> str:
    info = method.info
    norms = ", ".join(NORMS[norm] for norm in info.norms)
    paper, _, _ = info.paper.partition(":")
    cells = [
        f"`{info.name}`", info.title, ACCESS[info.access], norms, "yes" if info.targeted else "no",
        BUDGET[info.budget], f"[{paper}]({info.url})",
    ]  # fmt: skip
    return _format_line(cells)


def result_tables() -> str:
    """What was measured, as far as there are records."""
    tables = (
        (TABLE, _attack_table),
        (PEERS, _peer_table),
        (EQUALLY_NEAR, _steps_table),
        (MANY_IMAGES, _many_table),
        (BLACK_BOX, _black_box_table),
    )
    return "\n\n".join(table(_read_record(name)) for name, table in tables if _path(name).exists())


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _read_record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_path(name).read_text())
    return found


def _describe_machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return f"on {machine['date']} on {machine['threads']} cores of an {machine['processor']}"


def _attack_table(record: dict[str, Any]) -> str:
    rows = [
        "### Each attack",
        "",
        f"Measured {_describe_machine(record)}: success rate, median distance, forward and backward passes "
        "per image, and milliseconds per image.",
    ]
    for network, found in record["networks"].items():
        rows += [
            "",
            f"`{network}`; attacks with a fixed radius at L∞ {found['eps']:g}:",
            "",
            "| attack | norm | images | success rate | distance | forward | backward | ms |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_attack_row(name, one) for name, one in found["attacks"].items()),
        ]
    return "\n".join(rows)


def _attack_row(name: str, one: dict[str, Any]) -> str:
    backward = f"{one['backward']:,.0f}"
    if one["surrogate"]:
        backward += f" ({one['surrogate']:,.0f} of surrogates)"
    cells = [
        f"`{name}`",
        NORMS[one["norm"]],
        str(one["images"]),
        f"{100 * one['fooled']:.0f} %",
        _format_distance(one["distance"]),
        f"{one['forward']:,.0f}",
        backward,
        f"{1000 * one['seconds']:,.1f}",
    ]
    return _format_line(cells)


def _format_distance(distance: float | None) -> str:
    return "none" if distance is None else f"{distance:.3g}"


def _peer_table(record: dict[str, Any]) -> str:
    introduction = (
        f"Measured {_describe_machine(record)}, with the same images and numbers of steps, in one process: "
        "robust accuracy or median distance, and seconds for all images, as the median of the runs. "
        "*Speedup* is with our fused network for both sides; it is faster than the network as published, and "
        "*vs unfused* is the speedup over the peer on the latter."
    )
    columns = "images | ours | peer's | runs | seconds | peer's | speedup | vs unfused"
    return _pair_table(record, "Comparison with other libraries", introduction, columns, _peer_cells)


def _pair_table(record: dict[str, Any], title: str, introduction: str, columns: str, row: RowCells) -> str:
    """A table with a line for each pair, below its title and a sentence; `columns` follow the common ones."""
    names = f"network | attack | norm | peer | {columns}".split(" | ")
    pairs = ((network, pair) for network, found in record["networks"].items() for pair in found["pairs"])
    lines = (_format_line([*_pair_names(network, pair), *row(pair)]) for network, pair in pairs)
    return "\n".join(
        [
            f"### {title}",
            "",
            introduction,
            "",
            _format_line(names),
            _format_line(["---"] * len(names)),
            *lines,
        ]
    )


def _peer_cells(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        str(pair["images"]), *_outcome_cells(pair), str(pair["turns"]),
        f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{pair['speed_ratio']:g}",
        f"{pair['speed_ratio_plain']:g}",
    ]  # fmt: skip


def _pair_names(network: str, pair: dict[str, Any]) -> list[str]:
    return [f"`{network}`", f"`{pair['attack']}`", NORMS[pair["norm"]], pair["peer"]]


def _steps_table(record: dict[str, Any]) -> str:
    introduction = (
        f"Measured {_describe_machine(record)}, on our fused network: the fewest of "
        f"{', '.join(map(str, STEP_COUNTS))} steps with which each side reaches the smallest median distance "
        "that both reach with any of these, and the median seconds of three runs."
    )
    columns = "images | distance | steps | peer's | seconds | peer's | speedup"
    return _pair_table(record, "Steps and time to equal distance", introduction, columns, _steps_cells)


def _steps_cells(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        str(pair["images"]), f"{pair['distance']:.4f}", str(ours["steps"]), str(theirs["steps"]),
        f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{pair['speed_ratio']:g}",
    ]  # fmt: skip


def _many_table(record: dict[str, Any]) -> str:
    title = f"Robust accuracy on {record['samples']} images"
    introduction = (
        f"Measured {_describe_machine(record)}; other work ran at the same time, so times are not given."
    )
    return _pair_table(record, title, introduction, "ours | peer's", _outcome_cells)


def _outcome_cells(pair: dict[str, Any]) -> list[str]:
    return [_format_outcome(pair["ours"]), _format_outcome(pair["theirs"])]


def _black_box_table(record: dict[str, Any]) -> str:
    introduction = f"Measured {_describe_machine(record)}: ours may use as many queries as the peer did."
    columns = "images | ours | peer's | queries | peer's | seconds | peer's"
    return _pair_table(
        record, "Score-based and decision-based attacks", introduction, columns, _black_box_cells
    )


def _black_box_cells(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        str(pair["images"]), *_outcome_cells(pair), f"{ours['queries']:,}", f"{theirs['queries']:,}",
        f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}",
    ]  # fmt: skip


def _format_outcome(side: dict[str, Any]) -> str:
    if "robust_accuracy" in side:
        return f"{100 * side['robust_accuracy']:.1f} % robust"
    return f"{side['distance']:.4f}"


def _format_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
