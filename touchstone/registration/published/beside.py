"""Files that are published beside a model's weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from touchstone.errors import InvalidParameter

NAMES: Mapping[str, str] = {"config": "config.json", "preprocessor_config": "preprocessor_config.json"}
_USUAL_NAMES = ("model", "pytorch_model")
_PACKAGES = ("timm", "transformers")


def read_beside(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a registration, with `config.json` and `preprocessor_config.json` where they are beside a
    safetensors file and the fields do not have them. Raises InvalidParameter.
    """
    architecture = fields.get("architecture")
    foreign = architecture is not None and str(architecture).split("/")[0] not in _PACKAGES
    if file.suffix != ".safetensors" or foreign:
        return dict(fields)
    found = {
        field: read_object(file.with_name(name), field)
        for field, name in NAMES.items()
        if field not in fields and file.with_name(name).is_file()
    }
    return {**found, **fields}


def is_configured(file: Path) -> bool:
    """Whether it is a safetensors file with a `config.json` beside it."""
    return file.suffix == ".safetensors" and file.is_file() and file.with_name(NAMES["config"]).is_file()


def default_id(file: Path) -> str:
    """An id after the name of a file; after its folder, where the file is named like all are."""
    path = file.absolute()
    name = path.parent.name if path.stem in _USUAL_NAMES else path.stem
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64] or "model"


def read_object(path: Path, field: str) -> dict[str, Any]:
    """A JSON object. Raises InvalidParameter."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidParameter(f"{field}: {path} cannot be read as JSON: {error}", field=field) from None
    if not isinstance(value, dict):
        raise InvalidParameter(f"{field}: {path} holds no JSON object", field=field)
    return value
