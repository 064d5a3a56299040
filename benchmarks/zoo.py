"""`python -m benchmarks.zoo [MODEL …]`: measure the Fashion-MNIST models and write it into their cards.

Clean accuracy is of the network; certified accuracy is of the classifier smoothed at the model's σ.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import touchstone
from benchmarks import certified
from benchmarks.record import RESULTS, describe_machine
from touchstone.models import zoo
from touchstone.models.loader import load_plain
from touchstone.models.manifest import Accuracy
from touchstone.settings import Settings
from touchstone.training.datasets import Split, fashion_mnist
from touchstone.training.train import MEAN, STD, NormalizedNetwork, measure_accuracy

SIGMAS = {
    "fashion-mnist-cnn": 0.25,
    "fashion-mnist-cnn-linf": 0.25,
    "fashion-mnist-cnn-noise-0.25": 0.25,
    "fashion-mnist-cnn-noise-0.50": 0.5,
}
EPS, STEPS = 0.1, 40
N, ALPHA = 1_000, 0.001
ATTACKED, CERTIFIED = 1_000, 500
RADII = (0.25, 0.5)
PAGE = Path(__file__).parents[1] / "docs/models.md"


@dataclass(frozen=True)
class CertifiedRadii:
    """What certificates of the first images say: the radius of each, 0 where the answer is wrong or none."""

    sigma: float
    radii: tuple[float, ...]

    def accuracy(self, radius: float) -> float:
        """The share that is right, and certified to stay so within `radius`."""
        return sum(one > 0 and one >= radius for one in self.radii) / len(self.radii)


def first_images(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """The first images (count, 1, 28, 28) in [0,1] and their labels."""
    x = torch.from_numpy(split.images[:count].copy())[:, None] / 255
    return x, torch.from_numpy(split.labels[:count].copy()).long()


def measure_clean(name: str, test: Split) -> Accuracy:
    net = NormalizedNetwork(load_plain(zoo.find_manifest(name)), MEAN, STD)
    value = round(measure_accuracy(net, test), 4)
    return Accuracy(data=f"Fashion-MNIST test, {len(test):,} images", value=value, measured=True)


def measure_attacked(name: str, test: Split) -> Accuracy:
    x, y = first_images(test, ATTACKED)
    found = touchstone.attack(touchstone.load(name), x, y, "pgd", norm="linf", eps=EPS, steps=STEPS)
    note = f"under PGD: L∞ ε {EPS:g}, {STEPS} steps of 2.5 ε / {STEPS}, one random start, rounded to 8 bits"
    return Accuracy(
        data=f"Fashion-MNIST test, first {ATTACKED:,} images",
        value=round(1 - float(found.success.float().mean()), 4),
        measured=True,
        note=note,
    )


def measure_certified(name: str, test: Split) -> CertifiedRadii:
    x, y = first_images(test, CERTIFIED)
    sigma = SIGMAS[name]
    radii: list[float] = []
    for rows in torch.arange(CERTIFIED).split(25):
        proven = touchstone.certify(
            touchstone.load(name), x[rows], sigma=sigma, n=N, alpha=ALPHA, rule="group_sequential"
        )
        right = (proven.label == y[rows]) & ~proven.abstained
        radii += (proven.radius * right).tolist()
    return CertifiedRadii(sigma, tuple(round(radius, 5) for radius in radii))


def certified_accuracy(found: CertifiedRadii, radius: float) -> Accuracy:
    note = (
        f"certified at L2 radius {radius:g}: smoothed at σ {found.sigma:g}, n {N:,} at most,"
        f" group_sequential, alpha {ALPHA:g} an image"
    )
    data = f"Fashion-MNIST test, first {len(found.radii)} images"
    return Accuracy(data=data, value=round(found.accuracy(radius), 4), measured=True, note=note)


def write_manifest(name: str, accuracy: tuple[Accuracy, ...]) -> None:
    manifest = zoo.find_manifest(name).model_copy(update={"accuracy": accuracy})
    (zoo.MANIFESTS_FOLDER / f"{name}.json").write_text(manifest.model_dump_json(indent=2) + "\n")


def accuracy_table() -> str:
    """The cards' figures in Markdown."""
    lines = ["| model | clean | under PGD | " + " | ".join(f"certified at {r:g}" for r in RADII) + " |"]
    lines.append("| --- |" + " ---: |" * (2 + len(RADII)))
    for name in SIGMAS:
        figures = " | ".join(f"{100 * one.value:.1f} %" for one in zoo.manifests()[name].accuracy)
        lines.append(f"| `{name}` | {figures} |")
    return "\n".join(lines)


def write_table() -> None:
    zoo.manifests.cache_clear()  # the cards have changed on disk
    before, rest = PAGE.read_text().split("<!-- figures -->\n")
    after = rest.split("<!-- end of figures -->\n")[1]
    PAGE.write_text(f"{before}<!-- figures -->\n{accuracy_table()}\n<!-- end of figures -->\n{after}")


def record_radii(name: str, found: CertifiedRadii) -> None:
    """Put the radii of one model into the record that the picture is drawn from."""
    path = RESULTS / certified.RECORD
    known: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() else {}
    known[name] = {"sigma": found.sigma, "radii": found.radii}
    ordered = {name: known[name] for name in SIGMAS if name in known}
    record = {"machine": describe_machine(), "n": N, "alpha": ALPHA, "images": CERTIFIED, "models": ordered}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record) + "\n")


def main(names: list[str]) -> None:
    _, test = fashion_mnist(Path(Settings().home) / "data")
    for name in names or list(SIGMAS):
        found = measure_certified(name, test)
        accuracy = (
            measure_clean(name, test),
            measure_attacked(name, test),
            *(certified_accuracy(found, r) for r in RADII),
        )
        write_manifest(name, accuracy)
        record_radii(name, found)
        print(name, *(f"{one.value:.1%}" for one in accuracy))
    write_table()
    certified.main()


if __name__ == "__main__":
    main(sys.argv[1:])
