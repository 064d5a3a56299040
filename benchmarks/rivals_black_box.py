"""Attacks that see scores or decisions, ours and other libraries', with as many queries as the peer takes."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import touchstone
from benchmarks.library import FastModule
from benchmarks.rivals import Pair, PeerAttack, judge, time_run
from touchstone.evaluation import Model
from touchstone.methods import find


class CountingModule(nn.Module):
    """A network that counts the rows that it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.net(x)


def _square_pair(norm: str, queries: int) -> Pair:
    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack import square

        attack = square.SquareAttack(
            net, norm=norm.capitalize(), eps=eps, seed=0, device="cpu", n_queries=queries
        )
        return attack.perturb(x, y)

    return Pair("square", norm, "pyautoattack", run, {"queries": queries}, images=40)


def _foolbox(name: str, **options: Any) -> PeerAttack:
    def run(net: nn.Module, x: Tensor, y: Tensor, _: float) -> Tensor:
        import foolbox

        torch.manual_seed(0)
        np.random.seed(0)
        # Noise, its usual start, is all of one class to the robust network, and fails on that class.
        starts = x[[int((y != label).nonzero()[0]) for label in y]]
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        return attack(model, x, y, epsilons=None, starting_points=starts)[0]

    return run


def _art(name: str, *, probabilities: bool = False, **options: Any) -> PeerAttack:
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


def _foolbox_pair(attack: str, norm: str, name: str, **options: Any) -> Pair:
    return Pair(attack, norm, "foolbox", _foolbox(name, **options), images=20, minimal=True)


def _geoda_pair(norm: str, *, queries: int, images: int) -> Pair:
    """ART's bisection ends at 0.1 by default, farther than most images are from the boundary."""
    rival = _art("GeoDA", norm={"l2": 2, "linf": "inf"}[norm], max_iter=queries, bin_search_tol=0.001)
    return Pair("geoda", norm, "art", rival, images=images, minimal=True)


def _zoo_pair(steps: int, images: int) -> Pair:
    rival = _art(
        "ZooAttack",
        max_iter=steps,
        binary_search_steps=1,
        initial_const=1,
        use_resize=False,
        use_importance=False,
        abort_early=False,
    )
    return Pair("zoo", "l2", "art", rival, images=images, minimal=True)


PAIRS = [
    _square_pair("l2", 1_000),
    _square_pair("l1", 1_000),
    Pair("simba", "l2", "art", _art("SimBA", probabilities=True, attack="px", max_iter=784, epsilon=0.2),
         {"step_size": 0.2}, images=10, minimal=True),
    _zoo_pair(20, 5),
    _zoo_pair(80, 3),
    _foolbox_pair("boundary", "l2", "BoundaryAttack", steps=1_500),
    _foolbox_pair("hopskipjump", "l2", "HopSkipJumpAttack", constraint="l2", steps=12),
    _foolbox_pair("hopskipjump", "linf", "HopSkipJumpAttack", constraint="linf", steps=12),
    _geoda_pair("l2", queries=2_000, images=20),
    _geoda_pair("linf", queries=2_000, images=20),
]  # fmt: skip
RADII = {
    "fashion-mnist-cnn": {"l2": 0.5, "l1": 4.0},
    "fashion-mnist-cnn-linf": {"l2": 1.5, "l1": 10.0},
}


def compare(pair: Pair, model: Model, name: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The peer's figures, ours with the queries an image that the peer took, and both beside each other."""
    x, y, eps = x[: pair.images], y[: pair.images], RADII[name].get(pair.norm, 0.0)
    net = CountingModule(FastModule(model)).eval()
    images, seconds = time_run(lambda: pair.peer_attack(net, x.clone(), y.clone(), eps))
    theirs = {**judge(pair, net.net, x, y, images), "queries": round(net.rows / len(x)), "seconds": seconds}
    budget = max(theirs["queries"], 1)
    ball = {} if pair.minimal else {"eps": eps}
    normed = {"norm": pair.norm} if "norm" in find(pair.attack, "attack").model_fields else {}
    fields = {**normed, "queries": budget, **ball, **pair.parameters}
    found, seconds = time_run(lambda: touchstone.attack(model, x, y, pair.attack, quantize=False, **fields))
    ours = {
        **judge(pair, net.net, x, y, found.images),
        "queries": round(found.queries.forward / len(x)),
        "seconds": seconds,
    }
    for side in (ours, theirs):
        side["seconds"] = round(side["seconds"], 3)
    header = {"attack": pair.attack, "norm": pair.norm, "peer": pair.peer, "images": len(x)}
    return {**header, "ours": ours, "theirs": theirs}
