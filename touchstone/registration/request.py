"""The description of a user's model: what its file does not contain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from touchstone.errors import InvalidParameter
from touchstone.methods import invalid_parameter
from touchstone.models.file_format import Format, detect_format
from touchstone.models.manifest import ID, ONNX, InputSpec, Manifest, Side, Weights
from touchstone.models.remote_manifest import Remote
from touchstone.registration.class_names import MAX_BYTES, MAX_CLASSES, ClassName, check_bytes, check_lines
from touchstone.registration.completion import TRANSFORMERS, choose_architecture, complete_fields
from touchstone.registration.published.facts import PACKAGED, Merged
from touchstone.registration.published.known import gather
from touchstone.storage.blobs import digest_of

_LOCAL_FIELDS = (
    *("output", "randomized", "gradients", "output_activation", "single_output", "config", "sources"),
)
_NO_DIGEST = "sha256:" + "0" * 64


MAX_MEMBERS = 100
"""Of an object in a registration, published configurations aside: more are refused before any is checked."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e6)]


def _check_members(data: Any, field: str = "") -> None:
    """Raise InvalidParameter for an object with far more members than it can have: each would be an error."""
    if not isinstance(data, Mapping):
        return
    if len(data) > MAX_MEMBERS:
        where = field or "manifest"
        raise InvalidParameter(f"{where}: {len(data):,} members, of which most are unknown", field=where)
    for name in ("input", "remote", "oip"):
        _check_members(data.get(name), name)


class StatedInput(InputSpec):
    """What a client states of the input: its size may be published with the model."""

    height: Side | None = None  # type: ignore[assignment]
    width: Side | None = None  # type: ignore[assignment]


