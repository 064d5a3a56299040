"""From a user's model to a job that will try it: what can be refused without loading anything is refused."""

from __future__ import annotations

from touchstone.errors import ModelConflict, UnknownModel
from touchstone.ledger.records import LOCAL, ModelRef, Submission
from touchstone.models.file_format import Format
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, Shelf, other_manifest
from touchstone.net.outbound import Outgoing
from touchstone.registration.request import Registration, described

METHOD = "probe"


def prepare(registration: Registration, data: bytes, *, limit: int) -> Submission:
    """The job that tries a user's model and registers it; its `file` is the blob that `data` must become.

    Raises as `described` does, and ModelConflict where a model of the zoo has the id.
    """
    _check_id(registration)
    return _submission(described(registration, data, limit=limit))


def prepare_remote(
    registration: Registration, outgoing: Outgoing, tenant: str = LOCAL
) -> tuple[Submission, bytes]:
    """The same for a model behind an address, and the bytes that the blob `file` must hold. Resolves names.

    Raises InvalidParameter, ModelConflict, AddressRefused, and RemoteUnavailable where there is no such host.
    """
    _check_id(registration)
    card, told = registration.remote_manifest(tenant)
    if card.remote is not None:
        outgoing.check(card.remote.url)
    return _submission(card), told


def prepare_known(registration: Registration, digest: str, file: Format) -> Submission:
    """The same where the bytes were looked at before."""
    _check_id(registration)
    return _submission(registration.manifest(digest, file))


def known(card: Manifest, shelf: Shelf) -> Manifest | None:
    """The version of this card, where it is registered already.

    Raises ModelConflict where these bytes are registered under this id with another card.
    """
    try:
        found = shelf.manifest(card.id, card.digest)
    except UnknownModel:
        return None
    learned = {"parameters": found.parameters, "softmax": found.softmax}
    if card.model_copy(update=learned) != found:
        raise other_manifest(card.id)
    return found


def _check_id(registration: Registration) -> None:
    if registration.id in ZOO.manifests():
        raise ModelConflict(
            f"id: {registration.id} is a model that comes with Touchstone; take another", field="id"
        )


def _submission(card: Manifest) -> Submission:
    return Submission(
        kind="registration",
        method=METHOD,
        model=ModelRef(id=card.id, digest=card.digest),
        file=card.digest,
        parameters=card.model_dump(mode="json"),
    )
