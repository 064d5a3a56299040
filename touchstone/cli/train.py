"""`touchstone train`: train a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as ProgressBar, TextColumn

from touchstone.cli.console import err, out
from touchstone.cli.methods import own_flags
from touchstone.ledger.records import Progress


def train(  # noqa: PLR0917 - each is an option of the command line
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="standard, madry, fast or noise.")] = "standard",
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for the weights and the manifest.")
    ] = Path("models"),
    model: Annotated[str | None, typer.Option(help="The new model's id; default: from the recipe.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images in a step.")] = 128,
    rate: Annotated[float, typer.Option(min=1e-6, max=1, help="The largest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal weights.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; default: in the home folder.")
    ] = None,
) -> None:
    """Train a small network on Fashion-MNIST; run again after an interruption, it continues.

    The parameters of the recipe are flags, too: --sigma 0.25 for noise; --eps 0.1 --steps 40 --step-size 0.01
    for madry; --eps 0.1 for fast.
    """
    from touchstone.settings import Settings  # noqa: PLC0415 - reads the environment
    from touchstone.training import datasets, recipes  # noqa: PLC0415 - loads torch
    from touchstone.training.train import TrainingPlan, train as train_model  # noqa: PLC0415

    chosen = recipes.build_recipe(recipe, own_flags(context.args))
    plan = TrainingPlan(chosen, epochs=epochs, batch=batch, rate=rate, seed=seed)
    splits = datasets.fashion_mnist(data or Settings().home / "data")
    with ProgressBar(
        *ProgressBar.get_default_columns(), TextColumn("{task.fields[metric]}"), console=err, transient=True
    ) as bar:
        task = bar.add_task(recipe, total=None, metric="")

        def report(done: Progress, metric: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in metric.items())
            bar.update(task, completed=done.done, total=done.total, metric=text)

        manifest = train_model(plan, splits, out_folder, model=model, report=report)
    out.print(
        f"{manifest.id}: {manifest.accuracy[0].value:.1%} on {manifest.accuracy[0].data}; in {out_folder}",
        highlight=False,
    )
