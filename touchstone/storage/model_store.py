"""All models of a service: the zoo's, and those that each tenant has registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from touchstone.errors import ModelUnusable, UnknownArtifact
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.model_versions import ModelVersions
from touchstone.ledger.records import LOCAL
from touchstone.ledger.replies import ModelVersion, VersionRef
from touchstone.ledger.sized_cache import SizedCache
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe
from touchstone.models.store import ZOO, unknown_model, unknown_version
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs

CACHE_LETTERS = 8 * 2**20
"""Of the manifests that a process keeps, as JSON; in memory they take up to ten times as much."""

_Key = tuple[str, VersionRef]
"""Tenant and version."""


class _CurrentManifests(Mapping[str, Manifest]):
    """The zoo's manifests, then those of registered models, each read when it is asked for."""

    def __init__(self, store: RegisteredStore, current: Mapping[str, VersionRef]) -> None:
        self._store = store
        self._current = current

    def __getitem__(self, model: str) -> Manifest:
        if model in ZOO.manifests():
            return ZOO.manifest(model)
        for version in self._store.read_versions([self._current[model]]):
            return version.manifest
        raise KeyError(model)

    def __contains__(self, model: object) -> bool:
        return model in ZOO.manifests() or model in self._current

    def __iter__(self) -> Iterator[str]:
        yield from ZOO.manifests()
        yield from self._current

    def __len__(self) -> int:
        return len(ZOO.manifests()) + len(self._current)


class RegisteredStore:
    """A `ModelStore`: models of the zoo come from there, all others from the ledger and the blobs.

    Versions never change, so those used last are kept; which of them is current is read each time.
    """

    def __init__(self, ledger: Ledger, blobs: Blobs, tenant: str = LOCAL) -> None:
        self._ledger = ledger
        self._versions = ModelVersions(ledger.client, ledger.scripts, ledger.large_values, tenant)
        self._blobs = blobs
        self._tenant = tenant
        self._cache = SizedCache[_Key, ModelVersion](CACHE_LETTERS)

    def manifests(self) -> Mapping[str, Manifest]:
        """See `ModelStore.manifests`; the zoo's come first."""
        current = {model: refs[0] for model, refs in self._versions.all().items()}
        return _CurrentManifests(self, current)

    def digests(self, model: str) -> tuple[str, ...]:
        """See `ModelStore.digests`."""
        if model in ZOO.manifests():
            return ZOO.digests(model)
        return tuple(ref.digest for ref in self._read_refs(model))

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """See `ModelStore.manifest`."""
        if model in ZOO.manifests():
            return ZOO.manifest(model, digest)
        return self._find_version(model, digest).manifest

    def weights(self, manifest: Manifest) -> bytes:
        """See `ModelStore.weights`."""
        if manifest.id in ZOO.manifests():
            return ZOO.weights(manifest)
        try:
            return self._blobs.get(manifest.digest)
        except UnknownArtifact as missing:
            raise ModelUnusable(f"{manifest.id}: its file is missing: {missing.detail}") from None

    def registration_probe(self, manifest: Manifest) -> RegistrationProbe | None:
        """See `ModelStore.registration_probe`."""
        if manifest.id in ZOO.manifests():
            return None
        refs = [ref for ref in self._versions.of(manifest.id) if ref.digest == manifest.digest]
        return next((version.probe for version in self.read_versions(refs)), None)

    def of(self, tenant: str) -> RegisteredStore:
        """See `ModelStore.of`; all share one cache."""
        other = RegisteredStore(self._ledger, self._blobs, tenant)
        other._cache = self._cache
        return other

    def _find_version(self, model: str, digest: str | None) -> ModelVersion:
        wanted = [ref for ref in self._read_refs(model) if digest in (None, ref.digest)]
        for version in self.read_versions(wanted[:1]):
            return version
        raise unknown_version(model, str(digest or "that can be read"))

    def _read_refs(self, model: str) -> tuple[VersionRef, ...]:
        refs = self._versions.of(model)
        if not refs:
            raise unknown_model(model, self.manifests())
        return refs

    def read_versions(self, refs: Sequence[VersionRef]) -> list[ModelVersion]:
        """These versions of the tenant, without those that were deleted."""
        known = {ref: self._cache.get((self._tenant, ref)) for ref in refs}
        unread = [ref for ref, version in known.items() if version is None]
        for version in self._versions.read(unread):
            known[version.ref] = version
            self._cache.put((self._tenant, version.ref), version, version.size)
        return [version for version in known.values() if version]


def open_registered_store(settings: Settings) -> RegisteredStore:
    """The models of the service that these settings describe."""
    blobs = open_blobs(settings)
    return RegisteredStore(Ledger(ledger_url(settings), settings, blobs), blobs)
