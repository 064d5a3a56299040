"""The models that come with Touchstone: their manifests and weights. Never imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from touchstone.errors import ModelUnusable, UnknownModel
from touchstone.models.manifest import Manifest

MANIFESTS_FOLDER = Path(__file__).with_name("cards")


@cache
def manifests() -> Mapping[str, Manifest]:
    """All models by id."""
    found = [
        Manifest.model_validate_json(path.read_bytes()) for path in sorted(MANIFESTS_FOLDER.glob("*.json"))
    ]
    return MappingProxyType({manifest.id: manifest for manifest in found})


def find_manifest(model: str) -> Manifest:
    """The manifest of this id; UnknownModel lists those that exist."""
    known = manifests()
    if model not in known:
        raise UnknownModel(
            f"there is no model named {model[:60]!r}; there are: {', '.join(known) or 'none'}", field="model"
        )
    return known[model]


def weights_file(manifest: Manifest, *, weights_folder: Path = MANIFESTS_FOLDER) -> Path:
    """The path of a manifest's weights: in `weights_folder`, or in the installed package that the manifest
    names.

    The package is found, not imported. Raises ModelUnusable where it is not installed, or where the file's
    name leads elsewhere.
    """
    folder = (
        weights_folder
        if manifest.weights.package is None
        else _package_folder(manifest.weights.package, manifest.id)
    )
    path = (folder / manifest.weights.file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelUnusable(
            f"{manifest.id}: the weights file {manifest.weights.file!r} is outside its folder"
        )
    return path


def read_weights(manifest: Manifest, *, weights_folder: Path = MANIFESTS_FOLDER) -> bytes:
    """The weights file, checked against the manifest's digest. Raises ModelUnusable."""
    path = weights_file(manifest, weights_folder=weights_folder)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelUnusable(f"{manifest.id}: cannot read {path.name}: {error.strerror}") from None
    if (found := f"sha256:{hashlib.sha256(data).hexdigest()}") != manifest.digest:
        raise ModelUnusable(
            f"{manifest.id}: {path.name} is not the file of the manifest: {found}, not {manifest.digest}"
        )
    return data


def _package_folder(package: str, model: str) -> Path:
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnusable(f"{model}: the package {package!r} that holds its weights is not installed")
    return Path(spec.submodule_search_locations[0])
