"""The same seed on the CPU and on the device, and deterministic jobs twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

import touchstone
from benchmarks.gpu.attacks import parse_pgd
from benchmarks.gpu.passes import use_format
from benchmarks.gpu.report import Note
from benchmarks.gpu.sizes import EPS, Setup
from benchmarks.networks import CNN
from touchstone import evaluation
from touchstone.engine import Engine, Noise, SampleNoise
from touchstone.models.zoo import find_manifest


def compare_devices(setup: Setup, note: Note) -> None:
    """Noise, successes and pixels of the device beside the CPU's."""
    note("noise", _compare_noise(setup))
    for name, count in setup.sizes.compared.items():
        x, steps = setup.images(name, count), setup.sizes.steps
        expected = _attack(torch.device("cpu"), x, name, steps)
        note(name, _compare(expected, _attack(setup.device, x, name, steps)))
        with use_format("fp32", setup.device):
            note(f"{name} without tf32", _compare(expected, _attack(setup.device, x, name, steps)))


def _compare(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> dict[str, Any]:
    (images, success), (others, other_success) = one, other
    return {
        "images": len(images),
        "successes": [int(success.sum()), int(other_success.sum())],
        "equal_verdicts": int((success == other_success).sum()),
        "equal_images": int((images == others).flatten(1).all(1).sum()),
        "equal_pixels": round(float((images == others).float().mean()), 6),
    }


def _attack(device: torch.device, x: Tensor, name: str, steps: int) -> tuple[Tensor, Tensor]:
    model = touchstone.load(name, device=str(device))
    found = touchstone.attack(model, x, None, "pgd", eps=EPS[name], steps=steps, early_stop=False, seed=1)
    if not isinstance(found.images, Tensor):
        raise TypeError("images of one size are one tensor")
    return found.images, found.success


def _compare_noise(setup: Setup) -> dict[str, Any]:
    """Uniform numbers must be equal, normal ones within rounding: of words of the host and of the device."""
    figures: dict[str, Any] = {}
    for where, rows in (("few", 2), ("many", 16)):
        like = torch.zeros(rows, 3, 224, 224)
        both = [
            Noise.from_seeds([(7, row) for row in range(rows)], "equality").uniform(like.to(device)).cpu()
            for device in ("cpu", setup.device)
        ]
        normal = [
            SampleNoise("gaussian", 1.0, 7).draw(like[:1].to(device), range(rows)).cpu()
            for device in ("cpu", setup.device)
        ]
        figures[f"{where}, uniform equal"] = torch.equal(*both)
        figures[f"{where}, normal differs by"] = float((normal[0] - normal[1]).abs().max())
    return figures


def repeat_deterministic(setup: Setup, note: Note) -> None:
    """Deterministic jobs, alone and beside others: equal to the bit."""
    count = setup.sizes.compared[CNN]
    alone = _run_deterministic(setup, count, together=False)
    beside = _run_deterministic(setup, count, together=True)
    equal = sum(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))
    note("deterministic", {"jobs": count, "equal": equal})


def _run_deterministic(setup: Setup, count: int, *, together: bool) -> list[Tensor]:
    """What each of the jobs found."""
    method = parse_pgd(EPS[CNN], setup.sizes.steps)
    pixels = (setup.images(CNN, count) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    engine = Engine(str(setup.device))
    try:
        with engine.models.acquire(find_manifest(CNN)) as oracle:

            def run(row: int) -> Tensor:
                plan = evaluation.attack_image(method, pixels[row], oracle, label=None, target=None, seed=row)
                found: Tensor = engine.start(plan, oracle, deterministic=True).result().found.x
                return found

            with ThreadPoolExecutor(count if together else 1) as pool:
                return list(pool.map(run, range(count)))
    finally:
        engine.stop()


def measure_equality(setup: Setup, note: Note) -> None:
    """Both."""
    compare_devices(setup, note)
    repeat_deterministic(setup, note)
