"""All models of a service: the zoo's, and those that users registered, each tenant's for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from touchstone.errors import ModelUnusable, UnknownArtifact
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import LOCAL
from touchstone.ledger.replies import Version, VersionRef
from touchstone.ledger.tenant_ledger import Holdings
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Shown
from touchstone.models.store import ZOO, no_model, no_version
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs


class Registry:
    """A `Shelf`: what the zoo has comes from there, everything else from the ledger and the blobs.

    Versions never change, so they are read once; which of them is current is asked each time.
    """

    def __init__(self, ledger: Ledger, blobs: Blobs, tenant: str = LOCAL) -> None:
        self._ledger = ledger
        self._versions = Holdings.of(ledger, tenant).versions
        self._blobs = blobs
        self._tenant = tenant
        self._known: dict[tuple[str, VersionRef], Version] = {}

    def manifests(self) -> Mapping[str, Manifest]:
        """See `Shelf.manifests`; the zoo's come first."""
        current = [refs[0] for refs in self._versions.all().values()]
        return {**ZOO.manifests(), **{one.card.id: one.card for one in self._read(current)}}

    def versions(self, model: str) -> tuple[Manifest, ...]:
        """See `Shelf.versions`."""
        if model in ZOO.manifests():
            return ZOO.versions(model)
        return tuple(version.card for version in self._of(model))

    def manifest(self, model: str, digest: str | None = None) -> Manifest:
        """See `Shelf.manifest`."""
        if model in ZOO.manifests():
            return ZOO.manifest(model, digest)
        return self._version(model, digest).card

    def weights(self, card: Manifest) -> bytes:
        """See `Shelf.weights`."""
        if card.id in ZOO.manifests():
            return ZOO.weights(card)
        try:
            return self._blobs.get(card.digest)
        except UnknownArtifact as missing:
            raise ModelUnusable(f"{card.id}: its file is gone: {missing.detail}") from None

    def examined(self, card: Manifest) -> Shown | None:
        """See `Shelf.examined`."""
        if card.id in ZOO.manifests():
            return None
        refs = [ref for ref in self._versions.of(card.id) if ref.digest == card.digest]
        return next((version.examined for version in self._read(refs)), None)

    def of(self, tenant: str) -> Registry:
        """See `Shelf.of`; what one has read, all know."""
        other = Registry(self._ledger, self._blobs, tenant)
        other._known = self._known
        return other

    def _version(self, model: str, digest: str | None) -> Version:
        found = [one for one in self._of(model) if digest in (None, one.card.digest)]
        if not found:
            raise no_version(model, str(digest))
        return found[0]

    def _of(self, model: str) -> list[Version]:
        refs = self._versions.of(model)
        if not refs:
            raise no_model(model, self.manifests())
        return self._read(refs)

    def _read(self, refs: Sequence[VersionRef]) -> list[Version]:
        own = {ref: (self._tenant, ref) for ref in refs}
        unread = [ref for ref, key in own.items() if key not in self._known]
        self._known.update({own[version.ref]: version for version in self._versions.read(unread)})
        return [self._known[key] for key in own.values() if key in self._known]


def open_registry(settings: Settings) -> Registry:
    """The models of the service that these settings describe."""
    return Registry(Ledger(ledger_url(settings), settings), open_blobs(settings))
