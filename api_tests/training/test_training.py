"""Training: the same weights whether interrupted or not, and a manifest that describes them correctly."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from touchstone.cli import app
from touchstone.errors import DataUnavailable, InvalidParameter
from touchstone.ledger.records import Progress
from touchstone.models.loader import load_module
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZooStore
from touchstone.training import datasets
from touchstone.training.datasets import Split, draw_sample, fashion_mnist_sample
from touchstone.training.recipes import RECIPES, Fast, Gaussian, Madry, Recipe, Standard, build_recipe
from touchstone.training.train import TrainingPlan, augment, one_cycle_rate, train

TINY = TrainingPlan(epochs=2, batch=16, rate=3e-3)


class GaveUpError(Exception):
    pass


def halves() -> tuple[Split, Split]:
    sample = fashion_mnist_sample()
    return Split(sample.images[:128], sample.labels[:128]), Split(sample.images[128:], sample.labels[128:])


@pytest.mark.parametrize(
    "recipe", [Standard(), Fast(eps=0.02)], ids=["without validation", "with validation"]
)
def test_resumed_training_gives_the_weights_of_an_uninterrupted_one(recipe: Recipe, tmp_path: Path) -> None:
    plan = replace(TINY, recipe=recipe)
    whole = train(plan, halves(), tmp_path / "whole")

    def give_up(progress: Progress, _metric: dict[str, float]) -> None:
        if progress.done == 12:
            raise GaveUpError

    with pytest.raises(GaveUpError):
        train(plan, halves(), tmp_path / "parts", report=give_up)
    steps: list[int] = []
    resumed = train(
        plan, halves(), tmp_path / "parts", report=lambda progress, _: steps.append(progress.done)
    )
    assert steps[0] == 9, "the first epoch's 8 steps are not run again"
    assert resumed.digest == whole.digest
    assert not list((tmp_path / "parts").glob("*checkpoint*"))


class Recorder(Recipe):
    """Notes what a recipe is given."""

    name = "recorder"
    batches: list[Any] = Field(default_factory=list, exclude=True)

    @property
    def text(self) -> str:
        return "clean images"

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: torch.Generator) -> Tensor:
        assert net.training
        assert net(x).shape == (len(y), 10)
        self.batches.append(x)
        return x


def batches(folder: Path, seed: int) -> list[Tensor]:
    recorder = Recorder()
    train(TrainingPlan(recorder, epochs=2, batch=64, seed=seed), halves(), folder)
    return recorder.batches


def test_batch_order_is_determined_by_seed_and_epoch(tmp_path: Path) -> None:
    first, again, other = (batches(tmp_path, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = [*first, *other]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert all(batch.min() == 0 and batch.max() == 1 for batch in drawn)


def test_same_seed_gives_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    one = TrainingPlan(epochs=1, batch=64)
    digests = {
        train(plan, halves(), tmp_path).digest
        for plan in (one, one, TrainingPlan(epochs=1, batch=64, seed=1))
    }
    assert len(digests) == 2


def test_training_does_not_change_the_global_random_state(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(TrainingPlan(epochs=1, batch=64), halves(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


MILD_RECIPES = (Standard(), Gaussian(sigma=0.1), Madry(eps=0.02, steps=3, step_size=0.02), Fast(eps=0.02))


def test_every_recipe_has_mild_parameters_for_the_tests() -> None:
    assert {one.name for one in MILD_RECIPES} == set(RECIPES)


@pytest.mark.parametrize("gentle", MILD_RECIPES, ids=lambda one: one.name)
def test_every_recipe_learns_and_writes_a_loadable_manifest(gentle: Recipe, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    plan = TrainingPlan(gentle, epochs=12, batch=16, rate=3e-3)
    manifest = train(plan, halves(), tmp_path, model="mine", report=lambda _, metric: seen.append(metric))
    assert Manifest.model_validate_json((tmp_path / "mine.json").read_bytes()) == manifest
    assert load_module(manifest, ZooStore(tmp_path))(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert f"--recipe {gentle.name}" in manifest.provenance
    assert all(f" {value}" in manifest.provenance for value in gentle.model_dump().values())
    assert halves()[0].digest() in manifest.provenance
    assert seen[-1] == {"accuracy": manifest.accuracy[0].value}
    assert manifest.accuracy[0].value > 0.4, "chance is 0.1"


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (Standard(), "fashion-mnist-cnn"),
        (Madry(), "fashion-mnist-cnn-linf"),
        (Gaussian(sigma=0.5), "fashion-mnist-cnn-noise-0.50"),
    ],
)
def test_trained_model_is_named_after_its_recipe(made: Recipe, name: str, tmp_path: Path) -> None:
    few = Split(halves()[0].images[:2], halves()[0].labels[:2])
    assert train(TrainingPlan(made, epochs=1), (few, few), tmp_path).id == name


class EvalOnlyNet(nn.Module):
    """A linear network that must be asked in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(10, 784, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x.flatten(1) @ self.weight.T


def pixels(rows: int = 64) -> tuple[Tensor, Tensor]:
    sample = fashion_mnist_sample()
    x = torch.from_numpy(sample.images[:rows].copy())[:, None] / 255
    return x, torch.from_numpy(sample.labels[:rows].astype(np.int64))


@pytest.mark.parametrize("harsh", [Madry(eps=0.1, steps=7, step_size=0.04), Fast(eps=0.1)])
def test_adversarial_recipes_raise_the_loss_within_the_ball_in_eval_mode(harsh: Recipe) -> None:
    (x, y), net = pixels(), EvalOnlyNet().train()
    moved = harsh.batch(net, x, y, torch.Generator().manual_seed(0))
    assert net.training
    assert not moved.requires_grad
    assert float((moved - x).abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    net.eval()
    before, after = (functional.cross_entropy(net(images), y, reduction="none") for images in (x, moved))
    assert bool((after > before).all()), "each row climbs"
    assert torch.equal(moved, harsh.batch(net, x, y, torch.Generator().manual_seed(0)))
    assert not torch.equal(moved, harsh.batch(net, x, y, torch.Generator().manual_seed(1)))


def test_more_madry_steps_raise_the_loss_further_from_a_random_start() -> None:
    (x, y), net = pixels(), EvalOnlyNet().eval()
    noise = torch.Generator().manual_seed(0)
    one = Madry(eps=0.1, steps=1, step_size=0.1).batch(net, x, y, noise)
    ten = Madry(eps=0.1, steps=10, step_size=0.025).batch(net, x, y, noise)
    assert functional.cross_entropy(net(ten), y) > functional.cross_entropy(net(one), y)
    inside = (one - x).abs() < 0.0999
    assert inside.float().mean() > 0.1, "a step as long as the radius does not undo the random start"


def test_gaussian_recipe_adds_unclipped_noise_in_pixels() -> None:
    x, y = pixels()
    noise = torch.Generator().manual_seed(0)
    first, second = (Gaussian(sigma=0.5).batch(EvalOnlyNet(), x, y, noise) - x for _ in range(2))
    assert float(first.std()) == pytest.approx(0.5, rel=0.02)
    assert float(first.mean()) == pytest.approx(0, abs=0.01)
    assert float((x + first).min()) < -0.5
    assert not torch.equal(first, second)


class CollapsingRecipe(Fast):
    """From a certain batch on, the images are negatives: what was learned is lost within an epoch."""

    name = "collapsing"
    after: int
    seen: list[int] = Field(default_factory=list, exclude=True)

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: torch.Generator) -> Tensor:
        self.seen.append(len(x))
        return x if len(self.seen) <= self.after else 1 - x


def test_guard_restores_weights_and_stops_when_robustness_collapses(tmp_path: Path) -> None:
    sample = fashion_mnist_sample()
    collapsing = CollapsingRecipe(eps=0.01, after=8 * 15)  # 231 images, 25 held out: 15 steps an epoch
    plan = TrainingPlan(collapsing, epochs=12, batch=16, rate=3e-3)
    epochs: list[float] = []

    def interrupt(progress: Progress, _metric: dict[str, float]) -> None:
        if progress.done == 8 * 15 + 5:
            raise GaveUpError

    with pytest.raises(GaveUpError):
        train(plan, (sample, sample), tmp_path, report=interrupt)
    manifest = train(
        plan, (sample, sample), tmp_path, report=lambda progress, _: epochs.append(progress.done / 15)
    )
    stopped = re.search(
        r"Stopped after epoch (\d+), .* 25 held-out images .* from (0\.\d+) to (0\.\d+)\.$",
        manifest.provenance,
    )
    assert stopped is not None
    epoch, best, now = int(stopped[1]), float(stopped[2]), float(stopped[3])
    assert epoch >= 8
    assert max(epochs[:-1]) == epoch + 1, "the rest is not run"
    assert now < best - 0.2
    assert manifest.accuracy[0].value > 0.6, "the weights are those of before the collapse"


def test_guard_does_not_stop_a_training_without_collapse(tmp_path: Path) -> None:
    sample = fashion_mnist_sample()
    manifest = train(
        TrainingPlan(CollapsingRecipe(eps=0.01, after=1000), epochs=6, batch=16, rate=3e-3),
        (sample, sample),
        tmp_path,
    )
    assert "Stopped" not in manifest.provenance


def test_checkpoint_of_another_training_plan_is_not_overwritten(tmp_path: Path) -> None:
    def give_up(progress: Progress, _metric: dict[str, float]) -> None:
        if progress.done > 8:
            raise GaveUpError

    with pytest.raises(GaveUpError):
        train(TINY, halves(), tmp_path, report=give_up)
    with pytest.raises(InvalidParameter, match="belongs to another training"):
        train(TrainingPlan(epochs=3, batch=16), halves(), tmp_path)
    with pytest.raises(InvalidParameter, match="belongs to another training"):
        train(replace(TINY, recipe=Gaussian()), halves(), tmp_path, model="fashion-mnist-cnn")


def test_unknown_recipe_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InvalidParameter, match=r"'magic'; there are: .*standard"):
        build_recipe("magic")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("noise", {"sigma": "-1"}, "sigma: .*greater than 0"),
        ("madry", {"eps": "much"}, "eps: "),
        ("madry", {"steps": "7"}, r"step_size: 7 steps of 0\.01 do not reach eps 0\.1; usual .* 0\.0357"),
        ("fast", {"sigma": "1"}, "sigma: Extra inputs"),
    ],
)
def test_invalid_recipe_parameters_are_refused(name: str, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        build_recipe(name, parameters)


def test_recipe_parameters_are_parsed_from_text() -> None:
    assert build_recipe("madry", {"eps": "8/255", "steps": "10"}) == Madry(eps=8 / 255, steps=10)


def run_train_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["touchstone", "train", *words])
    app.main()


