"""transformers' `config.json`: the class of the network, its parameters and the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from touchstone.models.libraries.classifiers import CLASSIFIERS
from touchstone.registration.published import timm_config
from touchstone.registration.published.facts import Facts, read_pair, refuse
from touchstone.registration.published.timm_config import check_value

SOURCE = "config.json"
FIELD = "config"

_PARTS = ("vision_config", "text_config")
_IGNORED = frozenset(
    {"architectures", "id2label", "label2id", "num_labels", "model_type", "dtype", "torch_dtype"}
)
_MAX_FIELDS = 300


def read_config(config: Mapping[str, Any]) -> Facts:
    """What a `config.json` of transformers or timm says. Raises InvalidParameter."""
    if timm_config.is_timm(config):
        return timm_config.read_config(config)
    for name in ("auto_map", "custom_pipelines"):
        if config.get(name):
            raise refuse(
                FIELD, f"{name} names code of the model's own, which is never run; export it to ONNX"
            )
    if config.get("quantization_config"):
        raise refuse(FIELD, "quantization_config: save the weights as float32, float16 or bfloat16")
    values = {"architecture": f"transformers/{_find_class(config)}", "config": _select_values(config)}
    return Facts(SOURCE, values | {"classes": _read_classes(config)} | _read_input(config))


def _find_class(config: Mapping[str, Any]) -> str:
    """The class that `architectures` names, or the first for its `model_type`."""
    kind, named = config.get("model_type"), config.get("architectures")
    if isinstance(named, list) and len(named) == 1:
        if CLASSIFIERS.get(str(named[0])) != kind:
            raise refuse(FIELD, f"architectures: {named[0]!r:.80} of the type {kind!r:.40} {_expectation()}")
        return str(named[0])
    known = [name for name, model_type in CLASSIFIERS.items() if model_type == kind]
    if not known:
        raise refuse(FIELD, f"model_type: {kind!r:.40} {_expectation()}")
    return known[0]


def _expectation() -> str:
    return f"is no classifier of images that can be built: {', '.join(sorted(set(CLASSIFIERS.values())))}"


def _select_values(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Numbers, texts and lists that may build the network; the package takes those that it knows."""
    if len(config) > _MAX_FIELDS:
        raise refuse(FIELD, f"{len(config):,} fields; at most {_MAX_FIELDS} are possible")
    plain = {
        name: check_value(value, path + name[:60])
        for name, value in config.items()
        if not isinstance(value, Mapping) and not _is_ignored(name)
    }
    parts = {
        name: _select_values(config[name], f"{name}.")
        for name in _PARTS
        if not path and isinstance(config.get(name), Mapping)
    }
    return plain | parts


def _is_ignored(name: str) -> bool:
    return name in _IGNORED or name.startswith("_") or name == "transformers_version"


def _read_classes(config: Mapping[str, Any]) -> list[Any]:
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or not 2 <= count <= 100_000:
            raise refuse(FIELD, "num_labels must be 2 to 100,000")
        return [f"LABEL_{index}" for index in range(count)]
    if not isinstance(names, Mapping) or set(names) != {str(index) for index in range(len(names))}:
        raise refuse(FIELD, 'id2label must name the classes by their numbers, from "0" on without a gap')
    return [names[str(index)] for index in range(len(names))]


def _read_input(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = config.get("vision_config")
    source = vision if isinstance(vision, Mapping) else config
    values: dict[str, Any] = {}
    if "image_size" in source:
        height, width = read_pair(source["image_size"], "image_size", FIELD)
        values |= {"input.height": height, "input.width": width}
    if "num_channels" in source:
        values["input.channels"] = source["num_channels"]
    return values
