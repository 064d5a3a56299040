"""The files of a job, whole or in part; a file never changes, so caches keep it."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Request, Response

from service import headers as request_headers, problems
from service.auth.permissions import reader
from service.dependencies import KnownJob, Tenant
from service.downloads import ByteRange, find_file, parse_range, send

router = APIRouter(tags=["jobs"], dependencies=[reader])
_CONTENT = {
    "image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}, "example": "(a PNG file)"},
    "application/octet-stream": {
        "schema": {"type": "string", "contentMediaType": "application/octet-stream"}
    },
}
Name = Annotated[
    str,
    Path(
        description="As the job's links name it.",
        examples=["adversarial.png"],
        json_schema_extra={"pattern": r"^[a-z]+\.(png|npy|json)$"},
    ),
]


@router.get(
    "/v1/jobs/{job}/artifacts/{name}",
    operation_id="get_artifact",
    summary="A file of a job",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": _CONTENT},
        206: {"description": "A part of the file.", "content": _CONTENT},
        304: {"description": "The client has the file already."},
        **problems.responses(404, 416, 422),
    },
)
async def get_artifact(
    request: Request,
    backend: Tenant,
    job: KnownJob,
    name: Name,
    *,
    range_: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
    if_range: Annotated[
        str | None, Header(description="Send a part only if this is still the entity tag.")
    ] = None,
    if_none_match: request_headers.IfNoneMatch = None,
) -> Response:
    """The adversarial image as judged, the original, their difference, or the exact numbers as `.npy`."""
    file = await to_thread.run_sync(find_file, backend, job, name)
    headers = file.headers(job)
    if request_headers.matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(file.size)}, media_type=file.media_type)
    span = parse_range(range_, if_range, file)
    if span is None:
        return await send(backend.blobs, file, ByteRange(0, file.size), headers)
    headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{file.size}"
    return await send(backend.blobs, file, span, headers, status=206)


router.add_api_route(
    "/v1/jobs/{job}/artifacts/{name}", get_artifact, methods=["HEAD"], include_in_schema=False
)
