"""The command that trains a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from touchstone.cli.console import err, out
from touchstone.cli.methods import own_flags
from touchstone.ledger.records import Progress


def train(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="standard, madry, fast or noise.")] = "standard",
    out_folder: Annotated[Path, typer.Option("--out", help="Where weights and card go.")] = Path("models"),
    model: Annotated[str | None, typer.Option(help="The new model's id; default: from the recipe.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that each image is seen.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 128,
    rate: Annotated[float, typer.Option(min=1e-6, max=1, help="The largest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal weights.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Where data sets are kept; default: in the home.")] = None,
) -> None:
    """Train a small network on Fashion-MNIST; started again after an interruption, it goes on.

    The recipe's own parameters are flags, too: --sigma 0.25 for noise; --eps 0.1 --steps 40 --step-size 0.01
    for madry; --eps 0.1 for fast.
    """
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment
    from touchstone.training import datasets, recipes  # noqa: PLC0415 - loads torch
    from touchstone.training import train as training  # noqa: PLC0415 - loads torch

    chosen = recipes.build_recipe(recipe, own_flags(context.args))
    plan = training.TrainingPlan(chosen, epochs=epochs, batch=batch, rate=rate, seed=seed)
    splits = datasets.fashion_mnist(data or Settings().home / "data")
    with Bar(
        *Bar.get_default_columns(), TextColumn("{task.fields[metric]}"), console=err, transient=True
    ) as bar:
        task = bar.add_task(recipe, total=None, metric="")

        def report(done: Progress, metric: dict[str, float]) -> None:
            told = " ".join(f"{name} {value:.3f}" for name, value in metric.items())
            bar.update(task, completed=done.done, total=done.total, metric=told)

        made = training.train(plan, splits, out_folder, model=model, report=report)
    out.print(
        f"{made.id}: {made.accuracy[0].value:.1%} on {made.accuracy[0].data}; in {out_folder}",
        highlight=False,
    )
