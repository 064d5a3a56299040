"""Manifests: what the service knows of a model without loading it. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from touchstone.errors import UnknownLabel
from touchstone.models.output_activation import MAX_STEPS, ActivationStep, compute_confidences
from touchstone.models.remote_manifest import Remote

_MAX_CANDIDATES = 100
_INDEX = re.compile(r"-?[0-9]+")

ID = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""The pattern of a model's id, which names files too."""


Gradients = Literal["exact", "straight-through", "none"]
"""What the gradient of a model is: its own, one that ignores rounding to integers, or nothing."""

ONNX = "onnx"
"""The architecture of a network whose file contains it."""


Side = Annotated[int, Field(ge=1, le=4096)]


class ManifestPart(BaseModel):
    """A frozen part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(ManifestPart):
    """The network's input: channels and size, and how an image of any size is resized to it.

    The image's shorter side is resized to `resize` (antialiased) and the center `height` x `width` is
    cropped; if `resize` is a pair, the whole image is scaled to this height and width first. Without
    `resize` the whole image is scaled to `height` x `width`.
    """

    channels: Literal[1, 3] = 3
    height: Side
    width: Side
    resize: Side | tuple[Side, Side] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    layout: Literal["nchw", "nhwc"] = Field(
        "nchw", description="Whether the network takes the channels first or last."
    )
    channel_order: Literal["rgb", "bgr"] = Field(
        "rgb",
        description="The order of the network's channels, and so of `mean` and `std`; images are RGB.",
    )
    crop_rounding: Literal["even", "down"] = Field(
        "even",
        description="Where the crop starts if its center lies between two pixels: at the `even` one, as with "
        "torchvision and timm, or at the upper or left one (`down`), as with transformers.",
    )

    straight_through: bool = Field(
        False,
        description="Of a quantized network: whether gradients pass its rounding as if there were none. "
        "Otherwise it is a black box.",
    )

    @field_validator("channel_order")
    @classmethod
    def _check_channel_order(cls, order: str, info: ValidationInfo) -> str:
        if order != "rgb" and info.data.get("channels") == 1:
            raise ValueError("one channel has no order: leave this out, or set channels to 3")
        return order


class Weights(ManifestPart):
    """The file of the weights: beside the manifest, or in an installed package."""

    file: str
    package: str | None = None


class Accuracy(ManifestPart):
    """An accuracy and how it was measured; `measured` is false where this project only cites it."""

    data: str
    value: float = Field(ge=0, le=1)
    measured: bool
    note: str = ""


class Manifest(ManifestPart):
    """What is known of a model: identity, input, classes, licence, origin and accuracy."""

    id: str = Field(pattern=ID)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$", description="Of the weights file.")
    kind: Literal["local", "remote"] = Field(
        "local", description="Whether it runs here or answers over HTTP."
    )
    architecture: str
    config: dict[str, Any] | None = Field(
        None, description="Of an architecture with parameters: those of its `config.json` that build it."
    )
    weights: Weights
    input: InputSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = Field(min_length=2)
    randomized: bool = Field(
        False, description="Whether the network answers at random on purpose, as some defenses do."
    )
    softmax: Literal["none", "removed", "inverted"] = Field(
        "none",
        description="How a Softmax at the network's end was handled: `removed`, or `inverted` where it could "
        "not be removed and logarithms of the probabilities serve as logits.",
    )
    output: str | None = Field(
        None, max_length=200, description="Of an ONNX file with several outputs: the name of the logits."
    )
    output_activation: tuple[ActivationStep, ...] = Field(
        (),
        max_length=MAX_STEPS,
        description="What the network does to its logits before it answers, in order: removed or inverted, "
        "since it hides gradients. Confidences are shown as the network answers them.",
    )
    gradients: Gradients = Field(
        "exact",
        description="Whether the model gives its own gradient; that of a quantized one is zero everywhere "
        "(`none`: it is a black box), or ignores the rounding (`straight-through`).",
    )
    single_output: bool = Field(
        False, description="Whether the network has one output, for the second of its two classes."
    )
    remote: Remote | None = Field(None, description="Of a remote model: its address, and how it is queried.")
    parameters: int = Field(ge=0, description="Number of weights.")
    licence: str
    provenance: str
    accuracy: tuple[Accuracy, ...]
    sources: dict[str, str] = Field(
        {}, description="Of fields that the client did not state, or that a file contradicts: who says so."
    )

    def __hash__(self) -> int:
        return hash((self.id, self.digest))

    @model_validator(mode="after")
    def _check_normalization(self) -> Manifest:
        if not len(self.mean) == len(self.std) == self.input.channels:
            raise ValueError(f"mean and std need {self.input.channels} numbers each, one for each channel")
        if min(self.std) <= 0:
            raise ValueError("std: every number must be positive")
        return self

    @model_validator(mode="after")
    def _check_remote(self) -> Manifest:
        if (self.kind == "remote") != (self.remote is not None):
            raise ValueError("remote: a remote model must have it, and no other model may")
        if self.remote is not None:
            self.remote.check_size(self.input.channels * self.input.height * self.input.width)
            if self.remote.takes_files and self.input.channel_order != "rgb":
                raise ValueError("input.channel_order: PNG files are RGB; leave this out")
        return self

    @property
    def takes_noise(self) -> bool:
        """Whether noise can be added to the network's input itself, as certificates need it."""
        return self.remote is None or not self.remote.takes_files

    def resolve_label(self, value: int | str, *, field: str = "label") -> int:
        """The class index of an index or a name; a name of several classes is refused with the candidates."""
        return class_index(value, self.classes, self.id, field)

    def confidences(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """The confidences (..., K) of logits, as the network answers them."""
        return compute_confidences(logits, self.output_activation, single=self.single_output)

    def card(self) -> dict[str, Any]:
        """The manifest as `GET /v1/models/{id}` shows it."""
        return self.model_dump(mode="json")


def class_index(value: int | str, classes: Sequence[str], model: str, field: str) -> int:
    """The class index of an index or a name, among `classes` where these are known."""
    text = str(value).strip()
    if _INDEX.fullmatch(text):
        index = int(text[:20])
        if 0 <= index < len(classes) or not classes:
            return index
        raise UnknownLabel(
            f"{field}: {model} has classes 0 to {len(classes) - 1}, not {text[:20]}", field=field
        )
    found = [i for i, name in enumerate(classes) if name.casefold() == text.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownLabel(
            f"{field}: {len(found)} classes of {model} are named {text[:60]!r}; give the index: "
            + ", ".join(map(str, found[:_MAX_CANDIDATES]))
            + (" …" if len(found) > _MAX_CANDIDATES else ""),
            field=field,
            candidates=[{"label": i, "name": classes[i]} for i in found[:_MAX_CANDIDATES]],
        )
    raise UnknownLabel(f"{field}: {model} has no class named {text[:60]!r}", field=field)
