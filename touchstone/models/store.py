"""How anything finds a model: by id for the version that is current, by id and digest for a certain one.

Never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from touchstone.errors import ModelConflict, ModelUnusable, UnknownModel
from touchstone.models import zoo
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Shown

_NAMED = 20
_SHORTEST = 12
_VERSION = re.compile(rf"(?:sha256:)?([0-9a-f]{{{_SHORTEST},64}})")


class Shelf(Protocol):
    """Models with their weights. What is not there raises `UnknownModel`."""

    def manifests(self) -> Mapping[str, Manifest]:
        """The current version of every model, by id."""

    def versions(self, model: str) -> tuple[Manifest, ...]:
        """Every version of a model, the current one first."""

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """The current version, or the one of this digest."""

    def weights(self, card: Manifest) -> bytes:
        """The file of a version, once it is known to be that. Raises `ModelUnusable`."""

    def examined(self, card: Manifest) -> Shown | None:
        """What was found out about a version when it was registered; None of one that came along."""

    def of(self, tenant: str) -> Shelf:
        """The same as this tenant sees it."""


class Zoo:
    """The models that come with Touchstone, one version each."""

    def __init__(self, beside: Path = zoo.CARDS) -> None:
        self._beside = beside

    def manifests(self) -> Mapping[str, Manifest]:
        """See `Shelf.manifests`."""
        return zoo.manifests()

    def versions(self, model: str) -> tuple[Manifest, ...]:
        """See `Shelf.versions`."""
        return (zoo.manifest(model),)

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """See `Shelf.manifest`."""
        card = zoo.manifest(model)
        if digest not in (None, card.digest):
            raise no_version(model, str(digest))
        return card

    def weights(self, card: Manifest) -> bytes:
        """See `Shelf.weights`."""
        return zoo.read_weights(card, beside=self._beside)

    def examined(self, card: Manifest) -> Shown | None:  # noqa: ARG002 - as the protocol has it
        """See `Shelf.examined`."""
        return None

    def of(self, tenant: str) -> Shelf:  # noqa: ARG002
        """See `Shelf.of`: these are everybody's."""
        return self


ZOO: Shelf = Zoo()


@dataclass(frozen=True)
class OneFile:
    """A shelf with one model on it, whose file is at hand."""

    card: Manifest
    data: bytes

    def manifests(self) -> Mapping[str, Manifest]:
        """See `Shelf.manifests`."""
        return {self.card.id: self.card}

    def versions(self, model: str) -> tuple[Manifest, ...]:
        """See `Shelf.versions`."""
        if model != self.card.id:
            raise no_model(model, self.manifests())
        return (self.card,)

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """See `Shelf.manifest`."""
        [card] = self.versions(model)
        if digest not in (None, card.digest):
            raise no_version(model, str(digest))
        return card

    def weights(self, card: Manifest) -> bytes:  # noqa: ARG002 - there is but one
        """See `Shelf.weights`."""
        return self.data

    def examined(self, card: Manifest) -> Shown | None:  # noqa: ARG002
        """See `Shelf.examined`."""
        return None

    def of(self, tenant: str) -> Shelf:  # noqa: ARG002
        """See `Shelf.of`."""
        return self


def find(shelf: Shelf, name: str) -> Manifest:
    """The version that a client names: `ID`, `ID@sha256:…`, or `ID@` and enough of the digest to tell it."""
    model, at, version = name.partition("@")
    if not at:
        return shelf.manifest(model)
    versions, digits = shelf.versions(model), _VERSION.fullmatch(version)
    if digits is None:
        raise no_version(model, version, why=f"give {_SHORTEST} to 64 hexadecimal digits of its digest")
    found = [card for card in versions if card.digest.startswith(f"sha256:{digits[1]}")]
    if not found:
        raise no_version(model, version)
    if len(found) > 1:
        raise no_version(model, version, why=f"{len(found)} versions begin so; give more digits")
    return found[0]


def bound(shelf: Shelf, model: str, digest: str) -> Manifest:
    """The version that a job was accepted for. Raises ModelUnusable where it is there no longer."""
    try:
        return shelf.manifest(model, digest)
    except UnknownModel:
        raise ModelUnusable(
            f"{model} was deleted or replaced after the job was accepted; submit it again"
        ) from None


def no_model(model: str, known: Mapping[str, Manifest]) -> UnknownModel:
    """There is none of this id; names those that there are."""
    named = ", ".join(list(known)[:_NAMED]) or "none"
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return UnknownModel(f"there is no model named {model[:60]!r}; there are: {named}{more}", field="model")


def no_version(model: str, version: str, *, why: str = "it was never there, or was deleted") -> UnknownModel:
    """There is a model of this id, but no such version."""
    return UnknownModel(f"{model[:64]} has no version {version[:80]!r}: {why}", field="model")


def other_manifest(model: str) -> ModelConflict:
    """These bytes are a version of the model already, and their card says something else."""
    return ModelConflict(
        f"{model} has these bytes already, with another manifest; delete it first, or take another id",
        field="id",
    )
