"""Accuracy on examples: a wrong description of a model is found, a right one raises nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from api_tests.support.color_model import FIELDS, NAMES, NearestColor, color_images
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.models.measurements import ExampleAccuracy
from touchstone.registration.example_accuracy import (
    LabelledPixels,
    is_chance,
    measure_examples,
    upper_tail,
)
from touchstone.registration.request import Registration

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Expecting(nn.Module):
    """The classifier of colors, with the inverse of the normalization that it expects before it."""

    def __init__(self, undo: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._undo, self._net = undo, NearestColor()

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images to logits."""
        logits: Tensor = self._net(self._undo(x))
        return logits


def measure(
    net: nn.Module, *, count: int = 40, labels: list[int] | None = None, **said: Any
) -> ExampleAccuracy:
    manifest = Registration.parse({**FIELDS, **said}).build_manifest("sha256:" + "0" * 64, "onnx")
    device = torch.device("cpu")
    oracle = TorchOracle(net, Preprocessing.from_manifest(manifest, device), device)
    images, right = color_images(count)
    return measure_examples(oracle, manifest, LabelledPixels(images, labels or right))


@pytest.mark.parametrize(
    ("undo", "said"),
    [
        (lambda x: x, {}),
        (lambda x: (x + 1) / 2, {"range": [-1, 1]}),
        (lambda x: x / 255, {"range": [0, 255]}),
        (lambda x: x * STD + MEAN, IMAGENET),
    ],
)
def test_model_described_rightly_has_no_warning(
    undo: Callable[[Tensor], Tensor], said: dict[str, Any]
) -> None:
    found = measure(Expecting(undo), **said)
    assert (found.count, found.correct, found.accuracy, found.warnings) == (40, 40, 1, ())


CAFFE = "the channel order bgr and ImageNet's mean 0.406,0.456,0.485 and std 1/255"


@pytest.mark.parametrize(
    ("undo", "said", "words"),
    [
        (
            lambda x: x.flip(1),
            {},
            "of 32 examples are classified correctly as described; 32 would be with the",
        ),
        (lambda x: x.flip(1), {}, "with the channel order bgr"),
        (lambda x: x, {"input": {**FIELDS["input"], "channel_order": "bgr"}}, "with the channel order rgb"),
        (lambda x: (x + 1) / 2, {}, "with the range -1,1"),
        (lambda x: x / 255, {}, "with the range 0,255"),
        (lambda x: x * STD + MEAN, {}, "with ImageNet's mean 0.485,0.456,0.406 and std 0.229,0.224,0.225"),
        (lambda x: x / 255, IMAGENET, "with the range 0,255"),
        (lambda x: x.flip(1) / 255 + MEAN, {"range": [0, 255]}, CAFFE),
    ],
)
def test_wrong_channel_order_or_normalization_is_named_with_the_right_one(
    undo: Callable[[Tensor], Tensor], said: dict[str, Any], words: str
) -> None:
    found = measure(Expecting(undo), **said)
    assert found.accuracy < 0.6
    [warning] = [one for one in found.warnings if one.code == "preprocessing_looks_wrong"]
    assert words in warning.detail
    assert warning.accuracy == 1


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (sorted(range(8), key=lambda i: NAMES[i]), "sorted by name"),
        ([7, *range(7)], "'white' were the first"),
    ],
)
def test_wrong_order_of_classes_is_named(order: list[int], words: str) -> None:
    """The network's k-th output is the class `order[k]` of the manifest."""

    class Ordered(NearestColor):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, order]

    found = measure(Ordered())
    assert [one.code for one in found.warnings if "chance" not in one.code] == ["class_order_looks_wrong"]
    assert words in found.warnings[-1].detail
    assert found.warnings[-1].accuracy == 1


def test_accuracy_at_chance_is_said_where_nothing_would_be_right() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 8, (40,), generator=draw).tolist()
    found = measure(NearestColor(), labels=labels)
    assert found.correct < 12
    assert [one.code for one in found.warnings] == ["accuracy_at_chance"]
    assert f"{found.correct} of 40" in found.warnings[0].detail


def test_few_examples_raise_no_warning() -> None:
    assert measure(NearestColor(), count=2, labels=[3, 4]).warnings == ()


@pytest.mark.parametrize(
    ("correct", "count", "classes"), [(3, 40, 8), (9, 40, 8), (10, 40, 8), (0, 2, 8), (60, 100, 2)]
)
def test_chance_is_that_of_the_binomial_distribution(correct: int, count: int, classes: int) -> None:
    tail = stats.binom.sf(correct - 1, count, 1 / classes)
    assert upper_tail(correct, count, 1 / classes) == pytest.approx(tail)
    assert is_chance(correct, count, classes) == (tail > 0.05 and classes**-count < 0.005)
