"""Certificates: samples to decide a radius, samples a second beside a bare loop and ART, false
certificates by rule.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor, nn

import touchstone
from benchmarks.networks import CNN, LITE0, NormalizedNetwork, clothes, photos
from benchmarks.record import save, time_interleaved
from touchstone.engine import STOPPING_RULES, StoppingCriterion, required_probability

NOISE_MODEL = "fashion-mnist-cnn-noise-0.25"
SIGMA, ALPHA, MAX_SAMPLES = 0.25, 0.001, 100_000


def measure_deciding(images: int = 200, radii: tuple[float, ...] = (0.1, 0.25, 0.5)) -> dict[str, Any]:
    """Samples used to decide a target radius, where the fixed rule always takes 100,000; and to report the
    radius.
    """
    model, x = touchstone.load(NOISE_MODEL), clothes(images)
    figures: dict[str, Any] = {"images": images, "fixed_n": MAX_SAMPLES}
    for radius in radii:
        cert = touchstone.certify(model, x, "smoothing", sigma=SIGMA, n=MAX_SAMPLES, target_radius=radius)
        decisions = [result["decision"] for result in cert.results]
        figures[f"target {radius}"] = {
            "mean_samples": round(float(cert.n_used.double().mean())),
            "share_of_fixed": round(float(cert.n_used.double().mean()) / MAX_SAMPLES, 4),
            "decided": {word: decisions.count(word) for word in sorted(set(map(str, decisions)))},
        }
    shares = [figures[f"target {radius}"]["share_of_fixed"] for radius in radii]
    figures["mean_share_of_fixed"] = round(sum(shares) / len(shares), 4)
    return figures


def measure_reporting(images: int = 20) -> dict[str, Any]:
    """The radius itself, to within 0.05: samples used by the rule that stops early."""
    model, x = touchstone.load(NOISE_MODEL), clothes(images)
    cert = touchstone.certify(model, x, "smoothing", sigma=SIGMA, n=MAX_SAMPLES, tolerance=0.05)
    return {
        "images": images,
        "tolerance": 0.05,
        "mean_samples": round(float(cert.n_used.double().mean())),
        "share_of_fixed": round(float(cert.n_used.double().mean()) / MAX_SAMPLES, 3),
    }


def run_bare_loop(net: nn.Module, x: Tensor, n: int, batch: int) -> int:
    """Noisy forwards written by hand, on the network as its publisher ships it."""
    votes = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        for start in range(0, n, batch):
            rows = min(batch, n - start)
            labels = net(x + SIGMA * torch.randn(rows, *x.shape[1:])).argmax(1)
            votes = torch.bincount(torch.cat([votes, labels]))[:0]
    return len(votes)


def measure_rates(name: str, x: Tensor, n: int) -> dict[str, Any]:
    """Samples a second: ours, a bare loop at its better batch of two, and ART's certifier."""
    net, model = NormalizedNetwork(name), touchstone.load(name)
    runs = {
        "touchstone": lambda: touchstone.certify(model, x, "smoothing", sigma=SIGMA, n=n, rule="fixed"),
        "bare loop, batch 64": lambda: run_bare_loop(net, x, n + 100, 64),
        "bare loop, batch 16": lambda: run_bare_loop(net, x, n + 100, 16),
        "art": lambda: run_art(net, x, n, len(model.classes)),
    }
    seconds = time_interleaved(runs, rounds=3)
    bare = min(seconds["bare loop, batch 64"], seconds["bare loop, batch 16"])
    return {
        "samples_per_second": {who: round((n + 100) / s) for who, s in seconds.items()},
        "ratio_to_bare_loop": round(bare / seconds["touchstone"], 2),
        "ratio_to_art": round(seconds["art"] / seconds["touchstone"], 2),
    }


def run_art(net: nn.Module, x: Tensor, n: int, classes: int) -> Any:
    """`certify` of ART's randomized smoothing: it takes the pilot and the count in one go each."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    # ART takes one binomial bound from statsmodels; scipy's stands in for that package.
    bound = SimpleNamespace(proportion_confint=beta_bounds)
    sys.modules["statsmodels.stats.proportion"] = bound  # type: ignore[assignment]
    smoothed = PyTorchRandomizedSmoothing(
        net,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        classes,
        clip_values=(0, 1),
        device_type="cpu",
        sample_size=100,
        scale=SIGMA,
        alpha=ALPHA,
        optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1),
    )
    return smoothed.certify(x.numpy(), n=n)


def beta_bounds(hits: int, n: int, alpha: float, **_: Any) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval; ART reads its lower end."""
    return float(beta.ppf(alpha / 2, hits, n - hits + 1)), 1.0


def measure_memory(n: int) -> dict[str, Any]:
    """Peak memory that counting n samples adds, in MB, in this process."""
    model, x = touchstone.load(CNN), clothes(1)
    touchstone.certify(model, x, "smoothing", sigma=SIGMA, n=1_000, rule="fixed")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    touchstone.certify(model, x, "smoothing", sigma=SIGMA, n=n, rule="fixed")
    return {
        f"touchstone_added_mb_at_{n}": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    }


def measure_false_certificates(runs: int = 2_000, n: int = 1_000, alpha: float = 0.01) -> dict[str, Any]:
    """Share of certified radii above the truth on a linear classifier, where the vote's probability is
    Φ(r/σ).
    """
    draw = np.random.default_rng(0)
    p = required_probability(0.1, SIGMA)
    figures: dict[str, Any] = {"runs": runs, "alpha": alpha, "allowed": alpha + 3 * math.sqrt(alpha / runs)}
    for name, rule in STOPPING_RULES.items():
        stop = StoppingCriterion(rule, n, alpha, SIGMA)
        false = 0
        for _ in range(runs):
            sums = np.cumsum(draw.random(n) < p)
            at = next(at for at in rule.looks(n) if stop.reason(int(sums[at - 1]), at))
            false += stop.lower(int(sums[at - 1]), at) > p
        figures[name] = false / runs
    return figures


def main() -> None:
    save("certificates-false", measure_false_certificates())
    save("certificates-rate-cnn", measure_rates(CNN, clothes(1), 4_000))
    save("certificates-rate-lite0", measure_rates(LITE0, photos(1), 400))
    save("certificates-memory", measure_memory(50_000))
    began = time.perf_counter()
    save("certificates-deciding", measure_deciding() | {"radius_mode": measure_reporting()})
    print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
