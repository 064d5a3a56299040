"""`python -m touchstone.registration.published.packages_process ARCHITECTURE`: print what is published with
an architecture of an installed package, as JSON.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from touchstone.errors import Failure
from touchstone.models.libraries.installed import import_package
from touchstone.registration.published import timm_config

_IMAGENET = re.compile(r"(^|_)in1k$")


def main() -> None:
    """Print the facts of one architecture, or an error."""
    package, _, name = sys.argv[1].partition("/")
    try:
        found = {"torchvision": read_torchvision, "timm": read_timm}[package](name)
    except Failure as failure:
        found = {"error": failure.detail}
    except (ValueError, KeyError, RuntimeError) as unknown:
        found = {"error": f"{package} knows no such architecture ({unknown})"}
    sys.stdout.write(json.dumps(found))


def read_torchvision(name: str) -> dict[str, Any]:
    """The transforms and categories of an architecture's default weights."""
    package = import_package("torchvision")
    weights = package.models.get_model_weights(name).DEFAULT
    prepares = weights.transforms()
    [resize], [crop] = prepares.resize_size, prepares.crop_size
    values = {
        "input.channels": 3,
        "input.height": crop,
        "input.width": crop,
        "input.resize": resize,
        "input.interpolation": prepares.interpolation.value,
        **_normalization(name, prepares),
        "classes": [category.strip() for category in weights.meta["categories"]],
    }
    return {"source": f"torchvision {package.__version__}, {weights}", "values": values}


def _normalization(name: str, prepares: Any) -> dict[str, Any]:
    """Mean and standard deviation. The published googlenet and inception_v3 undo theirs, and use 0.5."""
    if name in ("googlenet", "inception_v3"):
        return {"mean": [0.5] * 3, "std": [0.5] * 3}
    return {"mean": list(prepares.mean), "std": list(prepares.std)}


def read_timm(name: str) -> dict[str, Any]:
    """The `pretrained_cfg` of an architecture, and the names of its classes where these are ImageNet's."""
    package = import_package("timm")
    found = package.get_pretrained_cfg(name, allow_unregistered=False)
    if found is None:
        return {"error": f"timm {package.__version__} publishes nothing for it"}
    published = json.loads(json.dumps(found.to_dict()))
    values = timm_config.read_preprocessing(published, "input")
    if published.get("num_classes") == 1000 and _IMAGENET.search(published.get("tag") or ""):
        values["classes"] = package.data.ImageNetInfo().label_descriptions()
    return {"source": f"timm {package.__version__}, {found.architecture}.{found.tag}", "values": values}


if __name__ == "__main__":
    main()
