"""From a user's model to the job that tries it; refuses what can be refused without loading the model."""

from __future__ import annotations

from touchstone.errors import ModelConflict, UnknownModel
from touchstone.ledger.records import LOCAL, ExamplesRef, ModelRef, Submission
from touchstone.models.file_format import Format
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, ModelStore, manifest_conflict
from touchstone.net.outbound import OutboundClient
from touchstone.registration.request import Registration, describe_model

METHOD = "probe"

LEARNED_FIELDS = ("parameters", "softmax", "gradients", "output_activation", "single_output", "sources")
"""Of a manifest: those that its trial fills in, and who said the others."""


def prepare(registration: Registration, data: bytes, *, limit: int) -> Submission:
    """The job that tries a user's model and registers it; its `file` is the blob that `data` must become.

    Raises as `describe_model` does, and ModelConflict where a model of the zoo has the id.
    """
    _check_id(registration)
    return _build_submission(describe_model(registration, data, limit=limit))


def prepare_remote(
    registration: Registration, outgoing: OutboundClient, tenant: str = LOCAL
) -> tuple[Submission, bytes]:
    """The same for a remote model, and the bytes that the blob `file` must hold. Resolves host names.

    Raises InvalidParameter, ModelConflict, AddressRefused, and RemoteUnavailable where there is no such host.
    """
    _check_id(registration)
    manifest, data = registration.build_remote_manifest(tenant)
    if manifest.remote is not None:
        outgoing.check(manifest.remote.url)
    return _build_submission(manifest), data


def prepare_known(
    registration: Registration, digest: str, file: Format, examples: ExamplesRef | None = None
) -> Submission:
    """The same for a file whose digest and format are known, and with examples."""
    _check_id(registration)
    return _build_submission(registration.build_manifest(digest, file), examples)


def find_registered(manifest: Manifest, store: ModelStore) -> Manifest | None:
    """The version of this manifest, where it is registered already.

    Raises ModelConflict where these bytes are registered under this id with another manifest.
    """
    try:
        found = store.manifest(manifest.id, manifest.digest)
    except UnknownModel:
        return None
    learned = {name: getattr(found, name) for name in LEARNED_FIELDS}
    if manifest.model_copy(update=learned) != found:
        raise manifest_conflict(manifest.id)
    return found


def _check_id(registration: Registration) -> None:
    if registration.id in ZOO.manifests():
        raise ModelConflict(
            f"id: {registration.id} is a model that comes with Touchstone; take another", field="id"
        )


def _build_submission(manifest: Manifest, examples: ExamplesRef | None = None) -> Submission:
    return Submission(
        kind="registration",
        method=METHOD,
        model=ModelRef(id=manifest.id, digest=manifest.digest),
        file=manifest.digest,
        examples=examples,
        parameters=manifest.model_dump(mode="json"),
    )