def test_train_command_writes_a_model(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--recipe", "noise", "--sigma", "1/2", "--epochs", "2", "--data", str(files.parent))
    with pytest.raises(SystemExit) as ended:
        run_train_command(monkeypatch, *flags, "--out", str(tmp_path / "made"))
    assert ended.value.code == 0
    made = Manifest.model_validate_json((tmp_path / "made/fashion-mnist-cnn-noise-0.50.json").read_bytes())
    assert "--sigma 0.5:" in made.provenance
    assert "2 epochs of 3 Fashion-MNIST images" in made.provenance
    assert "fashion-mnist-cnn-noise-0.50: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recipe", "magic"), "'magic'; there are: standard"),
        (("--recipe", "noise", "--sigma", "0"), "sigma"),
        (("--recipe", "noise", "--eps", "0.1"), "eps"),
        (("--model", "../mine"), "'../mine'"),
        (("--out", __file__), "cannot be made a folder"),
    ],
)
def test_train_command_refuses_invalid_flags_with_a_message(
    words: tuple[str, ...],
    message: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_train_command(monkeypatch, "--data", str(files.parent), *words)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "invalid_parameter: " in printed
    assert message in " ".join(printed.split())
    assert not list(files.parent.glob("*checkpoint*"))


def test_one_cycle_learning_rate_rises_and_falls() -> None:
    rates = [one_cycle_rate(step, 100, 1.0) for step in range(100)]
    assert max(rates) == rates[30] == 1.0
    assert rates[0] < 0.1
    assert rates[99] < 0.01
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_jitter_shifts_and_mirrors_whole_images() -> None:
    x = torch.zeros(200, 2, 7, 9)
    x[:, 0, 3, 3] = 1
    x[:, 1, 3, 3] = 2
    y = augment(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert torch.equal(y[:, 1], 2 * y[:, 0])
    assert torch.equal(y[:, 0].sum((1, 2)), torch.ones(200))
    row, column = np.nonzero(y[:, 0].sum(0).numpy())
    assert set(row) == set(range(1, 6))
    assert set(column) == set(range(1, 8)), "3 ± 2, and its mirror image 5 ± 2"


def test_sample_is_balanced_and_keeps_the_order_of_the_test_images() -> None:
    sample = fashion_mnist_sample()
    assert np.bincount(sample.labels).tolist() == [26] * 6 + [25] * 4
    shuffled = np.argsort(sample.labels, kind="stable")
    again = draw_sample(Split(sample.images[shuffled], sample.labels[shuffled]))
    assert np.array_equal(np.asarray(again)[:28, 28:56], sample.images[1])
    assert np.array_equal(np.asarray(again)[28:56, :28], sample.images[16])


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(head + values.tobytes())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny Fashion-MNIST, whose digests are taken for the real ones."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    digests = {}
    for name in datasets.DIGESTS:
        shape = (3, 2, 4) if "images" in name else (3,)
        data = idx(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))
        (folder / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(datasets, "DIGESTS", digests)
    return folder


def test_idx_files_are_read_from_the_cache(files: Path) -> None:
    train_split, test_split = datasets.fashion_mnist(files.parent)
    assert np.array_equal(train_split.images, np.arange(24).reshape(3, 2, 4))
    assert test_split.labels.tolist() == [0, 1, 2]


def test_altered_data_file_is_refused(files: Path) -> None:
    (files / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataUnavailable, match=r"t10k-labels.*is not the published file"):
        datasets.fashion_mnist(files.parent)


def test_missing_data_error_tells_how_to_get_it_without_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(datasets, "INSTALLED", Path("nowhere"))
    with pytest.raises(DataUnavailable, match=r"apt-get update.*train-images-idx3-ubyte\.gz"):
        datasets.fashion_mnist(tmp_path)
