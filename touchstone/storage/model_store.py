"""All models of a service: the zoo's, and those that each tenant has registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from touchstone.errors import ModelUnusable, UnknownArtifact
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.model_versions import ModelVersions
from touchstone.ledger.records import LOCAL
from touchstone.ledger.replies import ModelVersion, VersionRef
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RegistrationProbe
from touchstone.models.store import ZOO, unknown_model, unknown_version
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs


class RegisteredStore:
    """A `ModelStore`: models of the zoo come from there, all others from the ledger and the blobs.

    Versions never change, so they are read once; which of them is current is read each time.
    """

    def __init__(self, ledger: Ledger, blobs: Blobs, tenant: str = LOCAL) -> None:
        self._ledger = ledger
        self._versions = ModelVersions(ledger.client, ledger.scripts, tenant)
        self._blobs = blobs
        self._tenant = tenant
        self._cache: dict[tuple[str, VersionRef], ModelVersion] = {}

    def manifests(self) -> Mapping[str, Manifest]:
        """See `ModelStore.manifests`; the zoo's come first."""
        current = [refs[0] for refs in self._versions.all().values()]
        return {**ZOO.manifests(), **{one.manifest.id: one.manifest for one in self._read_cached(current)}}

    def versions(self, model: str) -> tuple[Manifest, ...]:
        """See `ModelStore.versions`."""
        if model in ZOO.manifests():
            return ZOO.versions(model)
        return tuple(version.manifest for version in self._read_versions(model))

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
        return next((version.probe for version in self._read_cached(refs)), None)

    def of(self, tenant: str) -> RegisteredStore:
        """See `ModelStore.of`; all share one cache."""
        other = RegisteredStore(self._ledger, self._blobs, tenant)
        other._cache = self._cache
        return other

    def _find_version(self, model: str, digest: str | None) -> ModelVersion:
        found = [one for one in self._read_versions(model) if digest in (None, one.manifest.digest)]
        if not found:
            raise unknown_version(model, str(digest))
        return found[0]

    def _read_versions(self, model: str) -> list[ModelVersion]:
        refs = self._versions.of(model)
        if not refs:
            raise unknown_model(model, self.manifests())
        return self._read_cached(refs)

    def _read_cached(self, refs: Sequence[VersionRef]) -> list[ModelVersion]:
        own = {ref: (self._tenant, ref) for ref in refs}
        unread = [ref for ref, key in own.items() if key not in self._cache]
        self._cache.update({own[version.ref]: version for version in self._versions.read(unread)})
        return [self._cache[key] for key in own.values() if key in self._cache]


def open_registered_store(settings: Settings) -> RegisteredStore:
    """The models of the service that these settings describe."""
    return RegisteredStore(Ledger(ledger_url(settings), settings), open_blobs(settings))
