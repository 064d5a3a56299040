"""Our attacks and other libraries' on the same images and the same module, with equal parameters."""

from __future__ import annotations

import logging
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import touchstone
from benchmarks.attack_tables import STEP_COUNTS
from benchmarks.library import FastModule
from benchmarks.networks import NormalizedNetwork
from touchstone.engine import NORMS
from touchstone.evaluation import Model

T = TypeVar("T")
PeerAttack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""(network, images, labels, eps) -> the images that were found."""

MAX_REPEATED_SECONDS = 15.0
"""Seconds of all sides together that can be afforded three times."""
DISTANCE_TOLERANCE = 1.001
"""A distance is reached where the median is less than this part of it."""


@dataclass(frozen=True)
class Pair:
    """An attack of ours and a peer's, and how many images they get at most."""

    attack: str
    norm: str
    peer: str
    peer_attack: PeerAttack
    parameters: dict[str, Any] = field(default_factory=dict)
    images: int = 40
    minimal: bool = False
    peer_with_steps: Callable[[int], PeerAttack] | None = None
    """The rival with as many steps, where both sides take them one gradient each."""


def _authors_attack(name: str, **options: Any) -> PeerAttack:
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


def _adv_lib(name: str, **options: Any) -> PeerAttack:
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


def _foolbox(name: str, **options: Any) -> PeerAttack:
    def run(net: nn.Module, x: Tensor, y: Tensor, _: float) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        return getattr(foolbox.attacks, name)(**options)(model, x, y, epsilons=None)[0]

    return run


def _minimal_pairs(
    attack: str, norm: str, ours: dict[str, Any], *rivals: tuple[str, PeerAttack], images: int = 40
) -> list[Pair]:
    return [Pair(attack, norm, peer, rival, ours, images, minimal=True) for peer, rival in rivals]


def _stepwise_pairs(attack: str, norm: str, *rivals: tuple[str, Callable[[int], PeerAttack]]) -> list[Pair]:
    """Attacks whose every step is a gradient on both sides."""
    return [
        Pair(attack, norm, peer, rival(STEPS["steps"]), STEPS, minimal=True, peer_with_steps=rival)
        for peer, rival in rivals
    ]


STEPS = {"steps": 100}
SEARCH = {"binary_search_steps": 6}
FAST_CW = {"steps": 100, "learning_rate": 0.1, **SEARCH}
"""The papers' rate of 0.01 needs a thousand steps and more to get anywhere on the robust network."""

PAIRS = [
    Pair("apgd", "linf", "pyautoattack", _authors_attack("apgd", n_iter=100, n_restarts=1), STEPS),
    Pair("apgdt", "linf", "pyautoattack", _authors_attack("apgdt", n_iter=100, n_restarts=1), STEPS),
    Pair("square", "linf", "pyautoattack", _authors_attack("square", n_queries=1_000), {"queries": 1_000}),
    Pair("autoattack", "linf", "pyautoattack", _autoattack),
    *_stepwise_pairs(
        "ddn", "l2",
        ("adv-lib", lambda steps: _adv_lib("ddn", levels=None, steps=steps)),
        ("foolbox", lambda steps: _foolbox("DDNAttack", steps=steps)),
    ),
    *_stepwise_pairs(
        "fmn", "linf",
        ("adv-lib", lambda steps: _adv_lib("fmn", norm=float("inf"), steps=steps)),
        ("foolbox", lambda steps: _foolbox("LInfFMNAttack", steps=steps)),
    ),
    *_stepwise_pairs(
        "fmn", "l2",
        ("adv-lib", lambda steps: _adv_lib("fmn", norm=2, steps=steps)),
        ("foolbox", lambda steps: _foolbox("L2FMNAttack", steps=steps)),
    ),
    *_stepwise_pairs("fmn", "l1", ("adv-lib", lambda steps: _adv_lib("fmn", norm=1, steps=steps))),
    *_stepwise_pairs("fmn", "l0", ("adv-lib", lambda steps: _adv_lib("fmn", norm=0, steps=steps))),
    *_minimal_pairs(
        "deepfool", "l2", {"steps": 50},
        ("adv-lib", _adv_lib("df", norm=2, steps=50)),
        ("foolbox", _foolbox("L2DeepFoolAttack", steps=50, candidates=10)),
        images=80,
    ),
    *_minimal_pairs(
        "cw", "l2", FAST_CW,
        ("adv-lib", _adv_lib("carlini_wagner_l2", max_iterations=100, learning_rate=0.1, **SEARCH)),
        ("foolbox", _foolbox("L2CarliniWagnerAttack", steps=100, stepsize=0.1, **SEARCH)),
        images=20,
    ),
    *_minimal_pairs(
        "cw-linf", "linf", {"steps": 50, "learning_rate": 0.1, "smallest": 1 / 255},
        ("adv-lib", _adv_lib("carlini_wagner_linf", max_iterations=50, learning_rate=0.1)),
        images=16,
    ),
]  # fmt: skip


