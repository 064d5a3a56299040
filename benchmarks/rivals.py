"""Our attacks and other libraries' on the same images and the same module, with equal parameters."""

from __future__ import annotations

import logging
import sys
import time
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import touchstone
from benchmarks.library import Fast
from touchstone.engine import NORMS, Model

Rival = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""(network, images, labels, eps) -> the images that were found."""


@dataclass(frozen=True)
class Pair:
    """An attack of ours and a peer's, and how many images they get at most."""

    attack: str
    norm: str
    peer: str
    rival: Rival
    parameters: dict[str, Any] = field(default_factory=dict)
    images: int = 1_000
    minimal: bool = False


def _authors(name: str, **options: Any) -> Rival:
    """A part of AutoAttack, as its authors wrote it for torch; in L∞."""

    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack import autopgd_base, square

        makers = {
            "apgd": autopgd_base.APGDAttack,
            "apgdt": autopgd_base.APGDAttack_targeted,
            "square": square.SquareAttack,
        }
        if name != "square":
            options["logger"] = logging.getLogger("peer")
        return makers[name](net, norm="Linf", eps=eps, seed=0, device="cpu", **options).perturb(x, y)

    return run


def _autoattack(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    from pyautoattack import AutoAttack

    return AutoAttack(net, norm="Linf", eps=eps, seed=0, device="cpu").run_standard_evaluation(x, y)[0]


def _adv_lib(name: str, **options: Any) -> Rival:
    def run(net: nn.Module, x: Tensor, y: Tensor, _: float) -> Tensor:
        return getattr(_adv_lib_attacks(), name)(net, x, y, **options).detach()

    return run


def _adv_lib_attacks() -> Any:
    """Its logger and its data sets are not needed; what they import is not installed."""
    for name in ("torchvision", "torchvision.models", "torchvision.transforms", "visdom"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["visdom"].Visdom = object  # type: ignore[attr-defined]
    from adv_lib import attacks

    return attacks


def _foolbox(name: str, **options: Any) -> Rival:
    def run(net: nn.Module, x: Tensor, y: Tensor, _: float) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        return getattr(foolbox.attacks, name)(**options)(model, x, y, epsilons=None)[0]

    return run


def _minimal(
    attack: str, norm: str, ours: dict[str, Any], *rivals: tuple[str, Rival], images: int = 1_000
) -> list[Pair]:
    return [Pair(attack, norm, peer, rival, ours, images, minimal=True) for peer, rival in rivals]


STEPS = {"steps": 100}
SEARCH = {"binary_search_steps": 6}
FAST = {"steps": 100, "learning_rate": 0.1, **SEARCH}
"""The papers' rate of 0.01 needs a thousand steps and more to get anywhere on the robust network."""

PAIRS = [
    Pair("apgd", "linf", "pyautoattack", _authors("apgd", n_iter=100, n_restarts=1), STEPS),
    Pair("apgdt", "linf", "pyautoattack", _authors("apgdt", n_iter=100, n_restarts=1), STEPS),
    Pair("square", "linf", "pyautoattack", _authors("square", n_queries=1_000), {"queries": 1_000}),
    Pair("autoattack", "linf", "pyautoattack", _autoattack, images=40),
    *_minimal(
        "ddn", "l2", STEPS,
        ("adv-lib", _adv_lib("ddn", levels=None, **STEPS)), ("foolbox", _foolbox("DDNAttack", **STEPS)),
    ),
    *_minimal(
        "fmn", "linf", STEPS,
        ("adv-lib", _adv_lib("fmn", norm=float("inf"), **STEPS)),
        ("foolbox", _foolbox("LInfFMNAttack", **STEPS)),
    ),
    *_minimal(
        "fmn", "l2", STEPS,
        ("adv-lib", _adv_lib("fmn", norm=2, **STEPS)), ("foolbox", _foolbox("L2FMNAttack", **STEPS)),
    ),
    *_minimal(
        "deepfool", "l2", {"steps": 50},
        ("adv-lib", _adv_lib("df", norm=2, steps=50)),
        ("foolbox", _foolbox("L2DeepFoolAttack", steps=50, candidates=10)),
    ),
    *_minimal(
        "cw", "l2", FAST,
        ("adv-lib", _adv_lib("carlini_wagner_l2", max_iterations=100, learning_rate=0.1, **SEARCH)),
        ("foolbox", _foolbox("L2CarliniWagnerAttack", steps=100, stepsize=0.1, **SEARCH)),
        images=20,
    ),
]  # fmt: skip


def compared(pair: Pair, model: Model, x: Tensor, y: Tensor, eps: float) -> dict[str, Any]:
    """Both sides' figures, and what they come to beside each other."""
    x, y = x[: pair.images], y[: pair.images]
    net = Fast(model).eval()
    ball = {} if pair.minimal else {"eps": eps}

    def ours() -> Tensor:
        fields = {"norm": pair.norm, **ball, **pair.parameters}
        found = touchstone.attack(model, x, y, pair.attack, quantize=False, **fields)
        return torch.as_tensor(found.images)

    def theirs() -> Tensor:
        return pair.rival(net, x.clone(), y.clone(), eps)

    sides = {}
    for side, run in (("ours", ours), ("theirs", theirs)):
        images, seconds = _timed(run)
        sides[side] = {**_judged(pair, net, x, y, images), "seconds": round(seconds, 3)}
    told = {"attack": pair.attack, "norm": pair.norm, "peer": pair.peer, "parameters": pair.parameters}
    return {**told, "images": len(x), **sides, **_beside(sides["ours"], sides["theirs"])}


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        images = run()
        return images, time.perf_counter() - began


def _judged(pair: Pair, net: nn.Module, x: Tensor, y: Tensor, images: Tensor) -> dict[str, float]:
    """By the network itself, whatever the attack said of its success; a failure is as far as can be."""
    with torch.no_grad():
        fooled = net(images).argmax(1) != y
    if not pair.minimal:
        return {"robust_accuracy": round(float((~fooled).double().mean()), 4)}
    size = NORMS[pair.norm].size
    farthest = size(torch.maximum(x, 1 - x).double())
    distance = torch.where(fooled, size((images - x).double()), farthest)
    return {"distance": round(float(distance.median()), 5)}


def _beside(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times as fast, and how much nearer (below 1) or less robust (below 0) than the peer finds."""
    speed = {"speed_ratio": round(theirs["seconds"] / ours["seconds"], 2)}
    if "distance" in ours:
        return {**speed, "distance_ratio": round(ours["distance"] / theirs["distance"], 4)}
    return {**speed, "robust_difference": round(ours["robust_accuracy"] - theirs["robust_accuracy"], 4)}
