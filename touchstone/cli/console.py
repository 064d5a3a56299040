"""The output of the command line."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from touchstone.evaluation.certificate_result import round_down

out = Console()
err = Console(stderr=True)


def show(result: dict[str, Any]) -> None:
    """Print labels and confidences before and after, and the size of the perturbation."""
    table = Table("", "label", "confidence")
    for when in ("original", "adversarial"):
        prediction = result[when]
        table.add_row(
            when, f"{prediction['name']} ({prediction['label']})", f"{prediction['confidence']:.1%}"
        )
    out.print(table)
    size, queries = result["perturbation"], result["queries"]
    distances = f"L∞ {size['linf'] * 255:.0f}/255, L2 {size['l2']:.3f}, SSIM {size['ssim']:.4f}"
    out.print(
        f"{result['outcome']}: {distances}; "
        f"{queries['forward']} forward and {queries['backward']} backward passes",
        highlight=False,
    )
    if signs := [*result["diagnostics"], *filter(None, [result.get("stopped_by")])]:
        out.print(f"Read with care (docs/attacks.md): {', '.join(signs)}", highlight=False)


def show_certificate(result: dict[str, Any]) -> None:
    """Print the outcome in a sentence, and its numbers."""
    sampling = result["sampling"]
    out.print(result["statement"], highlight=False)
    table = Table("radius", "decision", "votes", "vote at least", "σ", "α", "stopped by")
    table.add_row(
        f"{round_down(result['radius']):.4f} ({result['norm']})",
        result["decision"] or "",
        f"{sampling['nA']:,} of {sampling['n_used']:,}",
        f"{sampling['pA_lower']:.4f}",
        f"{sampling['sigma']:g}",
        f"{sampling['alpha']:g}",
        result["stopped_by"],
    )
    out.print(table)
