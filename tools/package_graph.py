"""The packages of the project in their order, the graph of their imports, and its picture.

`python -m tools.package_graph` draws docs/pictures/packages.svg anew.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/pictures/packages.svg"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("touchstone.errors", "touchstone.logs", "touchstone.memory", "touchstone.digests", "touchstone.lazy"),
    (
        "touchstone.fields",
        "touchstone.images",
        "touchstone.archives",
        "touchstone.json_limits",
        "touchstone.settings",
        "touchstone.periodic",
        "touchstone.net",
    ),
    ("touchstone.models",),
    ("touchstone.engine",),
    ("touchstone.methods",),
    ("touchstone.ledger",),
    ("touchstone.storage",),
    ("touchstone.training", "touchstone.supervisor", "touchstone.certificates", "touchstone.check"),
    ("touchstone.sandbox", "touchstone.datasets", "touchstone.backup"),
    ("touchstone.registration",),
    ("touchstone.evaluation",),
    ("touchstone.attacks",),
    ("touchstone",),
    ("service.problems", "service.schemas", "service.pagination"),
    ("service.state",),
    ("service.auth", "service.headers", "service.downloads"),
    ("service.http", "service.dependencies"),
    ("service.submissions",),
    ("service.openapi",),
    ("service.routers",),
    ("service.inference",),
    ("service",),
    ("workers",),
    ("touchstone.cli", "touchstone.__main__"),
)
"""From the ground up: a module imports only what stands in its own layer's packages or below."""

Graph = Mapping[str, frozenset[str]]


def find_layer(module: str) -> int:
    """The index of a module's layer, by the longest name in `LAYERS` that it lies in."""
    found = [
        (len(name), index)
        for index, layer in enumerate(LAYERS)
        for name in layer
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1]


def find_package(module: str) -> str:
    """The name in `LAYERS` that a module lies in."""
    names = (name for layer in LAYERS for name in layer if module == name or module.startswith(f"{name}."))
    return max(names, key=len)


def read_graph(root: Path = ROOT) -> Graph:
    """What each module of the three packages imports of them: for types alone or not."""
    files = {
        _module_name(path.relative_to(root)): path
        for package in ("touchstone", "service", "workers")
        for path in sorted((root / package).rglob("*.py"))
    }
    return {
        module: frozenset(_imports(path.read_text("utf-8"), files)) - {module}
        for module, path in files.items()
    }


