"""The library in a caller's hands: what it lists, what it takes, and what it says to what it cannot take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import touchstone
from api_tests.support.linear_models import gray_images, linear_model
from touchstone.errors import Failure, InvalidModel, InvalidParameter, UnknownLabel

PHOTO = Image.new("RGB", (20, 10))
LISTING_PROGRAM = """
import touchstone
for _ in range(2):
    assert touchstone.attacks()[0]["kind"] == "attack"
    assert touchstone.certificates()[0]["kind"] == "certificate"
import touchstone.attacks.pgd as pgd
from touchstone.certificates import smoothing
assert (pgd.__name__, smoothing.__name__) == ("touchstone.attacks.pgd", "touchstone.certificates.smoothing")
"""


def test_attacks_and_certificates_can_be_listed_repeatedly() -> None:
    subprocess.run([sys.executable, "-c", LISTING_PROGRAM], check=True)


def test_version_starts_with_a_number() -> None:
    assert touchstone.__version__.split(".")[0].isdigit()


@pytest.fixture(scope="module")
def fashion_model() -> Any:
    return touchstone.load("fashion-mnist-cnn")


@pytest.mark.parametrize(
    "images",
    [
        PHOTO, np.zeros((1, 1, 28, 28), np.float32), "photo.png", ["photo.png"], [torch.zeros(1, 28, 28)], 5,
        [], torch.zeros(1, 28, 28, 1),
    ],
    ids=["an image", "an array", "a name", "names", "tensors", "a number", "nothing", "channels last"],
)  # fmt: skip
def test_invalid_images_are_refused_naming_the_field(fashion_model: Any, images: Any) -> None:
    for run in (touchstone.attack, touchstone.certify):
        with pytest.raises(InvalidParameter, match=r"^images: ") as caught:
            run(fashion_model, images)
        assert caught.value.field == "images"


@pytest.mark.parametrize("field", ["labels", "targets"])
@pytest.mark.parametrize(
    ("labels", "failure"),
    [
        (3, InvalidParameter), ("Bag", InvalidParameter), (["Bag"], InvalidParameter),
        ([0, 10], UnknownLabel), ([0, -1], UnknownLabel), (["Bag", "Bga"], UnknownLabel),
        (torch.tensor([0, 10]), UnknownLabel), (torch.tensor([-1, 0]), UnknownLabel),
    ],
)  # fmt: skip
def test_invalid_labels_and_targets_are_refused(
    fashion_model: Any, field: str, labels: Any, failure: type[Failure]
) -> None:
    with pytest.raises(failure) as caught:
        touchstone.attack(fashion_model, touchstone.samples()[:2], **{field: labels})
    assert caught.value.field == field


def test_labels_of_a_wrapped_module_are_accepted_by_index_or_name() -> None:
    model = touchstone.wrap(linear_model(), classes=["cat", "dog"])
    named = touchstone.attack(model, gray_images(2), ["dog", "Cat"], eps=0.01, seed=[1, 2])
    counted = touchstone.attack(model, gray_images(2), [1, 0], eps=0.01, seed=[1, 2])
    assert torch.equal(named.images, counted.images)
    with pytest.raises(UnknownLabel, match="no class named 'cow'"):
        touchstone.attack(model, gray_images(2), ["dog", "cow"])
    with pytest.raises(UnknownLabel, match="classes 0 to"):
        touchstone.attack(touchstone.wrap(linear_model()), gray_images(2), [0, 999])


@pytest.mark.parametrize("seed", [-1, [1, -1], [1]])
def test_invalid_seeds_are_refused(fashion_model: Any, seed: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"^seed: "):
        touchstone.attack(fashion_model, touchstone.samples()[:2], seed=seed)


def test_certify_refuses_a_negative_seed(fashion_model: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"^seed: "):
        touchstone.certify(fashion_model, touchstone.samples()[:1], seed=-1)


@pytest.mark.parametrize("run", [touchstone.attack, touchstone.certify])
def test_misspelled_parameter_error_suggests_the_right_name(
    fashion_model: Any, run: Callable[..., Any]
) -> None:
    wrong, right = ("stepz", "steps") if run is touchstone.attack else ("sgima", "sigma")
    with pytest.raises(InvalidParameter, match=f'did you mean "{right}"') as caught:
        run(fashion_model, touchstone.samples()[:1], **{wrong: 1})
    assert caught.value.field == wrong


def test_model_must_be_a_torch_module_and_wrapped() -> None:
    with pytest.raises(InvalidParameter, match=r"torch\.nn\.Module, not function"):
        touchstone.wrap(lambda x: x)  # type: ignore[arg-type]
    for run in (touchstone.attack, touchstone.certify):
        with pytest.raises(InvalidParameter, match=r"touchstone\.wrap"):
            run(linear_model(), gray_images(1))


class MappingOutput(nn.Module):
    """Answers a mapping, as some libraries' networks do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x.flatten(1)}


@pytest.mark.parametrize("module", [MappingOutput(), nn.Flatten(0)], ids=["a mapping", "numbers in a row"])
def test_module_that_returns_no_logits_is_refused(module: nn.Module) -> None:
    with pytest.raises(InvalidModel, match=r"logits \(N, K\)"):
        touchstone.attack(touchstone.wrap(module), gray_images(2), method="fgsm")


def test_missing_manifest_is_distinguished_from_an_unknown_model_name(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"anything")
    with pytest.raises(InvalidParameter, match=r"^manifest: "):
        touchstone.load(tmp_path / "net.onnx")
    with pytest.raises(Failure, match="there is no model named"):
        touchstone.load(tmp_path / "nothing.onnx")
