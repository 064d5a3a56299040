"""From what is known of a model to the fields of its manifest; what is missing is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from touchstone.errors import InvalidParameter
from touchstone.models.manifest import ONNX, InputSpec
from touchstone.registration.class_names import parse_classes
from touchstone.registration.published.facts import Merged

TRANSFORMERS = "transformers"


class _Input(BaseModel):
    """So that errors name fields as clients do: `input.height`."""

    input: InputSpec


def complete_fields(known: Merged) -> dict[str, Any]:
    """The fields of a manifest that may be published with a model, with all defaults filled in.

    Raises InvalidParameter, and pydantic's ValidationError.
    """
    values = known.values
    spec = _Input.model_validate({"input": _select_input(values)}).input
    return {
        "input": spec,
        "config": values.get("config"),
        "mean": _spread(values.get("mean", (0.0,)), spec.channels),
        "std": _spread(values.get("std", (1.0,)), spec.channels),
        "classes": parse_classes(values.get("classes")),
        "licence": values.get("licence", "not stated"),
        "sources": dict(known.sources),
    }


def choose_architecture(known: Merged) -> str:
    """The architecture of a safetensors file. Raises InvalidParameter where something of it is missing."""
    name = known.values.get("architecture")
    if name in (None, ONNX):
        raise InvalidParameter(
            "architecture: a safetensors file holds only weights; name an architecture of the zoo, "
            "torchvision/NAME or timm/NAME, or send the config.json of transformers, or export to ONNX",
            field="architecture",
        )
    if str(name).startswith(f"{TRANSFORMERS}/") and "config" not in known.values:
        raise InvalidParameter(
            "config: the config.json of a network of transformers is needed", field="config"
        )
    if str(name).startswith(f"{TRANSFORMERS}/") and "mean" not in known.values:
        raise InvalidParameter(
            "mean: send preprocessor_config.json too, or state mean and std, or range for pixels as they are",
            field="mean",
        )
    return str(name)


def _select_input(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the input. Raises InvalidParameter where its size is missing."""
    chosen = {name: values[f"input.{name}"] for name in InputSpec.model_fields if f"input.{name}" in values}
    for side in ("height", "width"):
        if chosen.get(side) is None:
            raise InvalidParameter(
                f"input.{side}: neither stated nor published with the model", field=f"input.{side}"
            )
    return chosen


def _spread(numbers: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number for each channel, where there is one for all."""
    return tuple(numbers) * channels if len(numbers) == 1 else tuple(numbers)
