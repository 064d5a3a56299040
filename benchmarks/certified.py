"""`python -m benchmarks.certified`: draw certified accuracy against radius, as `benchmarks.zoo` recorded it.

The picture is plain SVG that follows the reader's light or dark mode.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

RECORD = "certified-accuracy.json"
PICTURE = Path(__file__).parents[1] / "docs/pictures/certified-accuracy.svg"

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 52, 62
MAX_RADIUS = 1.25  # the largest radius shown

TITLES = {
    "fashion-mnist-cnn": "clean training",
    "fashion-mnist-cnn-linf": "adversarial training, L∞ ε 0.1",
    "fashion-mnist-cnn-noise-0.25": "noise training, σ 0.25",
    "fashion-mnist-cnn-noise-0.50": "noise training, σ 0.5",
}

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round }
  .c0 { stroke: #6e7781; stroke-dasharray: 2 4 } .c1 { stroke: #bc4c00; stroke-dasharray: 8 4 }
  .c2 { stroke: #0969da } .c3 { stroke: #8250df }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .grid { stroke: #3d444d }
    .c0 { stroke: #9198a1 } .c1 { stroke: #f0883e } .c2 { stroke: #58a6ff } .c3 { stroke: #bc8cff }
  }
"""


def x_of(radius: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * radius / MAX_RADIUS, 1)


def y_of(share: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)


def draw_curve(radii: list[float], css: str) -> str:
    """The share of images whose certified radius is at least r: a stair that falls at each of the radii."""
    count = len(radii)
    falls = sorted(radius for radius in radii if radius > 0)
    path = f"M{x_of(0)},{y_of(len(falls) / count)}"
    for place, radius in enumerate(falls, start=1):
        path += f"H{x_of(radius)}V{y_of((len(falls) - place) / count)}"
    return f'<path class="curve {css}" d="{path}H{x_of(MAX_RADIUS)}"/>'


def draw_axes() -> list[str]:
    lines = []
    for fifth in range(6):
        y = y_of(fifth / 5)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{fifth * 20} %</text>')
    for quarter in range(6):
        x = x_of(quarter / 4)
        lines.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{quarter / 4:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(
        f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">L2 radius, pixels in [0,1]</text>'
    )
    turned = f'transform="rotate(-90 18 {(TOP + HEIGHT - BOTTOM) / 2})" text-anchor="middle"'
    lines.append(f'<text x="18" y="{(TOP + HEIGHT - BOTTOM) / 2}" {turned}>certified accuracy</text>')
    return lines


def draw_legend(models: dict[str, Any]) -> list[str]:
    x, lines = x_of(0.5), []
    for row, (name, one) in enumerate(models.items()):
        y = TOP + 22 + 21 * row
        css = f"c{list(TITLES).index(name)}"
        lines.append(f'<line class="curve {css}" x1="{x}" x2="{x + 30}" y1="{y}" y2="{y}"/>')
        smoothed = f"smoothed at σ {one['sigma']:g}"
        lines.append(f'<text x="{x + 38}" y="{y + 4}">{TITLES[name]}; {smoothed}</text>')
    return lines


def draw(record: dict[str, Any]) -> str:
    models = record["models"]
    title = "Certified accuracy on Fashion-MNIST by randomized smoothing"
    caption = (
        f"{title}: first {record['images']} test images, n = {record['n']:,}, alpha = {record['alpha']:g}."
    )
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{caption}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="26">{title}</text>',
        *draw_axes(),
        *(draw_curve(one["radii"], f"c{list(TITLES).index(name)}") for name, one in models.items()),
        *draw_legend(models),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def main() -> None:
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(draw(json.loads((RESULTS / RECORD).read_text())))
    print(f"drew {PICTURE.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