class Registration(BaseModel):
    """What a client states of a model; the rest is read from its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=ID, description="Id of the model.", examples=["my-net"])
    classes: tuple[ClassName, ...] | None = Field(
        None,
        fail_fast=True,
        min_length=2,
        max_length=MAX_CLASSES,
        description="Class names in the order of the network's outputs. A name may occur twice.",
        examples=[["cat", "dog"]],
    )
    labels: str | None = Field(
        None,
        max_length=2 * MAX_BYTES,
        description="Class names as text, one a line; instead of `classes`.",
        examples=["cat\ndog\n"],
    )
    input: StatedInput | None = Field(
        None,
        description="The network's input, and how an image is resized to it. What is left out is read from "
        "`preprocessor_config`, `config` or what the package of the architecture publishes; without these, "
        "`height` and `width` are required.",
    )
    mean: tuple[Number, ...] | None = Field(
        None,
        fail_fast=True,
        description="Subtracted from pixels in [0,1], one number for each channel; requires `std`.",
        examples=[[0.485, 0.456, 0.406]],
    )
    std: tuple[Positive, ...] | None = Field(
        None,
        fail_fast=True,
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
        description="For safetensors: an architecture of the zoo, `torchvision/NAME`, `timm/NAME`, or "
        "`transformers` with `config`. An ONNX file needs none.",
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
    config: dict[str, Any] | None = Field(
        None,
        description="The `config.json` of transformers or timm: architecture, classes and, from timm, the "
        "preprocessing. Also as a part of the form.",
    )
    preprocessor_config: dict[str, Any] | None = Field(
        None,
        description="The `preprocessor_config.json` of transformers. Also as a part of the form.",
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
            _check_members(data)
            return cls.model_validate(data)
        except ValidationError as error:
            raise invalid_parameter(error) from None

    @model_validator(mode="after")
    def _check_classes(self) -> Registration:
        named = (self.classes is not None) + (self.labels is not None)
        if named == 2 or (named == 0 and not self._is_published):
            raise ValueError("classes: name the classes, either here or in labels, one a line")
        check_bytes(self.names)
        if self.labels is not None:
            check_lines(self.names)
        return self

    @model_validator(mode="after")
    def _check_normalization(self) -> Registration:
        if (self.mean is None) != (self.std is None):
            raise ValueError("std: give both mean and std, or neither")
        if self.range is not None and self.mean is not None:
            raise ValueError("range: give either range, or mean and std")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range: the number for black must be below that for white")
        self._check_channels()
        return self

    def _check_channels(self) -> None:
        if self.input is None or (self._is_published and "channels" not in self.input.model_fields_set):
            return
        for field, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.input.channels:
                raise ValueError(
                    f"{field}: {len(values)} numbers for {self.input.channels} channels; give one for each"
                )

    @model_validator(mode="after")
    def _check_input(self) -> Registration:
        if self._is_published:
            return self
        if self.input is None:
            raise ValueError('input: give at least {"height": …, "width": …}')
        for side in ("height", "width"):
            if getattr(self.input, side) is None:
                raise ValueError(f"input.{side}: missing")
        return self

    @property
    def _is_published(self) -> bool:
        """Whether more may be read than the client states."""
        architecture = self.architecture or ""
        configured = self.config is not None or self.preprocessor_config is not None
        return configured or architecture.startswith(PACKAGED) or architecture == TRANSFORMERS

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
        known = self._gather(with_network=file == "safetensors")
        architecture = ONNX if file == "onnx" else choose_architecture(known)
        return self._fill_manifest(digest, architecture, f"model.{file}", known)

    def build_remote_manifest(self, tenant: str) -> tuple[Manifest, bytes]:
        """The manifest of a remote model, and the bytes whose digest is the version's.

        The bytes name the tenant, so that tenants do not share what is counted by digest, such as a budget.
        Raises InvalidParameter.
        """
        if self.remote is None or self.architecture is not None:
            raise InvalidParameter(
                "remote: without a file, give the address of the model, and no architecture", field="remote"
            )
        manifest = self._fill_manifest(_NO_DIGEST, "remote", "remote", self._gather(with_network=False))
        identity = {**_dump_for_identity(manifest), "tenant": tenant}
        data = json.dumps(identity, sort_keys=True).encode()
        return manifest.model_copy(update={"digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}), data

    def _gather(self, *, with_network: bool) -> Merged:
        if not with_network and self.architecture not in (None, ONNX):
            raise InvalidParameter(
                "architecture: an ONNX file contains its architecture; leave this out", field="architecture"
            )
        return gather(self._state(), self.config, self.preprocessor_config, with_network=with_network)

    def _state(self) -> dict[str, Any]:
        """What is stated, by the names of fields; defaults are not."""
        plain = {"architecture", "licence"} & self.model_fields_set
        stated = {
            name: getattr(self, name) for name in plain if getattr(self, name) not in (None, TRANSFORMERS)
        }
        if self.input is not None:
            stated |= {f"input.{name}": getattr(self.input, name) for name in self.input.model_fields_set}
        if self.names:
            stated["classes"] = self.names
        return {**stated, **self._state_normalization()}

    def _state_normalization(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation; for a range one number each, for all channels."""
        if self.mean is not None and self.std is not None:
            return {"mean": self.mean, "std": self.std}
        if self.range is None:
            return {}
        low, high = self.range
        width = high - low  # pixels x become low + x * width, which is (x + low / width) / (1 / width)
        return {"mean": (-low / width if low else 0.0,), "std": (1 / width,)}

    def _check_onnx_fields(self, architecture: str) -> None:
        if self.output is not None and architecture != ONNX:
            raise InvalidParameter("output: only an ONNX file has outputs with names", field="output")
        if self.input is not None and self.input.straight_through and architecture != ONNX:
            raise InvalidParameter(
                "input.straight_through: only an ONNX file can be quantized", field="input.straight_through"
            )
        if self.randomized and architecture != ONNX:
            raise InvalidParameter("randomized: only an ONNX file draws random numbers", field="randomized")

    def _fill_manifest(self, digest: str, architecture: str, file: str, known: Merged) -> Manifest:
        self._check_onnx_fields(architecture)
        try:
            return Manifest(
                kind="local" if self.remote is None else "remote",
                gradients="exact" if self.remote is None else "none",
                id=self.id,
                digest=digest,
                architecture=architecture,
                weights=Weights(file=file),
                remote=self.remote,
                output=self.output,
                randomized=self.randomized,
                parameters=0,
                provenance=self.provenance,
                accuracy=(),
                **complete_fields(known),
            )
        except ValidationError as error:
            raise invalid_parameter(error) from None


def _dump_for_identity(manifest: Manifest) -> dict[str, Any]:
    """What names a version of a remote model: without its defaults of fields that older versions lack."""
    shown = manifest.model_dump(mode="json", exclude={"digest", *_LOCAL_FIELDS})
    del shown["input"]["straight_through"]
    for name, default in (("channel_order", "rgb"), ("crop_rounding", "even")):
        if shown["input"][name] == default:
            del shown["input"][name]
    return shown


def describe_model(registration: Registration, data: bytes, *, limit: int) -> Manifest:
    """The manifest of a user's model, as far as it is known before its trial.

    Raises InvalidModel and ModelTooLarge for the file, InvalidParameter for the description.
    """
    return registration.build_manifest(digest_of(data), detect_format(data, limit=limit))
