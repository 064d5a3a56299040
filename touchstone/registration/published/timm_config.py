"""timm's `config.json`, and the `pretrained_cfg` in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from touchstone.registration.published.facts import Facts, read_number, read_numbers, read_pair, refuse

SOURCE = "config.json"
FIELD = "config"

_ARGUMENTS = frozenset(
    {
        *("img_size", "patch_size", "window_size", "embed_dim", "depth", "depths", "num_heads", "mlp_ratio"),
        *("global_pool", "class_token", "reg_tokens", "no_embed_class", "pos_embed", "init_values"),
        *("qkv_bias", "act_layer", "norm_layer", "fc_norm", "in_chans", "num_classes", "drop_path_rate"),
    }
)
"""Arguments of architectures that a file may choose; others may name files or code."""


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is timm's."""
    return isinstance(config.get("architecture"), str)


def read_config(config: Mapping[str, Any]) -> Facts:
    """Architecture, classes and preprocessing. Raises InvalidParameter."""
    nested = config.get("pretrained_cfg")
    published = {**config, **nested} if isinstance(nested, Mapping) else config
    values = {"architecture": f"timm/{config['architecture'][:100]}", "config": _read_arguments(config)}
    license_name = published.get("license")
    return Facts(
        SOURCE,
        values
        | read_preprocessing(published, FIELD)
        | _read_classes({**config, "num_classes": config.get("num_classes", published.get("num_classes"))})
        | ({"licence": license_name} if isinstance(license_name, str) else {}),
    )


def read_preprocessing(published: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The preprocessing of a `pretrained_cfg`, as timm's own evaluation does it."""
    if "input_size" not in published:
        return {}
    channels, height, width = _read_shape(published["input_size"], field)
    share = read_number(published, "crop_pct", field, 0.875)
    if not 0 < share <= 1:
        raise refuse(field, "crop_pct must be above 0 and at most 1")
    scaled = math.floor(height / share), math.floor(width / share)
    return {
        "input.channels": channels,
        "input.height": height,
        "input.width": width,
        "input.resize": _read_resize(published, scaled, (height, width), field),
        "input.interpolation": _read_filter(published, field),
        "mean": read_numbers(published, "mean", field),
        "std": read_numbers(published, "std", field),
    }


def _read_shape(shape: Any, field: str) -> tuple[int, int, int]:
    if not isinstance(shape, list) or len(shape) != 3 or shape[0] not in (1, 3):
        raise refuse(field, "input_size must be channels (1 or 3), height and width")
    return shape[0], *read_pair(shape[1:], "input_size", field)


def _read_resize(
    published: Mapping[str, Any], scaled: tuple[int, int], size: tuple[int, int], field: str
) -> int | tuple[int, int] | None:
    mode = published.get("crop_mode") or "center"
    if mode == "squash":
        return None if scaled == size else scaled
    if mode != "center" or scaled[0] != scaled[1]:
        raise refuse(field, f"crop_mode {str(mode)[:20]!r} at this size is not supported; state input.resize")
    return scaled[0]


def _read_filter(published: Mapping[str, Any], field: str) -> str:
    name = published.get("interpolation", "bilinear")
    if name not in ("bilinear", "bicubic"):
        raise refuse(field, f"interpolation {str(name)[:20]!r}: only bilinear and bicubic")
    return str(name)


def _read_arguments(config: Mapping[str, Any]) -> dict[str, Any] | None:
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise refuse(FIELD, "model_args must be an object")
    unknown = sorted(set(arguments) - _ARGUMENTS)
    if unknown:
        raise refuse(FIELD, f"model_args.{unknown[0][:60]}: only {', '.join(sorted(_ARGUMENTS))}")
    return {
        name: check_value(value, f"model_args.{name}")
        for name, value in arguments.items()
        if name not in ("in_chans", "num_classes")
    } or None


def check_value(value: Any, name: str) -> Any:
    """A value of a network's configuration, bounded. Raises InvalidParameter."""
    if isinstance(value, list) and len(value) <= 100:
        return [check_value(one, name) for one in value]
    bounded = isinstance(value, int | float) and abs(value) <= 1e6
    if value is None or bounded or (isinstance(value, str) and len(value) <= 100):
        return value
    raise refuse(FIELD, f"{name}: expected a number of at most 1,000,000, a short text, or a list of such")


def _read_classes(config: Mapping[str, Any]) -> dict[str, Any]:
    names, described = config.get("label_names"), config.get("label_descriptions")
    if not isinstance(names, list):
        return {}
    texts = described if isinstance(described, Mapping) else {}
    if config.get("num_classes") not in (None, len(names)):
        raise refuse(
            FIELD, f"num_classes is {str(config['num_classes'])[:20]}, label_names are {len(names):,}"
        )
    return {"classes": [texts.get(name, name) if isinstance(name, str) else name for name in names]}