def compare(pair: Pair, model: Model, x: Tensor, y: Tensor, eps: float) -> dict[str, Any]:
    """Both sides' figures, and what they come to beside each other; the peer is given our frozen network,
    and after that the network as its publisher ships it.
    """
    x, y = x[: pair.images], y[: pair.images]
    net, plain = FastModule(model).eval(), NormalizedNetwork(_model_name(model))
    runs = {
        "ours": lambda: _run_ours(pair, model, x, y, eps),
        "theirs": lambda: pair.peer_attack(net, x.clone(), y.clone(), eps),
        "theirs_plain": lambda: pair.peer_attack(plain, x.clone(), y.clone(), eps),
    }
    images, seconds, turns = time_in_turn(runs)
    sides = {
        side: {**judge(pair, net, x, y, images[side]), "seconds": round(seconds[side], 3)} for side in runs
    }
    header = {"attack": pair.attack, "norm": pair.norm, "peer": pair.peer, "parameters": pair.parameters}
    return {**header, "images": len(x), **sides, **_compare_sides(**sides), "turns": turns}


def _model_name(model: Model) -> str:
    if model.manifest is None:
        raise ValueError("only networks of the zoo are compared")
    return model.manifest.id


def _run_ours(pair: Pair, model: Model, x: Tensor, y: Tensor, eps: float, **fields: Any) -> Tensor:
    ball = {} if pair.minimal else {"eps": eps}
    asked = {"norm": pair.norm, **ball, **pair.parameters, **fields}
    return torch.as_tensor(touchstone.attack(model, x, y, pair.attack, quantize=False, **asked).images)


def compare_steps(pair: Pair, model: Model, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The fewest steps with which each side comes as near as both do at their best, and their seconds."""
    x, y = x[: pair.images], y[: pair.images]
    shorter, net = pair.peer_with_steps, FastModule(model).eval()
    if shorter is None:
        raise ValueError("the rival takes a fixed number of steps")
    sides: dict[str, Callable[[int], Tensor]] = {
        "ours": lambda steps: _run_ours(pair, model, x, y, 0, steps=steps),
        "theirs": lambda steps: shorter(steps)(net, x.clone(), y.clone(), 0),
    }
    rungs = {
        name: {
            steps: judge(pair, net, x, y, time_run(partial(run, steps))[0])["distance"]
            for steps in STEP_COUNTS
        }
        for name, run in sides.items()
    }
    distance = max(min(rung.values()) for rung in rungs.values())
    fewest = {
        name: next(steps for steps in STEP_COUNTS if rung[steps] <= DISTANCE_TOLERANCE * distance)
        for name, rung in rungs.items()
    }
    _, seconds, turns = time_in_turn({name: partial(run, fewest[name]) for name, run in sides.items()})
    header = {"attack": pair.attack, "norm": pair.norm, "peer": pair.peer, "images": len(x), "turns": turns}
    found = {name: {"steps": fewest[name], "seconds": round(seconds[name], 3)} for name in sides}
    return {
        **header, "distance": distance, **found,
        "speed_ratio": round(seconds["theirs"] / seconds["ours"], 2),
    }  # fmt: skip


def time_in_turn(runs: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, float], int]:
    """What each run returns, its median seconds, and of how many turns: three, or one where they are long."""
    found, seconds = zip(*map(time_run, runs.values()), strict=True)
    turns = [seconds]
    if sum(seconds) < MAX_REPEATED_SECONDS:
        turns += [[time_run(run)[1] for run in runs.values()] for _ in range(2)]
    median = map(statistics.median, zip(*turns, strict=True))
    return dict(zip(runs, found, strict=True)), dict(zip(runs, median, strict=True)), len(turns)


def time_run(run: Callable[[], T]) -> tuple[T, float]:
    """What a run returns, and its seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        images = run()
        return images, time.perf_counter() - began


def judge(pair: Pair, net: nn.Module, x: Tensor, y: Tensor, images: Tensor) -> dict[str, float]:
    """By the network itself, whatever the attack reported; a failure counts as the largest distance."""
    with torch.no_grad():
        fooled = net(images).argmax(1) != y
    if not pair.minimal:
        return {"robust_accuracy": round(float((~fooled).double().mean()), 4)}
    size = NORMS[pair.norm].size
    farthest = size(torch.maximum(x, 1 - x).double())
    distance = torch.where(fooled, size((images - x).double()), farthest)
    return {"distance": round(float(distance.median()), 5)}


def _compare_sides(
    ours: dict[str, Any], theirs: dict[str, Any], theirs_plain: dict[str, Any]
) -> dict[str, float]:
    """How many times as fast, and how much nearer (below 1) or less robust (below 0) than the peer finds."""
    speed = {
        "speed_ratio": round(theirs["seconds"] / ours["seconds"], 2),
        "speed_ratio_plain": round(theirs_plain["seconds"] / ours["seconds"], 2),
    }
    if "distance" in ours:
        return {**speed, "distance_ratio": round(ours["distance"] / theirs["distance"], 4)}
    return {**speed, "robust_difference": round(ours["robust_accuracy"] - theirs["robust_accuracy"], 4)}
