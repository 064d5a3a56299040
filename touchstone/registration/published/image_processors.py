"""transformers' `preprocessor_config.json`: how its image processors prepare an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from touchstone.registration.published import timm_config
from touchstone.registration.published.facts import Facts, read_number, read_numbers, read_pair, refuse

SOURCE = "preprocessor_config.json"
FIELD = "preprocessor_config"

_RESAMPLES = {2: "bilinear", 3: "bicubic"}
_UNSUPPORTED = {
    "do_pad": "padding",
    "do_thumbnail": "a thumbnail",
    "do_color_quantize": "clusters of colors",
    "do_grayscale": "gray in three channels",
    "do_normalize_per_image": "a normalization by the image itself",
}
_PROCESSORS_BY_SHORTEST_EDGE = (
    *("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer"),
)
"""Where the size is one number, these resize the shortest edge to it and the others both sides."""

_WARPED_FROM = 384
"""From this size on, ConvNext's processor scales the whole image and crops nothing."""


def read_preprocessor(config: Mapping[str, Any]) -> Facts:
    """The preprocessing of an image processor. Raises InvalidParameter, which names what cannot be done."""
    if isinstance(config.get("pretrained_cfg"), Mapping):
        return Facts(SOURCE, timm_config.read_preprocessing(config["pretrained_cfg"], FIELD))
    for name, what in _UNSUPPORTED.items():
        if config.get(name):
            raise refuse(FIELD, f"{name}: {what} cannot be reproduced; export the network with it to ONNX")
    if config.get("do_resize") is False:
        raise refuse(FIELD, "do_resize is false, so it does not say how images get their size")
    order = {"input.channel_order": "bgr"} if config.get("do_flip_channel_order") else {}
    return Facts(
        SOURCE, {**_read_sizes(config), **_read_filter(config), **_read_normalization(config), **order}
    )


def _read_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size = _normalize_size(config.get("size"), kind)
    resize = _scale_size(size, kind, config)
    crop = _read_crop(config, kind, size)
    if crop is None and isinstance(resize, int):
        raise refuse(FIELD, "images keep their proportions and are not cropped to one size")
    height, width = crop or read_pair(list(resize) if isinstance(resize, tuple) else resize, "size", FIELD)
    scaled = {"input.height": height, "input.width": width}
    if crop in (None, resize):
        return {**scaled, "input.resize": None}
    return {**scaled, "input.resize": resize, "input.crop_rounding": "down"}


def _normalize_size(size: Any, kind: str) -> int | tuple[int, int]:
    """The shortest edge, or height and width."""
    if isinstance(size, Mapping):
        unknown = set(size) - {"shortest_edge", "height", "width"}
        if unknown:
            raise refuse(FIELD, f"size.{min(map(str, unknown))}: only shortest_edge, or height and width")
        if "shortest_edge" not in size:
            return read_pair(size, "size", FIELD)
        return read_pair(size["shortest_edge"], "size.shortest_edge", FIELD)[0]
    sides = read_pair(size, "size", FIELD)
    by_edge = not isinstance(size, list) and kind.startswith(_PROCESSORS_BY_SHORTEST_EDGE)
    return sides[0] if by_edge else sides


def _scale_size(size: int | tuple[int, int], kind: str, config: Mapping[str, Any]) -> int | tuple[int, int]:
    """What images are resized to, where the processor means something else by its size."""
    if kind.startswith("ConvNext") and isinstance(size, int) and size >= _WARPED_FROM:
        return size, size
    if kind.startswith("Levit") and isinstance(size, int):
        return int(256 / 224 * size)
    share = config.get("crop_pct")
    if share is None or not kind.startswith(("ConvNext", "PoolFormer")):
        return size
    if not 0 < read_number(config, "crop_pct", FIELD) <= 1:
        raise refuse(FIELD, "crop_pct must be above 0 and at most 1")
    if isinstance(size, int):
        return int(size / share)
    return int(size[0] / share) if size[0] == size[1] else (int(size[0] / share), int(size[1] / share))


def _read_crop(config: Mapping[str, Any], kind: str, size: int | tuple[int, int]) -> tuple[int, int] | None:
    if kind.startswith("ConvNext") and isinstance(size, int):
        return size, size
    if not config.get("do_center_crop") or config.get("crop_size") is None:
        return None
    return read_pair(config["crop_size"], "crop_size", FIELD)


def _read_filter(config: Mapping[str, Any]) -> dict[str, Any]:
    if "resample" not in config:
        return {}
    if config["resample"] not in _RESAMPLES:
        raise refuse(FIELD, f"resample {str(config['resample'])[:20]}: only 2 (bilinear) and 3 (bicubic)")
    return {"input.interpolation": _RESAMPLES[config["resample"]]}


def _read_normalization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of pixels in [0,1].

    A processor computes (factor · level - offset - mean) / std from levels of 0 to 255.
    """
    rescales = config.get("do_rescale", True) is not False
    factor = 255 * (read_number(config, "rescale_factor", FIELD, 1 / 255) if rescales else 1.0)
    if not factor > 0:
        raise refuse(FIELD, "rescale_factor must be positive")
    offset = 1.0 if rescales and config.get("rescale_offset") else 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.get("do_normalize", True):
        mean, std = (read_numbers(config, name, FIELD) for name in ("image_mean", "image_std"))
        if config.get("do_flip_channel_order"):  # after the normalization, so that a manifest has them turned
            mean, std = mean[::-1], std[::-1]
    return {
        "mean": tuple(_tidy((value + offset) / factor) for value in mean),
        "std": tuple(_tidy(value / factor) for value in std),
    }


def _tidy(value: float) -> float:
    """Without the last digit, which 255 · (1 / 255) may change."""
    return float(f"{value:.15g}")
