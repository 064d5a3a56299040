"""PGD beside torchattacks and Foolbox, and one-image plans beside one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import touchstone
from benchmarks.gpu.report import Note
from benchmarks.gpu.sizes import EPS, Setup
from benchmarks.networks import CNN, NormalizedNetwork
from benchmarks.peers import make_foolbox, make_torchattacks
from touchstone import evaluation
from touchstone.engine.plans import expand_loops
from touchstone.evaluation import Model
from touchstone.methods import Attack, find

COUNTED_STEPS = 3, 6
"""Steps of the two runs whose difference is counted: few, since counting is slow."""

aten = torch.ops.aten


def measure_peers(setup: Setup, note: Note) -> None:
    """PGD in L∞: equal steps, radius and step size, no early stop, all on the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers' imports
        _measure_peers(setup, note)


def _measure_peers(setup: Setup, note: Note) -> None:
    for name, batches in setup.sizes.attacked.items():
        net, model, eps = NormalizedNetwork(name).to(setup.device), setup.model(name), EPS[name]
        peers = {
            "torchattacks": make_torchattacks(net, eps, setup.sizes.steps),
            "foolbox": make_foolbox(net, eps, setup.sizes.steps),
        }
        for batch in batches:
            x = setup.images(name, batch)
            y = net(x).argmax(1).detach()
            runs: dict[str, Callable[[], Any]] = {
                peer: partial(attack, x, y) for peer, attack in peers.items()
            }
            runs["touchstone"] = partial(attack_batch, model, x, y, eps, setup.sizes.steps)
            seconds = setup.clock.interleave(runs, setup.sizes.rounds)
            note(f"{name} {batch}", _compare(seconds, batch * setup.sizes.steps))


def _compare(seconds: Mapping[str, float], image_steps: int) -> dict[str, Any]:
    best = min(time for who, time in seconds.items() if who != "touchstone")
    return {
        "image_steps_per_second": {who: round(image_steps / time, 1) for who, time in seconds.items()},
        "ratio_to_best_peer": round(best / seconds["touchstone"], 2),
    }


def attack_batch(model: Model, x: Tensor, y: Tensor | None, eps: float, steps: int) -> Tensor:
    """One batch of ours, as the peers do it: real numbers, all steps."""
    return touchstone.attack(
        model, x, y, "pgd", eps=eps, steps=steps, early_stop=False, quantize=False
    ).images


def measure_plans(setup: Setup, note: Note) -> None:
    """One-image jobs whose rows stand in one record, and side by side with passes alone in common, beside one
    batch of as many images; files, as jobs are.
    """
    model, eps, steps = setup.model(CNN), EPS[CNN], setup.sizes.steps
    for count in setup.sizes.plans:
        x = setup.images(CNN, count)

        def batch(x: Tensor = x, steps: int = steps) -> None:
            touchstone.attack(model, x, None, "pgd", eps=eps, steps=steps, early_stop=False)

        def fused(x: Tensor = x, steps: int = steps) -> None:
            run_plans(model, x, eps, steps)

        def side_by_side(x: Tensor = x, steps: int = steps) -> None:
            run_plans(model, x, eps, steps, fused=False)

        runs = {"batch": batch, "fused": fused, "side_by_side": side_by_side}
        seconds = setup.clock.interleave(runs, setup.sizes.rounds)
        note(
            f"{count} images",
            {
                "ms_a_step": {who: round(1000 * time / steps, 3) for who, time in seconds.items()},
                "ratio_to_batch": round(seconds["batch"] / seconds["fused"], 2),
            },
        )
        if count == min(setup.sizes.plans):
            waits = {who: count_synchronisations(setup, run) for who, run in runs.items()}
            note(f"{count} images, synchronisations a step", waits)


def run_plans(
    model: Model, x: Tensor, eps: float, steps: int, *, seed: int = 0, fused: bool = True
) -> list[Any]:
    """PGD on each image as a plan of its own, all in shared passes, up to what was found."""
    method = parse_pgd(eps, steps)
    pixels = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    plans = [
        evaluation.attack_image(method, one, model.oracle, label=None, target=None, seed=seed + row)
        for row, one in enumerate(pixels)
    ]
    return evaluation.run_plans(plans if fused else list(map(expand_loops, plans)), model.oracle)[0]


def parse_pgd(eps: float, steps: int) -> Attack:
    """PGD with all its steps."""
    method = find("pgd", "attack").parse({"eps": eps, "steps": steps, "early_stop": False})
    if not isinstance(method, Attack):
        raise TypeError("pgd is not an attack")
    return method


def count_synchronisations(setup: Setup, run: Callable[..., None]) -> dict[str, float]:
    """Operations in each step that wait for the device: as PyTorch dispatches them, and as CUDA warns."""
    few, many = (_count(setup.device, lambda steps=steps: run(steps=steps)) for steps in COUNTED_STEPS)
    return {how: round((many[how] - few[how]) / (COUNTED_STEPS[1] - COUNTED_STEPS[0]), 2) for how in few}


def _count(device: torch.device, run: Callable[[], None]) -> dict[str, int]:
    with SynchronisationCounter() as counter:
        run()
    if device.type != "cuda":
        return {"dispatched": counter.count}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    warned = sum("synchronizing" in str(one.message) for one in caught)
    return {"dispatched": counter.count, "warned": warned}


class SynchronisationCounter(TorchDispatchMode):
    """Counts operations whose result or shape the host must know: on any device, also a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += _waits(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    if func is aten._to_copy.default:
        target = kwargs.get("device")
        return args[0].is_cuda and target is not None and torch.device(target).type == "cpu"
    return func in (
        aten._local_scalar_dense.default,
        aten.is_nonzero.default,
        aten.equal.default,
        aten.nonzero.default,
        aten.masked_select.default,
    )
