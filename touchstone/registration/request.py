"""The description of a user's model: what its file does not contain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from touchstone.errors import InvalidParameter
from touchstone.methods import invalid_parameter
from touchstone.models.file_format import Format, detect_format
from touchstone.models.manifest import ID, ONNX, InputSpec, Manifest, Weights
from touchstone.models.remote_manifest import Remote
from touchstone.storage.blobs import digest_of

MAX_CLASSES = 100_000
MAX_CLASS_LETTERS = 200
_LOCAL_FIELDS = ("output", "randomized", "gradients", "output_activation", "single_output")
_NO_DIGEST = "sha256:" + "0" * 64
MAX_LETTERS = 2_000_000
"""Of all class names together, because a manifest is read often."""


def _check_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError(f"expected a printable name, not {name[:40]!r}")
    return name.strip()


ClassName = Annotated[str, Field(min_length=1, max_length=MAX_CLASS_LETTERS), AfterValidator(_check_name)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e6)]


def _check_lines(names: tuple[str, ...]) -> None:
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"labels: {len(names)} lines; 2 to {MAX_CLASSES:,} classes are allowed")
    for number, name in enumerate(names, 1):
        if not name or not name.isprintable() or len(name) > MAX_CLASS_LETTERS:
            raise ValueError(
                f"labels: line {number} is not a printable name of 1 to {MAX_CLASS_LETTERS} characters: "
                f"{name[:40]!r}"
            )


class Registration(BaseModel):
    """What a client states of a model; the rest is read from its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=ID, description="Id of the model.", examples=["my-net"])
    classes: tuple[ClassName, ...] | None = Field(
        None,
        min_length=2,
        max_length=MAX_CLASSES,
        description="Class names in the order of the network's outputs. A name may occur twice.",
        examples=[["cat", "dog"]],
    )
    labels: str | None = Field(
        None,
        max_length=2 * MAX_LETTERS,
        description="Class names as text, one a line; instead of `classes`.",
        examples=["cat\ndog\n"],
    )
    input: InputSpec = Field(description="The network's input, and how an image is resized to it.")
    mean: tuple[Number, ...] | None = Field(
        None,
        description="Subtracted from pixels in [0,1], one number for each channel; requires `std`.",
        examples=[[0.485, 0.456, 0.406]],
    )
    std: tuple[Positive, ...] | None = Field(
        None,
        description="The divisor after that, one number for each channel.",
        examples=[[0.229, 0.224, 0.225]],
    )
    range: tuple[Number, Number] | None = Field(
        None,
        description="Instead of `mean` and `std`: the numbers for black and white. Without any of these "
        "the network takes [0, 1].",
        examples=[[-1, 1]],
    )
    architecture: str | None = Field(
        None,
        max_length=120,
        description="For safetensors: an architecture of the zoo, or `timm/NAME`. An ONNX file needs none.",
        examples=["timm/resnet18"],
    )
    output: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Of an ONNX file with several outputs: the name of the logits, if more than one has a "
        "number for each class.",
        examples=["logits"],
    )
    randomized: bool = Field(
        False,
        description="Whether an ONNX file may draw random numbers: for networks that answer at random on "
        "purpose. Average their gradients with `eot`.",
    )
    remote: Remote | None = Field(
        None, description="Instead of a file: the address of a remote model, and how it is queried."
    )
    licence: str = Field("not stated", max_length=2000, description="Of the weights.")
    provenance: str = Field("not stated", max_length=5000, description="Where the model comes from.")

    @classmethod
    def parse(cls, data: Mapping[str, Any] | str | bytes) -> Registration:
        """A registration from JSON, parsed or not. Raises InvalidParameter, which names the field."""
        try:
            if isinstance(data, str | bytes):
                return cls.model_validate_json(data)
            return cls.model_validate(data)
        except ValidationError as error:
            raise invalid_parameter(error) from None

    @model_validator(mode="after")
    def _check_classes(self) -> Registration:
        if (self.classes is None) == (self.labels is None):
            raise ValueError("classes: name the classes, either here or in labels, one a line")
        if sum(map(len, self.names)) > MAX_LETTERS:
            raise ValueError(f"classes: the names have more than {MAX_LETTERS:,} characters together")
        if self.labels is not None:
            _check_lines(self.names)
        return self

    @model_validator(mode="after")
    def _check_normalization(self) -> Registration:
        if (self.mean is None) != (self.std is None):
            raise ValueError("std: give both mean and std, or neither")
        if self.range is not None and self.mean is not None:
            raise ValueError("range: give either range, or mean and std")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range: the number for black must be below that for white")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.input.channels:
                raise ValueError(
                    f"{field}: {len(values)} numbers for {self.input.channels} channels; give one for each"
                )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        if self.classes is not None:
            return self.classes
        return tuple(line.strip() for line in (self.labels or "").rstrip().splitlines())

    def build_manifest(self, digest: str, file: Format) -> Manifest:
        """The manifest of this file, with all defaults filled in. Raises InvalidParameter."""
        if self.remote is not None:
            raise InvalidParameter("remote: a model is either a file or a remote model", field="remote")
        return self._fill_manifest(digest, self._choose_architecture(file), f"model.{file}")

    def build_remote_manifest(self, tenant: str) -> tuple[Manifest, bytes]:
        """The manifest of a remote model, and the bytes whose digest is the version's.

        The bytes name the tenant, so that tenants do not share what is counted by digest, such as a budget.
        Raises InvalidParameter.
        """
        if self.remote is None or self.architecture is not None:
            raise InvalidParameter(
                "remote: without a file, give the address of the model, and no architecture", field="remote"
            )
        manifest = self._fill_manifest(_NO_DIGEST, "remote", "remote")
        identity = {**_dump_for_identity(manifest), "tenant": tenant}
        data = json.dumps(identity, sort_keys=True).encode()
        return manifest.model_copy(update={"digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}), data

    def _check_onnx_fields(self, architecture: str) -> None:
        if self.output is not None and architecture != ONNX:
            raise InvalidParameter("output: only an ONNX file has outputs with names", field="output")
        if self.input.straight_through and architecture != ONNX:
            raise InvalidParameter(
                "input.straight_through: only an ONNX file can be quantized", field="input.straight_through"
            )
        if self.randomized and architecture != ONNX:
            raise InvalidParameter("randomized: only an ONNX file draws random numbers", field="randomized")

    def _fill_manifest(self, digest: str, architecture: str, file: str) -> Manifest:
        self._check_onnx_fields(architecture)
        mean, std = self._compute_normalization()
        try:
            return Manifest(
                kind="local" if self.remote is None else "remote",
                gradients="exact" if self.remote is None else "none",
                id=self.id,
                digest=digest,
                architecture=architecture,
                weights=Weights(file=file),
                remote=self.remote,
                input=self.input,
                mean=mean,
                std=std,
                classes=self.names,
                output=self.output,
                randomized=self.randomized,
                parameters=0,
                licence=self.licence,
                provenance=self.provenance,
                accuracy=(),
            )
        except ValidationError as error:
            raise invalid_parameter(error) from None

    def _choose_architecture(self, file: Format) -> str:
        if file == "onnx" and self.architecture in (None, ONNX):
            return ONNX
        if file == "onnx":
            raise InvalidParameter(
                "architecture: an ONNX file contains its architecture; leave this out", field="architecture"
            )
        if self.architecture in (None, ONNX):
            raise InvalidParameter(
                "architecture: a safetensors file holds only weights; name an architecture of the zoo, or "
                "timm/NAME, or export the network to ONNX",
                field="architecture",
            )
        return str(self.architecture)

    def _compute_normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = self.input.channels
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        low, high = self.range or (0.0, 1.0)
        width = high - low  # pixels x become low + x * width, which is (x + low / width) / (1 / width)
        return (-low / width if low else 0.0,) * channels, (1 / width,) * channels


def _dump_for_identity(manifest: Manifest) -> dict[str, Any]:
    """What names a version of a remote model: without its defaults of fields that older versions lack."""
    shown = manifest.model_dump(mode="json", exclude={"digest", *_LOCAL_FIELDS})
    del shown["input"]["straight_through"]
    if manifest.input.channel_order == "rgb":
        del shown["input"]["channel_order"]
    return shown


def describe_model(registration: Registration, data: bytes, *, limit: int) -> Manifest:
    """The manifest of a user's model, as far as it is known before its trial.

    Raises InvalidModel and ModelTooLarge for the file, InvalidParameter for the description.
    """
    return registration.build_manifest(digest_of(data), detect_format(data, limit=limit))
