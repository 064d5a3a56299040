"""The differentiable resize and the 8-bit lattice against Pillow, SSIM against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from touchstone.engine.norms import NORMS
from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.quantization import snap
from touchstone.evaluation import perturbation
from touchstone.models.manifest import InputSpec

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


SIZES = [(300, 451), (451, 300), (64, 90), (1000, 37), (256, 256), (224, 224)]


def preprocess_with_pillow(pixels, spec):
    """The pipeline of published models: an 8-bit image resized and cropped, and only then made floats."""
    image = Image.fromarray(pixels)
    height, width = image.height, image.width
    if spec.resize is None:
        size = (spec.width, spec.height)
    else:
        scale = spec.resize / min(height, width)
        size = tuple(
            spec.resize if side == min(height, width) else int(side * scale) for side in (width, height)
        )
    image = image.resize(size, FILTERS[spec.interpolation])
    left, upper = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    return np.asarray(image.crop((left, upper, left + spec.width, upper + spec.height)))


def smooth_image(height, width):
    """Random, but with neighbors alike, as in photos, and without what a filter would overshoot at."""
    coarse = np.random.default_rng(0).integers(50, 206, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def to_batch(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [256, None])
def test_differentiable_resize_matches_pillow_within_rounding(size, resize, interpolation):
    spec = InputSpec(height=224, width=224, resize=resize, interpolation=interpolation)
    pixels = smooth_image(*size)
    ours = Preprocessing(spec, None, None).apply(to_batch(pixels))[0].permute(1, 2, 0) * 255
    # Pillow rounds to 8 bits after each of its two passes.
    assert np.abs(ours.numpy() - preprocess_with_pillow(pixels, spec)).max() < 1.6


@pytest.mark.parametrize(("rounding", "start"), [("even", 2), ("down", 1)])
def test_crop_between_two_pixels_starts_where_the_rounding_says(rounding, start):
    spec = InputSpec(height=4, width=4, resize=(4, 7), crop_rounding=rounding)
    pixels = smooth_image(4, 7)
    right = to_batch(pixels[:, start : start + 4])
    for found in (
        Preprocessing(spec, None, None).apply(to_batch(pixels)),
        Preprocessing(spec, None, None).apply_to_files(to_batch(pixels)),
    ):
        torch.testing.assert_close(found, right)


def test_whole_image_is_scaled_to_a_pair_of_sizes_before_the_crop():
    spec = InputSpec(height=6, width=4, resize=(10, 8))
    pixels = smooth_image(40, 90)
    scaled = Image.fromarray(pixels).resize((8, 10), Image.Resampling.BICUBIC)
    found = Preprocessing(spec, None, None).apply_to_files(to_batch(pixels))
    torch.testing.assert_close(found, to_batch(np.asarray(scaled.crop((2, 2, 6, 8)))))


def test_resize_overshoot_is_clipped_as_in_pillow():
    spec = InputSpec(height=224, width=224, resize=256)
    stripes = np.zeros((300, 451, 3), dtype=np.uint8)
    stripes[::20, :] = stripes[:, ::30] = 255
    ours = Preprocessing(spec, None, None).apply(to_batch(stripes))[0].permute(1, 2, 0) * 255
    assert np.abs(ours.numpy() - preprocess_with_pillow(stripes, spec)).max() < 1.6


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [256, None])
def test_files_are_preprocessed_bit_for_bit_as_in_pillow(size, resize, interpolation):
    spec = InputSpec(height=224, width=224, resize=resize, interpolation=interpolation)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = Preprocessing(spec, None, None).apply_to_files(to_batch(pixels))[0].permute(1, 2, 0)
    assert torch.equal(prepared, torch.from_numpy(preprocess_with_pillow(pixels, spec).copy()).float() / 255)


def test_images_off_the_8_bit_lattice_are_preprocessed_without_rounding():
    spec = InputSpec(height=8, width=8, resize=9)
    x = torch.rand(1, 3, 20, 30)
    preprocessing = Preprocessing(spec, None, None)
    assert torch.equal(preprocessing.apply_to_files(x), preprocessing.apply(x))


def test_gradient_of_the_resize_is_its_transpose():
    spec = InputSpec(channels=3, height=8, width=8, resize=9, interpolation="bilinear")  # never overshoots
    preprocessing = Preprocessing(spec, None, None)
    x = torch.rand(1, 3, 20, 30, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    (preprocessing.apply(x) * weight).sum().backward()
    other = torch.rand_like(x)
    assert float((preprocessing.apply(other) * weight).sum()) == pytest.approx(
        float((x.grad * other).sum()), rel=1e-9
    )


def test_gray_and_color_images_are_converted_to_the_channels_of_the_network():
    gray = Preprocessing(InputSpec(channels=1, height=8, width=8), None, None)
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    prepared = gray.apply(torch.tensor(rgb).permute(2, 0, 1)[None].float())[0, 0].numpy()
    assert np.abs(prepared - np.asarray(Image.fromarray(rgb).convert("L"), dtype=float)).max() <= 0.51
    color = Preprocessing(InputSpec(channels=3, height=8, width=8), None, None)
    assert color.apply(torch.rand(2, 1, 8, 8)).shape == (2, 3, 8, 8)


def test_channels_reach_the_network_in_its_order_before_they_are_normalized():
    spec = InputSpec(height=8, width=8, resize=9, channel_order="bgr")
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    bgr, rgb = (
        Preprocessing(spec, mean, std),
        Preprocessing(InputSpec(height=8, width=8, resize=9), None, None),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for pathway in (Preprocessing.apply, Preprocessing.apply_to_files):
        expected = (pathway(rgb, to_batch(pixels))[:, [2, 1, 0]] - mean) / std
        assert torch.equal(pathway(bgr, to_batch(pixels)), expected)
    sized = torch.rand(2, 3, 8, 8)
    assert torch.equal(bgr.normalize(sized), (sized[:, [2, 1, 0]] - mean) / std)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_snapping_keeps_the_perturbation_within_the_radius_in_every_norm(norm):
    draw = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, (40, 3, 12, 12), generator=draw) / 255
    eps = {"linf": 7.7 / 255, "l2": 0.4, "l1": 3.0, "l0": 40.0}[norm]
    d = NORMS[norm].project(torch.randn(x0.shape, generator=draw), torch.full((40,), eps), -x0, 1 - x0)
    snapped = snap(x0 + d, x0, torch.full((40,), eps), NORMS[norm])
    steps = ((snapped - x0) * 255).double().round()
    assert torch.equal((snapped * 255).round() / 255, snapped)
    assert torch.all(NORMS[norm].size(steps / 255) <= eps * (1 + 1e-9))
    # It loses little: most of the radius is still used.
    assert torch.all(NORMS[norm].size(steps / 255) >= 0.85 * eps)


def test_snapping_uses_a_radius_of_whole_levels_fully():
    x0 = torch.full((1, 1, 8, 8), 100 / 255)
    snapped = snap(x0 + 2 / 255 - 1e-8, x0, torch.tensor([2 / 255]), NORMS["linf"])
    assert torch.equal(snapped, torch.full_like(x0, 102 / 255))


def test_snapping_moves_off_lattice_images_by_whole_levels_inside_the_box():
    x0 = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = (x0 + 0.02).clamp(0, 1)
    snapped = snap(x, x0, torch.full((8,), 0.02), NORMS["linf"])
    steps = (snapped - x0).double() * 255
    assert float((steps - steps.round()).abs().max()) < 2e-3
    assert snapped.max() <= 1


def test_perturbation_is_measured_in_every_norm():
    a = np.full((16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[3, 4, 1] += 51
    b[9, 9, 0] -= 51
    measured = perturbation.measure_perturbation(a, b)
    assert measured["linf"] == pytest.approx(0.2)
    assert measured["l2"] == pytest.approx(0.2 * 2**0.5)
    assert measured["l1"] == pytest.approx(0.4)
    assert measured["l0"] == 2
    assert perturbation.measure_perturbation(a, a) == {
        "linf": 0,
        "l2": 0,
        "l1": 0,
        "l0": 0,
        "tv": 0,
        "ssim": pytest.approx(1),
    }


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b = np.full((32, 32, 1), 0.4), np.full((32, 32, 1), 0.6)
    assert perturbation.ssim(a, b) == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4), rel=1e-9)


def test_ssim_of_one_window_matches_its_definition():
    # One 11 x 11 window: the definition evaluated directly.
    rng = np.random.default_rng(0)
    a, b = rng.random((11, 11)), rng.random((11, 11))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(line, line) / np.outer(line, line).sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, c = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2, (w * a * b).sum() - ma * mb
    expected = (2 * ma * mb + 1e-4) * (2 * c + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert perturbation.ssim(a[..., None], b[..., None]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(8, 9, 1), (75, 40, 3), (200, 27, 1), (13, 1100, 3)])
def test_ssim_of_images_of_any_size_matches_filters_of_scipy(shape):
    rng = np.random.default_rng(0)
    a = rng.random(shape)
    b = np.clip(a + rng.normal(0, 0.1, shape), 0, 1)
    size = min(11, *(side - 1 + side % 2 for side in shape[:2]))

    def blur(image):
        cut = slice(size // 2, -(size // 2))
        return gaussian_filter(image, 1.5, axes=(0, 1), radius=size // 2)[cut, cut]

    ma, mb = blur(a), blur(b)
    va, vb, c = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    expected = (2 * ma * mb + 1e-4) * (2 * c + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert perturbation.ssim(a, b) == pytest.approx(expected.mean(), rel=1e-12)
