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
TABLE, BESIDE, BLIND = "attack-table", "attacks-beside-peers", "attacks-beside-peers-black-box"
NEAR, MANY = "attacks-equally-near", "attacks-beside-peers-200"

Row = Callable[[dict[str, Any]], list[str]]
"""What a table says of two attacks that were measured beside each other."""

RUNGS = (3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 75, 100)
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
    DOCUMENT.write_text(written(DOCUMENT.read_text()))


def written(text: str) -> str:
    """The document with its tables as they should be."""
    return _between(_between(text, "catalogue", methods()), "figures", figures())


def _between(text: str, what: str, table: str) -> str:
    marks = f"<!-- {what} -->", f"<!-- end of {what} -->"
    inside = f"{marks[0]}\n{table}\n{marks[1]}" if table else "\n".join(marks)
    return re.sub(f"{marks[0]}.*?{marks[1]}", lambda _: inside, text, flags=re.DOTALL)


def methods() -> str:
    """All attacks, those that need most of a model first."""
    order = list(ACCESS)
    attacks = sorted(
        catalogue("attack").values(), key=lambda one: (order.index(one.info.access), one.info.name)
    )
    return "\n".join(
        [
            "| attack | title | access | norms | targeted | budget | paper |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *map(_method, attacks),
        ]
    )


def _method(method: type[Method]) -> str:
    info = method.info
    norms = ", ".join(NORMS[norm] for norm in info.norms)
    paper, _, _ = info.paper.partition(":")
    cells = [
        f"`{info.name}`", info.title, ACCESS[info.access], norms, "yes" if info.targeted else "no",
        BUDGET[info.budget], f"[{paper}]({info.url})",
    ]  # fmt: skip
    return _line(cells)


def figures() -> str:
    """What was measured, as far as there are records."""
    tables = ((TABLE, _attacks), (BESIDE, _peers), (NEAR, _reached), (MANY, _many), (BLIND, _blind))
    return "\n\n".join(table(_record(name)) for name, table in tables if _path(name).exists())


def _path(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_path(name).read_text())
    return found


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return f"on {machine['date']} on {machine['threads']} cores of an {machine['processor']}"


def _attacks(record: dict[str, Any]) -> str:
    rows = [
        "### Each attack",
        "",
        f"Measured {_machine(record)}: success rate, median distance, forward and backward passes per image, "
        "and milliseconds per image.",
    ]
    for network, found in record["networks"].items():
        rows += [
            "",
            f"`{network}`; attacks with a fixed radius at L∞ {found['eps']:g}:",
            "",
            "| attack | norm | images | success rate | distance | forward | backward | ms |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_attack(name, one) for name, one in found["attacks"].items()),
        ]
    return "\n".join(rows)


def _attack(name: str, one: dict[str, Any]) -> str:
    backward = f"{one['backward']:,.0f}"
    if one["surrogate"]:
        backward += f" ({one['surrogate']:,.0f} of surrogates)"
    cells = [
        f"`{name}`", NORMS[one["norm"]], str(one["images"]), f"{100 * one['fooled']:.0f} %",
        _distance(one["distance"]), f"{one['forward']:,.0f}", backward, f"{1000 * one['seconds']:,.1f}",
    ]  # fmt: skip
    return _line(cells)


def _distance(distance: float | None) -> str:
    return "none" if distance is None else f"{distance:.3g}"


def _peers(record: dict[str, Any]) -> str:
    said = (
        f"Measured {_machine(record)}, with the same images and numbers of steps, in one process: robust "
        "accuracy or median distance, and seconds for all images, as the median of the runs. *Speedup* is "
        "with our fused network for both sides; it is faster than the network as published, and *vs "
        "unfused* is the speedup over the peer on the latter."
    )
    columns = "images | ours | peer's | runs | seconds | peer's | speedup | vs unfused"
    return _beside(record, "Comparison with other libraries", said, columns, _pair)


def _beside(record: dict[str, Any], title: str, said: str, columns: str, row: Row) -> str:
    """A table with a line for each pair, below its title and a sentence; `columns` follow the common ones."""
    names = f"network | attack | norm | peer | {columns}".split(" | ")
    pairs = ((network, pair) for network, found in record["networks"].items() for pair in found["pairs"])
    lines = (_line([*_who(network, pair), *row(pair)]) for network, pair in pairs)
    return "\n".join([f"### {title}", "", said, "", _line(names), _line(["---"] * len(names)), *lines])


def _pair(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        str(pair["images"]), *_outcomes(pair), str(pair["turns"]),
        f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{pair['speed_ratio']:g}",
        f"{pair['speed_ratio_plain']:g}",
    ]  # fmt: skip


def _who(network: str, pair: dict[str, Any]) -> list[str]:
    return [f"`{network}`", f"`{pair['attack']}`", NORMS[pair["norm"]], pair["peer"]]


def _reached(record: dict[str, Any]) -> str:
    said = (
        f"Measured {_machine(record)}, on our fused network: the fewest of "
        f"{', '.join(map(str, RUNGS))} steps with which each side reaches the smallest median distance that "
        "both reach with any of these, and the median seconds of three runs."
    )
    columns = "images | distance | steps | peer's | seconds | peer's | speedup"
    return _beside(record, "Steps and time to equal distance", said, columns, _rung)


def _rung(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        str(pair["images"]), f"{pair['distance']:.4f}", str(ours["steps"]), str(theirs["steps"]),
        f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{pair['speed_ratio']:g}",
    ]  # fmt: skip


def _many(record: dict[str, Any]) -> str:
    title = f"Robust accuracy on {record['samples']} images"
    said = f"Measured {_machine(record)}; other work ran at the same time, so times are not given."
    return _beside(record, title, said, "ours | peer's", _outcomes)


def _outcomes(pair: dict[str, Any]) -> list[str]:
    return [_outcome(pair["ours"]), _outcome(pair["theirs"])]


def _blind(record: dict[str, Any]) -> str:
    said = f"Measured {_machine(record)}: ours may use as many queries as the peer did."
    columns = "images | ours | peer's | queries | peer's | seconds | peer's"
    return _beside(record, "Score-based and decision-based attacks", said, columns, _asked)


def _asked(pair: dict[str, Any]) -> list[str]:
    ours, theirs = pair["ours"], pair["theirs"]
    return [
        str(pair["images"]), *_outcomes(pair), f"{ours['queries']:,}", f"{theirs['queries']:,}",
        f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}",
    ]  # fmt: skip


def _outcome(side: dict[str, Any]) -> str:
    if "robust_accuracy" in side:
        return f"{100 * side['robust_accuracy']:.1f} % robust"
    return f"{side['distance']:.4f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
