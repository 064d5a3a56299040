"""Requests and responses of the Open Inference Protocol, with Triton's extensions for binary tensors and
classification.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from touchstone.models.manifest import Manifest

EXTENSIONS = ("binary_tensor_data", "classification")

INPUT = "image"
OUTPUTS = ("logits", "probabilities")

Datatype = Literal["FP32", "UINT8", "BYTES"]
Output = Literal["logits", "probabilities"]
Data = Annotated[Any, WithJsonSchema({"type": "array", "items": {}})]

_MAX_DIMENSIONS = 8


class RequestModel(BaseModel):
    """A part of a request. Unknown members are ignored, as the protocol requires."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_shared_memory(cls, value: Any) -> Any:
        if isinstance(value, dict) and "shared_memory_region" in value:
            raise ValueError("shared_memory_region: there is no shared memory here; send the data itself")
        return value


class InputParameters(RequestModel):
    """Parameters of an input."""

    binary_data_size: int | None = Field(None, ge=0, description="Bytes of the tensor after the JSON.")


class OutputParameters(RequestModel):
    """Parameters of an output."""

    binary_data: bool | None = Field(None, description="As bytes after the JSON, not in it.")
    classification: int = Field(
        0, ge=0, description='The n most likely classes as "value:index:name" instead of numbers.'
    )


class RequestParameters(RequestModel):
    """Parameters of a request."""

    binary_data_output: bool = Field(False, description="`binary_data` of outputs that do not set it.")
    execution: Literal["batched", "deterministic"] = Field(
        "batched", description="`deterministic` runs the request alone and gives the same bits each time."
    )


class InputTensor(RequestModel):
    """The images.

    FP32 [N, C, H, W] in [0,1] at the size in the metadata, used as they are; UINT8 [N, H, W, C] at any size,
    gray or RGB; or BYTES [N], PNG, JPEG or WebP files. The last two are resized to the model's input, as in
    all other operations.
    """

    name: Literal["image"]
    shape: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(
        fail_fast=True, min_length=1, max_length=_MAX_DIMENSIONS
    )
    datatype: Datatype
    parameters: InputParameters = InputParameters()
    data: Data = Field(None, description="Numbers, nested or flat; for BYTES data URLs or base64.")


class WantedOutput(RequestModel):
    """A requested output."""

    name: Output
    parameters: OutputParameters = OutputParameters()


class InferenceRequest(RequestModel):
    """An inference request."""

    id: str | None = Field(None, max_length=256, description="Returned in the response.")
    parameters: RequestParameters = RequestParameters()
    inputs: list[InputTensor] = Field(fail_fast=True, min_length=1, max_length=1)
    outputs: list[WantedOutput] | None = Field(
        None,
        fail_fast=True,
        max_length=len(OUTPUTS),
        description="All outputs where it is left out or empty.",
    )

    @model_validator(mode="after")
    def _each_output_once(self) -> InferenceRequest:
        names = [output.name for output in self.outputs or ()]
        if len(set(names)) < len(names):
            raise ValueError("outputs: each can be asked for once")
        return self

    def wanted_outputs(self) -> list[WantedOutput]:
        """The outputs of the response, in order."""
        return self.outputs or [WantedOutput(name="logits"), WantedOutput(name="probabilities")]

    def without_data(self) -> InferenceRequest:
        """The request without its images, which may be large."""
        inputs = [tensor.model_copy(update={"data": None}) for tensor in self.inputs]
        return self.model_copy(update={"inputs": inputs})

    def wants_bytes(self, output: WantedOutput) -> bool:
        """Whether an output is sent as bytes."""
        asked = output.parameters.binary_data
        return self.parameters.binary_data_output if asked is None else asked


class OutputTensor(BaseModel):
    """An output: flat `data` in row-major order, or `binary_data_size` bytes after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: Data = None


class InferenceAnswer(BaseModel):
    """The model's outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """An input or output tensor of a model; -1 stands for any number of images."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str] | None = None


class ModelMetadata(BaseModel):
    """The metadata of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """The metadata of this server."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the service is alive."""

    live: bool


class Ready(BaseModel):
    """Whether it can run inference."""

    ready: bool


class ModelReady(BaseModel):
    """Whether a model can run inference."""

    name: str
    ready: bool


def metadata(manifest: Manifest, versions: list[str]) -> ModelMetadata:
    """A model's metadata."""
    spec, classes = manifest.input, len(manifest.classes)
    also = {
        "range": "[0,1], without the model's mean and standard deviation",
        "UINT8": "[-1, height, width, 1 or 3]: pixels at any size",
        "BYTES": "[-1]: PNG, JPEG or WebP files",
    }
    shape = [-1, spec.channels, spec.height, spec.width]
    return ModelMetadata(
        name=manifest.id,
        versions=versions,
        platform=f"touchstone_{manifest.architecture}",
        inputs=[TensorMetadata(name=INPUT, datatype="FP32", shape=shape, parameters=also)],
        outputs=[TensorMetadata(name=name, datatype="FP32", shape=[-1, classes]) for name in OUTPUTS],
    )