def _module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imports(text: str, modules: Collection[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            names = {name if name in modules else node.module for name in inner}
            yield from (name for name in names if name in modules)


def find_upward_imports(graph: Graph) -> list[str]:
    """Imports of what stands above the importing module."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if find_layer(other) > find_layer(module)
    ]


def find_circle(graph: Graph) -> list[str]:
    """Modules that import one another in a circle, if there are any."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        if circle := _follow(graph, start, path, done):
            return circle
    return []


def _follow(graph: Graph, module: str, path: list[str], done: set[str]) -> list[str]:
    if module in path:
        return [*path[path.index(module) :], module]
    if module in done:
        return []
    path.append(module)
    for other in sorted(graph[module]):
        if circle := _follow(graph, other, path, done):
            return circle
    done.add(path.pop())
    return []


def join_packages(graph: Graph) -> dict[str, set[str]]:
    """The same graph between packages: those of `LAYERS`, with the inside of `service` as one."""
    joined: dict[str, set[str]] = {}
    for module, others in graph.items():
        own = _shown(module)
        joined.setdefault(own, set()).update(_shown(other) for other in others)
    return {own: others - {own} for own, others in joined.items()}


GROUND = "errors, logs, memory, digests, lazy"
FIELDS = "fields, images, settings, periodic"


def _shown(module: str) -> str:
    package = find_package(module)
    if package in LAYERS[0]:
        return GROUND
    if package in LAYERS[1] and package != "touchstone.net":
        return FIELDS
    if package.startswith("service"):
        return "service"
    if package in ("touchstone.cli", "touchstone.__main__"):
        return "cli"
    return package.removeprefix("touchstone.") if package != "touchstone" else "touchstone/__init__"


def reduce_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without edges that follow from others: what a package imports through another is not drawn twice."""
    reach: dict[str, set[str]] = {}

    def below(node: str) -> set[str]:
        if node not in reach:
            reach[node] = set().union(*({other} | below(other) for other in graph.get(node, ())))
        return reach[node]

    return {
        node: {one for one in others if not any(one in below(other) for other in others if other != one)}
        for node, others in graph.items()
    }


Point = tuple[float, float]

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 34, 26, 40, 16


def draw_graph(graph: Graph) -> str:
    """The picture as SVG: a row for each distance from the ground, an arrow from each package to those it
    imports.
    """
    edges = reduce_graph(join_packages(graph))
    rows = _rows(edges)
    width = 2 * MARGIN + max(_row_width(row) for row in rows)
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    places = _places(rows, width)
    arrows = [_arrow(places[one], places[other]) for one in sorted(edges) for other in sorted(edges[one])]
    boxes = [_box(name, *places[name]) for name in sorted(places)]
    return "\n".join((_HEAD.format(width=width, height=height), *arrows, *boxes, "</svg>", ""))


def _row_width(row: Collection[str]) -> int:
    return len(row) * (WIDTH + GAP_X) - GAP_X


def _places(rows: list[list[str]], width: int) -> dict[str, Point]:
    """Where each box begins: rows from the ground up, each in the middle."""
    return {
        name: ((width - _row_width(row)) / 2 + x * (WIDTH + GAP_X), MARGIN + y * (HEIGHT + GAP_Y))
        for y, row in enumerate(reversed(rows))
        for x, name in enumerate(row)
    }


def _rows(edges: Mapping[str, set[str]]) -> list[list[str]]:
    depth: dict[str, int] = {}

    def measure(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((measure(other) for other in edges.get(node, ())), default=-1)
        return depth[node]

    rows: list[list[str]] = [[] for _ in range(1 + max(measure(node) for node in edges))]
    for node in sorted(edges):
        rows[depth[node]].append(node)
    return rows


def _arrow(start: Point, end: Point) -> str:
    (x0, y0), (x1, y1) = start, end
    x0, x1, y0 = x0 + WIDTH / 2, x1 + WIDTH / 2, y0 + HEIGHT
    bend = (y1 - y0) / 2
    curve = f"M{x0:g} {y0:g} C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1 - 3:g}"
    return f'<path class="edge" d="{curve}"/>'


def _box(name: str, x: float, y: float) -> str:
    lines = _wrap(name)
    size = "name" if len(lines) == 1 else "small"
    first = y + HEIGHT / 2 + 5 - 7 * (len(lines) - 1)
    texts = (
        f'<text class="{size}" x="{x + WIDTH / 2:g}" y="{first + 14 * row:g}">{escape(line)}</text>'
        for row, line in enumerate(lines)
    )
    return f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>{"".join(texts)}'


def _wrap(name: str) -> list[str]:
    words = name.split(", ")
    half = (len(words) + 1) // 2
    return [name] if len(words) == 1 else [", ".join(words[:half]) + ",", ", ".join(words[half:])]


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" \
viewBox="0 0 {width:g} {height:g}" role="img" aria-label="Packages and their imports">
<style>
  rect {{ fill: #fff; stroke: #6b7280; }}
  text {{ font: 14px system-ui, sans-serif; fill: #111827; text-anchor: middle; }}
  text.small {{ font-size: 11px; }}
  .edge {{ fill: none; stroke: #9ca3af; stroke-width: 1.2; marker-end: url(#tip); }}
</style>
<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">\
<path d="M0 0 L6 3 L0 6 z" fill="#9ca3af"/></marker></defs>
<rect x="0" y="0" width="{width:g}" height="{height:g}" style="stroke: none"/>"""


def main() -> None:
    """Draw the picture anew."""
    PICTURE.write_text(draw_graph(read_graph()), "utf-8")


if __name__ == "__main__":
    main()
