"""Attacks that see scores or decisions, ours and other libraries', with as many queries as the peer takes."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import touchstone
from benchmarks.library import Fast
from benchmarks.rivals import Pair, Rival, judged, timed
from touchstone.engine import Model
from touchstone.methods import find


class Counting(nn.Module):
    """A network that counts the rows that it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.net(x)


def _square_l2(queries: int) -> Rival:
    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack import square

        attack = square.SquareAttack(net, norm="L2", eps=eps, seed=0, device="cpu", n_queries=queries)
        return attack.perturb(x, y)

    return run


def _foolbox(name: str, **options: Any) -> Rival:
    def run(net: nn.Module, x: Tensor, y: Tensor, _: float) -> Tensor:
        import foolbox

        torch.manual_seed(0)
        np.random.seed(0)
        start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
        attack = getattr(foolbox.attacks, name)(init_attack=start, **options)
        return attack(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[0]

    return run


def _art(name: str, *, probabilities: bool = False, **options: Any) -> Rival:
    def run(net: nn.Module, x: Tensor, y: Tensor, _: float) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(0)
        vars(np).setdefault("mat", np.asmatrix)  # GeoDA asks for it; NumPy 2 has it no more
        shown = nn.Sequential(net, nn.Softmax(1)) if probabilities else net
        classes = int(y.max()) + 1 if int(y.max()) >= 10 else 10
        classifier = PyTorchClassifier(
            shown, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0, 1), device_type="cpu"
        )
        attack = getattr(evasion, name)(classifier, verbose=False, **options)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # GeoDA leaves a file
            return torch.from_numpy(attack.generate(x.numpy(), np.eye(classes)[y.numpy()])).float()

    return run


PAIRS = [
    Pair("square", "l2", "pyautoattack", _square_l2(1_000), images=40),
    Pair("simba", "l2", "art", _art("SimBA", probabilities=True, attack="px", max_iter=784, epsilon=0.2),
         {"step_size": 0.2}, images=10, minimal=True),
    Pair("zoo", "l2", "art", _art("ZooAttack", max_iter=60, binary_search_steps=1, initial_const=1,
         use_resize=False, use_importance=False, abort_early=False), images=5, minimal=True),
    Pair("boundary", "l2", "foolbox", _foolbox("BoundaryAttack", steps=1_500), images=20, minimal=True),
    Pair("hopskipjump", "l2", "foolbox", _foolbox("HopSkipJumpAttack", steps=12), images=20, minimal=True),
    Pair("geoda", "l2", "art", _art("GeoDA", max_iter=2_000, sub_dim=28, bin_search_tol=0.001),
         images=10, minimal=True),
]  # fmt: skip
RADIUS = {"fashion-mnist-cnn": 0.5, "fashion-mnist-cnn-linf": 1.5}
"""In L2."""


def compared(pair: Pair, model: Model, name: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The peer's figures, ours with the queries an image that the peer took, and both beside each other."""
    x, y, eps = x[: pair.images], y[: pair.images], RADIUS[name]
    net = Counting(Fast(model)).eval()
    images, seconds = timed(lambda: pair.rival(net, x.clone(), y.clone(), eps))
    theirs = {**judged(pair, net.net, x, y, images), "queries": round(net.rows / len(x)), "seconds": seconds}
    budget = max(theirs["queries"], 1)
    ball = {} if pair.minimal else {"eps": eps}
    normed = {"norm": pair.norm} if "norm" in find(pair.attack, "attack").model_fields else {}
    fields = {**normed, "queries": budget, **ball, **pair.parameters}
    found, seconds = timed(lambda: touchstone.attack(model, x, y, pair.attack, quantize=False, **fields))
    ours = {
        **judged(pair, net.net, x, y, found.images),
        "queries": round(found.queries.forward / len(x)),
        "seconds": seconds,
    }
    for side in (ours, theirs):
        side["seconds"] = round(side["seconds"], 3)
    told = {"attack": pair.attack, "norm": pair.norm, "peer": pair.peer, "images": len(x)}
    return {**told, "ours": ours, "theirs": theirs}
