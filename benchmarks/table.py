"""The comparison in the README, made from the records: `python -m benchmarks.table` prints it."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS

PEERS = {"foolbox": "Foolbox", "torchattacks": "torchattacks", "art": "ART"}


def read_record(name: str) -> dict[str, Any]:
    """One benchmark's figures."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def comparison_table() -> str:
    """Figures beside those of the peers, in Markdown."""
    machine = read_record("pgd-lite0-one-process")["machine"]
    rows = [
        f"Measured on {machine['date']} on {machine['threads']} cores of an {machine['processor']}, "
        f"without a GPU; each row in one run.{_describe_older(machine['date'])}",
        "",
        "| benchmark | Touchstone | best peer | ratio |",
        "| --- | --- | --- | --- |",
        _pgd_row(
            "pgd-lite0-one-process", "PGD-10 on EfficientNet-Lite0 at 224 × 224, 16 photos, one process"
        ),
        _pgd_row("pgd-lite0-own-process", "the same, one process for each library"),
        _pgd_row("pgd-cnn-batch-64", "PGD-10 on the Fashion-MNIST CNN, batch of 64"),
        _pgd_row("pgd-cnn-batch-1", "the same, batch of 1"),
        _fooled_row(),
        *_service_rows(),
        *_certificate_rows(),
    ]
    return "\n".join(rows)


def _describe_older(date: str) -> str:
    """What was measured on another day than the rest."""
    older = {
        "smoothing samples on EfficientNet-Lite0": "certificates-rate-lite0",
        "samples to decide a radius": "certificates-deciding",
    }
    dates = {what: read_record(name)["machine"]["date"] for what, name in older.items()}
    told = [f"{what} ({day})" for what, day in dates.items() if day != date]
    return f" Measured earlier: {', '.join(told)}." if told else ""


def _pgd_row(name: str, what: str) -> str:
    found = read_record(name)
    rates, best = found["image_steps_per_second"], found["best_peer"]
    ratio = found["ratio_to_best_peer"]
    return (
        f"| {what} | {rates['touchstone']:,.0f} image-steps/s | {PEERS[best]}: {rates[best]:,.0f} | {ratio} |"
    )


def _fooled_row() -> str:
    found = read_record("until-fooled")
    ours, theirs = found["touchstone"], found["foolbox"]
    return (
        "| time until all 16 photos are misclassified, 4/255 "
        f"| {ours['seconds']} s, {ours['fooled']} misclassified "
        f"| Foolbox, 40 fixed steps: {theirs['seconds']} s, {theirs['fooled']} misclassified "
        f"| {found['ratio']} |"
    )


def _service_rows() -> list[str]:
    found, late = read_record("service-throughput"), read_record("service-latency")
    rates = found["jobs_per_second"]
    return [
        f"| service, 64 clients, PGD-40 on the CNN | {rates['service']} jobs/s "
        f"| one job per Celery task, solo pool: {rates['solo pool']} | {found['ratio_to_solo_pool']} |",
        f"| FGSM through the service, p50 | {late['service_p50_ms']} ms "
        f"| in process: {late['in_process_ms']} ms | {late['added_p50_ms']} ms more |",
    ]


def _certificate_rows() -> list[str]:
    cnn, lite0, few = (read_record(f"certificates-{name}") for name in ("rate-cnn", "rate-lite0", "deciding"))
    rows = []
    for name, found in (("the CNN", cnn), ("EfficientNet-Lite0", lite0)):
        rates = found["samples_per_second"]
        bare = max(rate for who, rate in rates.items() if who.startswith("bare"))
        rows.append(
            f"| smoothing samples on {name} | {rates['touchstone']:,} samples/s "
            f"| bare loop: {bare:,}; ART: {rates['art']:,} "
            f"| {found['ratio_to_bare_loop']}; {found['ratio_to_art']} |"
        )
    mean = sum(few[key]["mean_samples"] for key in few if key.startswith("target")) / 3
    return [
        *rows,
        f"| samples to decide a target radius, {few['images']} images, 3 radii | {mean:,.0f} on average "
        f"| fixed n: {few['fixed_n']:,} | {1 / few['mean_share_of_fixed']:.0f} times fewer |",
    ]


if __name__ == "__main__":
    print(comparison_table())
