"""The files of a registration: received to the disk, and made the one file that a model is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread
from fastapi import Request

from service.state.backend import TenantBackend
from service.submissions import file_uploads
from service.submissions.disk_space import check_disk_space
from service.submissions.file_uploads import SpooledFile, UploadedForm
from touchstone.models.file_format import Format
from touchstone.registration import examples, model_files
from touchstone.registration.examples import Examples


@dataclass(frozen=True)
class StoredModel:
    """The file of a model on the disk, its digest and its format."""

    path: Path
    digest: str
    format: Format


async def receive(request: Request, backend: TenantBackend, stack: AsyncExitStack) -> UploadedForm:
    """The form of a registration, once the disk has space for it; its files live as long as the stack."""
    limit = backend.settings.model_limit
    # No more than the limit is written, also of a body that is larger or does not state its size.
    size = min(limit + examples.MAX_BYTES, int(request.headers.get("content-length", limit)))
    limits = {"file": limit, "data": limit, examples.FIELD: examples.MAX_BYTES}
    with backend.pending_uploads.reserve(backend.ledger.tenant, size):
        await to_thread.run_sync(_check_space, backend)
        receiving = file_uploads.receive_form(request, backend.blobs, limits, total=limit)
        return await stack.enter_async_context(receiving)


async def make_one_file(backend: TenantBackend, form: UploadedForm, stack: AsyncExitStack) -> StoredModel:
    """The file of a model, made of those that were sent; its space on the disk is reserved meanwhile.

    Raises as `touchstone.registration.model_files.open_model` does.
    """
    tenant = backend.ledger.tenant
    size = await backend.check_threads.run(tenant, _joined_bytes, form)
    with backend.pending_uploads.reserve(tenant, size):
        if size:
            await to_thread.run_sync(_check_space, backend)
        limits = {"joined": backend.settings.model_limit}
        spools = await stack.enter_async_context(file_uploads.open_spools(backend.blobs, limits))
        return await backend.check_threads.run(tenant, _join, backend, form, spools["joined"])


def _check_space(backend: TenantBackend) -> None:
    """Whether the disk and the tenant's quota have space for these files and all others being uploaded."""
    check_disk_space(backend, backend.pending_uploads.all)
    backend.ledger.check_storage(backend.pending_uploads.of(backend.ledger.tenant))


def _joined_bytes(form: UploadedForm) -> int:
    file = form.files["file"]
    return model_files.joined_bytes(file.path, _other_files(form), limit=file.limit)


def _other_files(form: UploadedForm) -> dict[str, Path]:
    """The file of weights, under the name that the ONNX file knows it by."""
    return {form.filenames["data"]: form.files["data"].path} if "data" in form.files else {}


def _join(backend: TenantBackend, form: UploadedForm, target: SpooledFile) -> StoredModel:
    file, scratch = form.files["file"], backend.blobs.incoming_folder()
    with model_files.open_model(file.path, _other_files(form), limit=file.limit, scratch=scratch) as model:
        if model.alone:
            return StoredModel(file.path, file.digest, model.format)
        for chunk in model.joined.chunks():
            target.write(chunk)
    target.close()
    return StoredModel(target.path, target.digest, model.format)


def read_examples(backend: TenantBackend, form: UploadedForm, classes: Sequence[str]) -> Examples:
    """The examples that were sent, decoded, and their labels met with the classes.

    Raises as `touchstone.registration.examples.prepare_examples` does.
    """
    decoders = backend.decoders.of(backend.ledger.tenant)
    with form.files[examples.FIELD].path.open("rb") as archive:
        return examples.prepare_examples(archive, classes, decoders.canonical)
