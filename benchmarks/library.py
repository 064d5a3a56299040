"""PGD beside Foolbox, torchattacks and ART: image-steps a second at equal steps, and the time until all
are fooled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import touchstone
from benchmarks.networks import CNN, LITE0, NormalizedNetwork, clothes, photos
from benchmarks.peers import PEERS, make_bare_loop
from benchmarks.record import save, time_interleaved
from touchstone.evaluation import Model

STEPS = 10


class FastModule(nn.Module):
    """Our own loaded network as a plain module: what a hand-written loop would be given at best."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.preprocessing = model.oracle.module, replace(model.oracle.preprocessing, spec=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.preprocessing.apply(x).contiguous(memory_format=torch.channels_last))


def attack_with_touchstone(model: Model, x: Tensor, y: Tensor, eps: float) -> Tensor:
    found = touchstone.attack(model, x, y, "pgd", eps=eps, steps=STEPS, early_stop=False, quantize=False)
    return found.images


def measure_together(name: str, x: Tensor, eps: float, *, rounds: int, repeat: int) -> dict[str, Any]:
    """All libraries in this process, taking turns."""
    net, model = NormalizedNetwork(name), touchstone.load(name)
    y = net(x).argmax(1).detach()
    runs = {peer: (lambda attack=make(net, eps, STEPS): attack(x, y)) for peer, make in PEERS.items()}
    limit = make_bare_loop(FastModule(model), eps, STEPS)
    runs |= {
        "bare loop, same network": lambda: limit(x, y),
        "touchstone": lambda: attack_with_touchstone(model, x, y, eps),
    }
    seconds = time_interleaved(runs, rounds=rounds, repeat=repeat)
    return _summarize_rates(seconds, len(x))


def _summarize_rates(seconds: dict[str, float], images: int) -> dict[str, Any]:
    best = min((peer for peer in PEERS), key=lambda peer: seconds[peer])
    figures: dict[str, Any] = {
        "image_steps_per_second": {name: round(images * STEPS / s, 1) for name, s in seconds.items()},
        "best_peer": best,
        "ratio_to_best_peer": round(seconds[best] / seconds["touchstone"], 2),
    }
    if "bare loop, same network" in seconds:
        figures["ratio_to_bare_loop"] = round(seconds["bare loop, same network"] / seconds["touchstone"], 2)
    return figures


def print_alone(who: str) -> None:
    """One of them in a process of its own, as shipped; prints its median seconds."""
    x, eps = photos(), 2 / 255
    net = NormalizedNetwork(LITE0)
    y = net(x).argmax(1).detach()
    if who == "touchstone":
        model = touchstone.load(LITE0)
        run = lambda: attack_with_touchstone(model, x, y, eps)  # noqa: E731
    else:
        attack = PEERS[who](net, eps, STEPS)
        run = lambda: attack(x, y)  # noqa: E731
    print(json.dumps(time_interleaved({who: run}, rounds=2)[who]))


def measure_apart() -> dict[str, Any]:
    """Each in a process of its own, three rounds of turns; medians."""
    seconds: dict[str, list[float]] = {who: [] for who in [*PEERS, "touchstone"]}
    for _ in range(3):
        for who, times in seconds.items():
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.library", who]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(json.loads(done.stdout.splitlines()[-1]))
    return _summarize_rates({who: sorted(times)[1] for who, times in seconds.items()}, 16)


def measure_until_fooled() -> dict[str, Any]:
    """16 photos at 4/255: our early stop beside Foolbox's fixed 40 steps."""
    x, eps, steps = photos(), 4 / 255, 40
    net, model = NormalizedNetwork(LITE0), touchstone.load(LITE0)
    y = net(x).argmax(1).detach()
    theirs = PEERS["foolbox"](net, eps, steps)

    def seconds(run: Any) -> tuple[float, int]:
        began = time.perf_counter()
        images = run()
        elapsed = time.perf_counter() - began
        return elapsed, int((net(images).argmax(1) != y).sum())

    pairs = [
        (
            seconds(lambda: theirs(x, y)),
            seconds(lambda: touchstone.attack(model, x, y, "pgd", eps=eps, steps=steps).images),
        )
        for _ in range(3)
    ]
    middle = sorted(pairs, key=lambda pair: pair[0][0] / pair[1][0])[1]
    return {
        "foolbox": {"seconds": round(middle[0][0], 2), "fooled": middle[0][1]},
        "touchstone": {"seconds": round(middle[1][0], 2), "fooled": middle[1][1]},
        "ratio": round(middle[0][0] / middle[1][0], 1),
    }


def main() -> None:
    save("pgd-lite0-one-process", measure_together(LITE0, photos(), 2 / 255, rounds=5, repeat=1))
    save("pgd-lite0-own-process", measure_apart())
    save("pgd-cnn-batch-1", measure_together(CNN, clothes(1), 0.03, rounds=9, repeat=10))
    save("pgd-cnn-batch-64", measure_together(CNN, clothes(64), 0.03, rounds=9, repeat=3))
    save("until-fooled", measure_until_fooled())


if __name__ == "__main__":
    print_alone(sys.argv[1]) if len(sys.argv) > 1 else main()
