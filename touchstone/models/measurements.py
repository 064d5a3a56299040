"""Measurements of models. Never imports torch, so that the API can show them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FORWARD_SHARE = 1 / 3
"""The cost of a forward pass as a share of a pass with gradients."""


class Probe(BaseModel):
    """Measured at the last load of a model, on an engine that may have been busy with other jobs."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    measured_at: datetime
    device: str
    torch: str = Field(description="Version of torch.")
    load_seconds: float = Field(ge=0, description="Seconds to read and check the weights.")
    bytes: int = Field(ge=0, description="Memory that the weights take.")
    frozen: bool = Field(description="Whether it is in eval mode and no weight requires gradients.")
    rows: int = Field(ge=1, description="Rows of a pass with gradients.")
    gradient_rate: float = Field(gt=0, description="Gradients a second at about this many rows.")
    single_rate: float = Field(gt=0, description="Gradients a second of rows one at a time.")
    forward_rate: float = Field(gt=0, description="Noisy copies a second, without gradients.")
    batch_invariant: bool = Field(
        description="Whether a row has the same output alone and in a batch; if not, jobs share no passes."
    )
    logits_difference: float | None = Field(
        description="Largest difference between a row's logits alone and in a batch; null if not finite."
    )
    gradient_difference: float | None = Field(description="The same for the input's gradient.")
    softmax: bool = Field(description="Whether its outputs look like probabilities; logits are expected.")

    def seconds(self, forward: int, backward: int) -> float:
        """The seconds of so many queries for one job that has the device to itself.

        An attack queries one row after another; without gradients, rows come in full passes.
        """
        if backward:
            return (backward + FORWARD_SHARE * (forward - backward)) / self.single_rate
        return forward / self.forward_rate


class ExampleWarning(BaseModel):
    """Something in a model's description that its examples speak against."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    code: str
    detail: str = Field(max_length=1000, description="What was seen, and what would be right.")
    accuracy: float | None = Field(
        None, ge=0, le=1, description="On the examples, with what would be right, where that is known."
    )


class ExampleAccuracy(BaseModel):
    """How a model classifies the labelled examples that were given at its registration."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    count: int = Field(ge=1)
    correct: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1)
    warnings: tuple[ExampleWarning, ...] = ()


class ModelProbe(Probe):
    """Measured also in the trial of a model at its registration, on a CPU without other load."""

    deterministic: bool = Field(description="Whether the same images got bit-identical outputs twice.")
    forward_ms: float = Field(ge=0, description="Milliseconds for a row without gradients, in full passes.")
    gradient_ms: float = Field(ge=0, description="Milliseconds for a row with gradients, in full passes.")
    row_bytes: int | None = Field(
        ge=0,
        description="Bytes that each further row of a pass with gradients takes; null where not measured.",
    )
    gradient_error: float | None = Field(
        description="Difference between the gradient and finite differences of the outputs: the median "
        "over random directions, as a share of the gradient's length; null if not finite."
    )
    gradient_tolerance: float = Field(description="Maximum `gradient_error` at which the gradient agrees.")
    gradient_agrees: bool = Field(
        description="Whether the gradient is that of the outputs. Where it is not, gradient-based attacks "
        "may fail on a model that other attacks break."
    )
    examples: ExampleAccuracy | None = Field(
        None, exclude_if=lambda value: value is None, description="The accuracy on examples, where given."
    )

    gradient_not_finite_at: tuple[Literal["black", "white", "gray", "noise"], ...] = Field(
        (),
        description="Images whose gradient has NaN or infinity, as that of a square root has at black; "
        "attacks go on with its finite part.",
    )


class RemoteProbe(BaseModel):
    """Measured by a few queries to a remote model at its registration."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    measured_at: datetime
    queries: int = Field(ge=1, description="Rows that were sent; they count towards the budget.")
    query_seconds: float = Field(ge=0, description="Seconds of a query for one image.")
    deterministic: bool = Field(description="Whether the same image got equal outputs twice.")
    repeat_difference: float = Field(
        ge=0, description="Largest difference between those two answers' logits."
    )
    batch_invariant: bool = Field(description="Whether an image had the same output alone and in a batch.")
    batch_difference: float = Field(ge=0, description="Largest difference between those two answers' logits.")
    decisions_only: bool = Field(description="Whether it returns classes without confidences.")


RegistrationProbe = ModelProbe | RemoteProbe
"""The measurements at the registration of a model, local or remote."""
