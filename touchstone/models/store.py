"""Stores of models: an id finds the current version, id and digest a certain one.

Never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from touchstone.errors import ModelConflict, ModelUnusable, UnknownModel
from touchstone.models import zoo
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe

_MAX_LISTED = 20
_MIN_DIGITS = 12
_VERSION = re.compile(rf"(?:sha256:)?([0-9a-f]{{{_MIN_DIGITS},64}})")


class ModelStore(Protocol):
    """Models with their weights. A missing one raises `UnknownModel`."""

    def manifests(self) -> Mapping[str, Manifest]:
        """The current version of every model, by id. One may be read only when it is asked for, and raises
        KeyError where it was deleted meanwhile.
        """

    def digests(self, model: str) -> tuple[str, ...]:
        """The digest of every version of a model, the current one first."""

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """The current version, or the one of this digest."""

    def weights(self, manifest: Manifest) -> bytes:
        """The file of a version, checked against its digest. Raises `ModelUnusable`."""

    def registration_probe(self, manifest: Manifest) -> RegistrationProbe | None:
        """What the registration of a version measured; None for a model of the zoo."""

    def of(self, tenant: str) -> ModelStore:
        """The store as this tenant sees it."""


class ZooStore:
    """The models that come with Touchstone, one version each."""

    def __init__(self, weights_folder: Path = zoo.MANIFESTS_FOLDER) -> None:
        self._weights_folder = weights_folder

    def manifests(self) -> Mapping[str, Manifest]:
        """See `ModelStore.manifests`."""
        return zoo.manifests()

    def digests(self, model: str) -> tuple[str, ...]:
        """See `ModelStore.digests`."""
        return (zoo.find_manifest(model).digest,)

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """See `ModelStore.manifest`."""
        manifest = zoo.find_manifest(model)
        if digest not in (None, manifest.digest):
            raise unknown_version(model, str(digest))
        return manifest

    def weights(self, manifest: Manifest) -> bytes:
        """See `ModelStore.weights`."""
        return zoo.read_weights(manifest, weights_folder=self._weights_folder)

    def registration_probe(self, manifest: Manifest) -> RegistrationProbe | None:  # noqa: ARG002 - as the protocol has it
        """See `ModelStore.registration_probe`."""
        return None

    def of(self, tenant: str) -> ModelStore:  # noqa: ARG002
        """See `ModelStore.of`: all tenants share the zoo."""
        return self


ZOO: ModelStore = ZooStore()


@dataclass(frozen=True)
class SingleFileStore:
    """A store of one model, whose file is in memory."""

    entry: Manifest
    data: bytes

    def manifests(self) -> Mapping[str, Manifest]:
        """See `ModelStore.manifests`."""
        return {self.entry.id: self.entry}

    def digests(self, model: str) -> tuple[str, ...]:
        """See `ModelStore.digests`."""
        if model != self.entry.id:
            raise unknown_model(model, self.manifests())
        return (self.entry.digest,)

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """See `ModelStore.manifest`."""
        if digest not in (None, *self.digests(model)):
            raise unknown_version(model, str(digest))
        return self.entry

    def weights(self, manifest: Manifest) -> bytes:  # noqa: ARG002 - there is but one
        """See `ModelStore.weights`."""
        return self.data

    def registration_probe(self, manifest: Manifest) -> RegistrationProbe | None:  # noqa: ARG002
        """See `ModelStore.registration_probe`."""
        return None

    def of(self, tenant: str) -> ModelStore:  # noqa: ARG002
        """See `ModelStore.of`."""
        return self


def list_manifests(store: ModelStore) -> Iterator[Manifest]:
    """The current version of every model, read one after the other."""
    manifests = store.manifests()
    for model in manifests:
        with suppress(KeyError):
            yield manifests[model]


def find_model(store: ModelStore, name: str) -> Manifest:
    """The version that a client names: `ID`, `ID@sha256:…`, or `ID@` and a unique prefix of the digest."""
    model, at, version = name.partition("@")
    if not at:
        return store.manifest(model)
    digests, digits = store.digests(model), _VERSION.fullmatch(version)
    if digits is None:
        raise unknown_version(
            model, version, why=f"give {_MIN_DIGITS} to 64 hexadecimal digits of its digest"
        )
    found = [digest for digest in digests if digest.startswith(f"sha256:{digits[1]}")]
    if not found:
        raise unknown_version(model, version)
    if len(found) > 1:
        raise unknown_version(model, version, why=f"{len(found)} versions begin so; give more digits")
    return store.manifest(model, found[0])


def find_pinned(store: ModelStore, model: str, digest: str) -> Manifest:
    """The version that a job was accepted for. Raises ModelUnusable where it was deleted."""
    try:
        return store.manifest(model, digest)
    except UnknownModel:
        raise ModelUnusable(
            f"{model} was deleted or replaced after the job was accepted; submit it again"
        ) from None


def unknown_model(model: str, known: Mapping[str, Manifest]) -> UnknownModel:
    """The error for an unknown id; lists the known ones."""
    named = ", ".join(list(known)[:_MAX_LISTED]) or "none"
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    return UnknownModel(f"there is no model named {model[:60]!r}; there are: {named}{more}", field="model")


def unknown_version(
    model: str, version: str, *, why: str = "it never existed, or was deleted"
) -> UnknownModel:
    """The error for an unknown version of a known model."""
    return UnknownModel(f"{model[:64]} has no version {version[:80]!r}: {why}", field="model")


def manifest_conflict(model: str) -> ModelConflict:
    """The error where these bytes are a version of the model already, with another manifest."""
    return ModelConflict(
        f"{model} has these bytes already, with another manifest; delete it first, or take another id",
        field="id",
    )
