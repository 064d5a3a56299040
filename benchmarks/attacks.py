"""Every attack of the catalogue on two networks, and some of them beside their peers.

`python -m benchmarks.attacks` measures and leaves records, all at once or by part and network; with
`--write-docs` it measures nothing, but writes the tables of docs/attacks.md from the records there are.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import touchstone
from benchmarks import attack_tables, rivals, rivals_black_box
from benchmarks.record import kept, save
from touchstone.engine import Logits
from touchstone.evaluation import Model
from touchstone.methods import catalogue, find

NETWORKS = {"fashion-mnist-cnn": 0.03, "fashion-mnist-cnn-linf": 0.1}
"""The networks and the radius in L∞ that is neither too easy nor too hard on them."""

SURROGATES = {
    "fashion-mnist-cnn": ("fashion-mnist-cnn-noise-0.25", "fashion-mnist-cnn-linf"),
    "fashion-mnist-cnn-linf": ("fashion-mnist-cnn-noise-0.25",),
}
QUERIES = {"scores": 1_000, "decisions": 2_000}
FEWER = {"autoattack": 40, "cw": 10, "cw-linf": 10, "ead": 20, "boundary": 20, "hopskipjump": 20}
"""How many images the slow ones get; others get forty."""

ROWS = 64
TRIED = 100
"""So many images are left to those who choose an attack's settings; what is measured here are others."""


@dataclass(frozen=True)
class Trial:
    """A network, and images that it gets right with their labels."""

    name: str
    model: Model
    x: Tensor
    y: Tensor
    eps: float


def trial(name: str, count: int) -> Trial:
    """Images of the samples that the network gets right and that nobody's settings were chosen by."""
    model = loaded(name)
    x = touchstone.samples()
    y = torch.arange(len(x)) % 10
    [answer] = model.oracle.answer([Logits(x)])
    right = (answer.logits.argmax(1) == y).nonzero().flatten()[TRIED : TRIED + count]
    return Trial(name, model, x[right], y[right], NETWORKS[name])


def loaded(name: str) -> Model:
    """With a size of batch that does not depend on how busy the machine was when it was probed."""
    model = touchstone.load(name)
    return replace(model, oracle=replace(model.oracle, rows=ROWS))


def asked(name: str, eps: float) -> dict[str, Any]:
    """The parameters that are not an attack's defaults."""
    method = find(name, "attack")
    ball = {"norm": "linf", "eps": eps} if "eps" in method.model_fields else {}
    budget = QUERIES.get(method.info.access)
    return ball | ({"queries": budget} if budget and "queries" in method.model_fields else {})


def measured(name: str, on: Trial) -> dict[str, Any]:
    """What one attack comes to, and what it takes, image by image on average."""
    fields, count = asked(name, on.eps), min(FEWER.get(name, 40), len(on.x))
    crafted = find(name, "attack").info.access == "transfer"
    surrogates = [loaded(other) for other in SURROGATES[on.name]] if crafted else []
    began = time.perf_counter()
    found = touchstone.attack(
        on.model, on.x[:count], on.y[:count], name, quantize=False, surrogates=surrogates, **fields
    )
    seconds = time.perf_counter() - began
    return {
        "norm": norm_of(name),
        "parameters": fields,
        "images": count,
        "fooled": round(float(found.success.double().mean()), 4),
        "distance": typical(name, found.distance, found.success),
        "forward": round(found.queries.forward / count, 1),
        "backward": round(found.queries.backward / count, 1),
        "surrogate": round(found.queries.surrogate / count, 1),
        "seconds": round(seconds / count, 5),
    }


def norm_of(name: str) -> str:
    """The norm that the attack is measured in here."""
    method = find(name, "attack")
    return "linf" if "eps" in method.model_fields else getattr(method(), "norm", method.info.norms[0])


def typical(name: str, distance: Tensor, success: Tensor) -> float | None:
    """The median distance: of a fixed budget's successes, else of all images, failures infinitely far.

    None where that is infinite, or nothing was fooled.
    """
    if find(name, "attack").info.budget == "fixed":
        distance = distance[success]
    else:
        distance = distance.masked_fill(~success, torch.inf)
    middle = float(distance.quantile(0.5, interpolation="lower")) if len(distance) else torch.inf
    return round(middle, 5) if middle < torch.inf else None


def everything(on: Trial) -> dict[str, Any]:
    """All attacks on one network."""
    return {"attacks": {name: told(on.name, name, measured(name, on)) for name in catalogue("attack")}}


def beside(on: Trial) -> dict[str, Any]:
    """The pairs of `rivals` on one network."""
    rows = []
    for pair in rivals.PAIRS:
        rows.append(rivals.compared(pair, on.model, on.x, on.y, on.eps))
        told(on.name, f"{pair.attack} beside {pair.peer}", rows[-1])
    return {"pairs": rows}


def near(on: Trial) -> dict[str, Any]:
    """Those of them whose every step is a gradient, with fewer and fewer steps."""
    rows = []
    for pair in rivals.PAIRS:
        if pair.shorter is not None:
            rows.append(rivals.reached(pair, on.model, on.x, on.y))
            told(on.name, f"{pair.attack} as near as {pair.peer}", rows[-1])
    return {"pairs": rows}


def blind(on: Trial) -> dict[str, Any]:
    """The pairs of `rivals_black_box` on one network."""
    rows = []
    for pair in rivals_black_box.PAIRS:
        rows.append(rivals_black_box.compared(pair, on.model, on.name, on.x, on.y))
        told(on.name, f"{pair.attack} beside {pair.peer}", rows[-1])
    return {"pairs": rows}


PARTS = {
    attack_tables.TABLE: everything,
    attack_tables.BESIDE: beside,
    attack_tables.NEAR: near,
    attack_tables.BLIND: blind,
}


def add(part: str, network: str, count: int) -> None:
    """Measure one part on one network; what the record tells of others stays."""
    on = trial(network, count)
    touchstone.attack(on.model, on.x, on.y, "pgd", steps=2, quantize=False)  # to warm up
    networks = kept(part).get("networks", {})
    networks[network] = {"eps": on.eps, **PARTS[part](on)}
    save(part, {"samples": count, "networks": networks})


def brief() -> None:
    """All attacks and their peers on a few images; it prints, and leaves the records alone."""
    for network in NETWORKS:
        on = trial(network, 10)
        everything(on)
        beside(on)


def told(network: str, what: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row, after a line about it with the seconds since the start."""
    print(f"{time.perf_counter() - STARTED:6.1f} s  {network}  {what}: {row}", flush=True)
    return row


STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--images", type=int, default=80, help="how many images at most (80)")
    parser.add_argument("--part", choices=PARTS, action="append", help="one table alone (all)")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="one network alone (all)")
    parser.add_argument("--write-docs", action="store_true", help="write the tables of docs/attacks.md")
    arguments = parser.parse_args()
    if arguments.write_docs:
        attack_tables.write()
        return
    for part in arguments.part or PARTS:
        for network in arguments.network or NETWORKS:
            add(part, network, arguments.images)


if __name__ == "__main__":
    main()
