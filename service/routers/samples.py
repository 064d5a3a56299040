"""Sample images for the dashboard: a few photos, and a few of Fashion-MNIST's test images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Response
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service import headers as request_headers
from touchstone.images import decode, encode
from touchstone.training.datasets import CLASSES, fashion_mnist_sample

router = APIRouter(include_in_schema=False)

_CC0, _PUBLIC = "CC0", "public domain"
_PHOTOS = {
    "chelsea.png": ("Cat", f"{_CC0}, Stefan van der Walt"),
    "coffee.png": ("Coffee", f"{_CC0}, Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    "rocket.jpg": ("Rocket", f"{_PUBLIC}, SpaceX"),
    "camera.png": ("Camera on a tripod, gray", f"{_CC0}, Lav Varshney"),
    "horse.png": ("Horse, a silhouette", f"{_CC0}, Andreas Preuss"),
}
_CLOTHES = (1, 2, 3, 8, 9)
_THUMBNAIL = 96
_HEADERS = {"Cache-Control": "public, max-age=3600"}


class Sample(BaseModel):
    """A sample image in the list."""

    name: str
    title: str
    href: str
    thumbnail: str
    width: int
    height: int
    channels: int
    licence: str
    label: int | None


class Samples(BaseModel):
    """All samples."""

    items: list[Sample]


@dataclass(frozen=True)
class SampleFile:
    """A sample image with its title."""

    title: str
    licence: str
    content: bytes
    label: int | None = None  # of Fashion-MNIST's classes

    @property
    def etag(self) -> str:
        """The entity tag."""
        return f'"{hashlib.sha256(self.content).hexdigest()}"'

    @property
    def media_type(self) -> str:
        """The media type of the content."""
        return {b"\x89PNG": "image/png", b"RIFF": "image/webp"}.get(self.content[:4], "image/jpeg")

    def show(self, name: str) -> Sample:
        """The entry of the list; size and channels are those of the decoded image."""
        height, width, channels = decode(self.content).pixels.shape
        return Sample(
            name=name,
            title=self.title,
            href=f"/samples/{name}",
            thumbnail=f"/samples/thumbnails/{name}",
            width=width,
            height=height,
            channels=channels,
            licence=self.licence,
            label=self.label,
        )


@cache
def _files() -> Mapping[str, SampleFile]:
    photos = {name: SampleFile(*about, _read_photo(name)) for name, about in _PHOTOS.items()}
    clothes = {f"{CLASSES[index].lower().replace(' ', '-')}.png": _read_tile(index) for index in _CLOTHES}
    return MappingProxyType(photos | clothes)


def _read_photo(name: str) -> bytes:
    return files("touchstone").joinpath("photos", name).read_bytes()


def _read_tile(index: int) -> SampleFile:
    """The tile of this index, which is also its label for the first ten."""
    sample = fashion_mnist_sample()
    label = int(sample.labels[index])
    return SampleFile(CLASSES[label], "MIT, Zalando SE", encode(sample.images[index][:, :, None]), label)


@cache
def _list() -> Samples:
    return Samples(items=[file.show(name) for name, file in _files().items()])


@router.get("/samples")
def list_samples(response: Response) -> Samples:
    """All samples."""
    response.headers.update(_HEADERS)
    return _list()


@router.get("/samples/{name}")
def get_sample(name: str, if_none_match: request_headers.IfNoneMatch = None) -> Response:
    """A sample as a file."""
    return _build_response(_files(), name, if_none_match)


@router.get("/samples/thumbnails/{name}")
def get_thumbnail(name: str, if_none_match: request_headers.IfNoneMatch = None) -> Response:
    """A sample's thumbnail."""
    return _build_response(_thumbnails(), name, if_none_match)


@cache
def _thumbnails() -> Mapping[str, SampleFile]:
    return MappingProxyType(
        {name: replace(file, content=_make_thumbnail(file.content)) for name, file in _files().items()}
    )


def _make_thumbnail(content: bytes) -> bytes:
    image = Image.fromarray(decode(content).pixels.squeeze())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small = io.BytesIO()
    image.save(small, "WEBP", quality=80)
    return small.getvalue()


def _build_response(files: Mapping[str, SampleFile], name: str, if_none_match: str | None) -> Response:
    file = files.get(name)
    if file is None:
        raise HTTPException(404)
    headers = {**_HEADERS, "ETag": file.etag}
    if request_headers.matches(if_none_match, file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
