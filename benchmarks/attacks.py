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
from benchmarks.record import read_record, save
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
IMAGES = {"autoattack": 40, "cw": 10, "cw-linf": 10, "ead": 20, "boundary": 20, "hopskipjump": 20}
"""How many images the slow ones get; others get forty."""

ROWS = 64
TUNING_IMAGES = 100
"""So many images are left to those who choose an attack's settings; what is measured here are others."""


@dataclass(frozen=True)
class Bench:
    """A network, and images that it gets right with their labels."""

    name: str
    model: Model
    x: Tensor
    y: Tensor
    eps: float


def load_bench(name: str, count: int) -> Bench:
    """Images of the samples that the network classifies correctly and that no settings were tuned on."""
    model = load_model(name)
    x = touchstone.samples()
    y = torch.arange(len(x)) % 10
    [answer] = model.oracle.answer([Logits(x)])
    right = (answer.logits.argmax(1) == y).nonzero().flatten()[TUNING_IMAGES : TUNING_IMAGES + count]
    return Bench(name, model, x[right], y[right], NETWORKS[name])


def load_model(name: str) -> Model:
    """With a size of batch that does not depend on how busy the machine was when it was probed."""
    model = touchstone.load(name)
    return replace(model, oracle=replace(model.oracle, rows=ROWS))


def build_parameters(name: str, eps: float) -> dict[str, Any]:
    """The parameters that are not an attack's defaults."""
    method = find(name, "attack")
    ball = {"norm": "linf", "eps": eps} if "eps" in method.model_fields else {}
    budget = QUERIES.get(method.info.access)
    return ball | ({"queries": budget} if budget and "queries" in method.model_fields else {})


def measure_attack(name: str, bench: Bench) -> dict[str, Any]:
    """What one attack comes to, and what it takes, image by image on average."""
    fields, count = build_parameters(name, bench.eps), min(IMAGES.get(name, 40), len(bench.x))
    crafted = find(name, "attack").info.access == "transfer"
    surrogates = [load_model(other) for other in SURROGATES[bench.name]] if crafted else []
    began = time.perf_counter()
    found = touchstone.attack(
        bench.model, bench.x[:count], bench.y[:count], name, quantize=False, surrogates=surrogates, **fields
    )
    seconds = time.perf_counter() - began
    return {
        "norm": norm_of(name),
        "parameters": fields,
        "images": count,
        "fooled": round(float(found.success.double().mean()), 4),
        "distance": median_distance(name, found.distance, found.success),
        "forward": round(found.queries.forward / count, 1),
        "backward": round(found.queries.backward / count, 1),
        "surrogate": round(found.queries.surrogate / count, 1),
        "seconds": round(seconds / count, 5),
    }


def norm_of(name: str) -> str:
    """The norm that the attack is measured in here."""
    method = find(name, "attack")
    return "linf" if "eps" in method.model_fields else getattr(method(), "norm", method.info.norms[0])


def median_distance(name: str, distance: Tensor, success: Tensor) -> float | None:
    """The median distance: of a fixed budget's successes, else of all images, failures infinitely far.

    None where that is infinite, or nothing was fooled.
    """
    if find(name, "attack").info.budget == "fixed":
        distance = distance[success]
    else:
        distance = distance.masked_fill(~success, torch.inf)
    middle = float(distance.quantile(0.5, interpolation="lower")) if len(distance) else torch.inf
    return round(middle, 5) if middle < torch.inf else None


def measure_all(bench: Bench) -> dict[str, Any]:
    """All attacks on one network."""
    return {
        "attacks": {
            name: print_row(bench.name, name, measure_attack(name, bench)) for name in catalogue("attack")
        }
    }


def measure_peers(bench: Bench) -> dict[str, Any]:
    """The pairs of `rivals` on one network."""
    rows = []
    for pair in rivals.PAIRS:
        rows.append(rivals.compare(pair, bench.model, bench.x, bench.y, bench.eps))
        print_row(bench.name, f"{pair.attack} beside {pair.peer}", rows[-1])
    return {"pairs": rows}


def measure_steps(bench: Bench) -> dict[str, Any]:
    """Those of them whose every step is a gradient, with fewer and fewer steps."""
    rows = []
    for pair in rivals.PAIRS:
        if pair.peer_with_steps is not None:
            rows.append(rivals.compare_steps(pair, bench.model, bench.x, bench.y))
            print_row(bench.name, f"{pair.attack} as near as {pair.peer}", rows[-1])
    return {"pairs": rows}


def measure_black_box(bench: Bench) -> dict[str, Any]:
    """The pairs of `rivals_black_box` on one network."""
    rows = []
    for pair in rivals_black_box.PAIRS:
        rows.append(rivals_black_box.compare(pair, bench.model, bench.name, bench.x, bench.y))
        print_row(bench.name, f"{pair.attack} beside {pair.peer}", rows[-1])
    return {"pairs": rows}


PARTS = {
    attack_tables.TABLE: measure_all,
    attack_tables.PEERS: measure_peers,
    attack_tables.EQUALLY_NEAR: measure_steps,
    attack_tables.BLACK_BOX: measure_black_box,
}


def record_part(part: str, network: str, count: int) -> None:
    """Measure one part on one network; what the record tells of others stays."""
    bench = load_bench(network, count)
    touchstone.attack(bench.model, bench.x, bench.y, "pgd", steps=2, quantize=False)  # to warm up
    networks = read_record(part).get("networks", {})
    networks[network] = {"eps": bench.eps, **PARTS[part](bench)}
    save(part, {"samples": count, "networks": networks})


def print_briefly() -> None:
    """All attacks and their peers on a few images; it prints, and leaves the records alone."""
    for network in NETWORKS:
        bench = load_bench(network, 10)
        measure_all(bench)
        measure_peers(bench)


def print_row(network: str, what: str, row: dict[str, Any]) -> dict[str, Any]:
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
            record_part(part, network, arguments.images)


if __name__ == "__main__":
    main()
