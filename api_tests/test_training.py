"""Training: the same weights whether interrupted or not, and a card that tells the truth about them."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from touchstone.errors import DataUnavailable, InvalidParameter
from touchstone.jobs.record import Progress
from touchstone.models import datasets, training
from touchstone.models.datasets import Split, draw_sample, fashion_mnist_sample
from touchstone.models.loading import load_module
from touchstone.models.manifest import Manifest
from touchstone.models.recipes import RECIPES, recipe
from touchstone.models.training import Plan, jitter, one_cycle, train

TINY = Plan(epochs=2, batch=16, rate=3e-3)


class GaveUpError(Exception):
    pass


def halves() -> tuple[Split, Split]:
    sample = fashion_mnist_sample()
    return Split(sample.images[:128], sample.labels[:128]), Split(sample.images[128:], sample.labels[128:])


def test_a_resumed_training_ends_in_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(TINY, halves(), tmp_path / "whole")

    def give_up(progress: Progress, _metric: dict[str, float]) -> None:
        if progress.done == 12:
            raise GaveUpError

    with pytest.raises(GaveUpError):
        train(TINY, halves(), tmp_path / "parts", report=give_up)
    steps: list[int] = []
    resumed = train(
        TINY, halves(), tmp_path / "parts", report=lambda progress, _: steps.append(progress.done)
    )
    assert steps[0] == 9, "the first epoch's 8 steps are not run again"
    assert resumed.digest == whole.digest
    assert not list((tmp_path / "parts").glob("*checkpoint*"))


@dataclass
class Recorder:
    """Notes what a recipe is given."""

    name: str = "recorder"
    text: str = "clean images"
    batches: list[Tensor] = field(default_factory=list)

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: torch.Generator) -> Tensor:
        assert net.training
        assert net(x).shape == (len(y), 10)
        self.batches.append(x)
        return x


def batches(monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int) -> list[Tensor]:
    recorder = Recorder()
    monkeypatch.setattr(training, "recipe", lambda _: recorder)
    train(Plan(epochs=2, batch=64, seed=seed), halves(), folder)
    return recorder.batches


def test_a_recipe_is_given_pixels_in_an_order_that_follows_from_seed_and_epoch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, again, other = (batches(monkeypatch, tmp_path, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = [*first, *other]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    assert all(batch.min() == 0 and batch.max() == 1 for batch in drawn)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one = Plan(epochs=1, batch=64)
    digests = {
        train(plan, halves(), tmp_path).digest for plan in (one, one, Plan(epochs=1, batch=64, seed=1))
    }
    assert len(digests) == 2


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(Plan(epochs=1, batch=64), halves(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_learns_and_leaves_a_card_that_loads(name: str, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    plan = Plan(recipe=name, epochs=12, batch=16, rate=3e-3)
    card = train(plan, halves(), tmp_path, model="mine", report=lambda _, metric: seen.append(metric))
    assert Manifest.model_validate_json((tmp_path / "mine.json").read_bytes()) == card
    assert load_module(card, beside=tmp_path)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert f"--recipe {name}" in card.provenance
    assert halves()[0].digest() in card.provenance
    assert seen[-1] == {"accuracy": card.accuracy[0].value}
    assert card.accuracy[0].value > 0.4, "chance is 0.1"


def test_a_checkpoint_of_another_plan_is_not_overwritten(tmp_path: Path) -> None:
    def give_up(progress: Progress, _metric: dict[str, float]) -> None:
        if progress.done > 8:
            raise GaveUpError

    with pytest.raises(GaveUpError):
        train(TINY, halves(), tmp_path, report=give_up)
    with pytest.raises(InvalidParameter, match="belongs to another training"):
        train(Plan(epochs=3, batch=16), halves(), tmp_path)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidParameter, match=r"'magic'; there are: .*standard"):
        recipe("magic")


def test_the_rate_rises_and_falls() -> None:
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert max(rates) == rates[30] == 1.0
    assert rates[0] < 0.1
    assert rates[99] < 0.01
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_jitter_shifts_and_mirrors_whole_images() -> None:
    x = torch.zeros(200, 2, 7, 9)
    x[:, 0, 3, 3] = 1
    x[:, 1, 3, 3] = 2
    y = jitter(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert torch.equal(y[:, 1], 2 * y[:, 0])
    assert torch.equal(y[:, 0].sum((1, 2)), torch.ones(200))
    row, column = np.nonzero(y[:, 0].sum(0).numpy())
    assert set(row) == set(range(1, 6))
    assert set(column) == set(range(1, 8)), "3 ± 2, and its mirror image 5 ± 2"


def test_the_sample_is_balanced_and_drawn_from_the_test_images_in_order() -> None:
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


def test_an_altered_data_file_is_refused(files: Path) -> None:
    (files / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataUnavailable, match=r"t10k-labels.*is not the file that was published"):
        datasets.fashion_mnist(files.parent)


def test_without_apt_it_is_said_how_to_get_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(datasets, "INSTALLED", Path("nowhere"))
    with pytest.raises(DataUnavailable, match=r"apt-get update.*train-images-idx3-ubyte\.gz"):
        datasets.fashion_mnist(tmp_path)
