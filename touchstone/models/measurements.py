"""What loading a model showed of it: never imports torch, so that the API can tell of it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

FORWARD_SHARE = 1 / 3
"""What a forward pass costs of one that goes back to the input, too."""


class Probe(BaseModel):
    """What the last load of a model measured, on an engine that may have been busy with others."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    measured_at: datetime
    device: str
    torch: str = Field(description="Version of torch.")
    load_seconds: float = Field(ge=0, description="Reading and checking the weights.")
    bytes: int = Field(ge=0, description="Memory that the weights take.")
    frozen: bool = Field(description="It is in eval mode, and no weight takes gradients.")
    rows: int = Field(ge=1, description="Rows that a pass with gradients takes.")
    gradient_rate: float = Field(gt=0, description="Gradients a second at about so many rows.")
    single_rate: float = Field(gt=0, description="Gradients a second where each row is asked alone.")
    forward_rate: float = Field(gt=0, description="Noisy copies answered a second, without gradients.")
    batch_invariant: bool = Field(
        description="A row alone is answered as it is among others; otherwise no two jobs share a pass."
    )
    logits_difference: float | None = Field(
        description="Largest difference between a row's logits alone and among others; null if not finite."
    )
    gradient_difference: float | None = Field(description="The same of the input's gradient.")
    softmax: bool = Field(description="Its answers look like probabilities; logits are expected.")

    def seconds(self, forward: int, backward: int) -> float:
        """How long so many queries take one job that has the device to itself.

        An attack asks about one row after another; without gradients, rows come in full passes.
        """
        if backward:
            return (backward + FORWARD_SHARE * (forward - backward)) / self.single_rate
        return forward / self.forward_rate


class ModelProbe(Probe):
    """What trying a model at its registration showed besides, on a processor and with nothing beside it."""

    deterministic: bool = Field(description="The same images were answered twice with the same bits.")
    forward_ms: float = Field(ge=0, description="Milliseconds of a row without gradients, in full passes.")
    gradient_ms: float = Field(ge=0, description="Milliseconds of a row with gradients, in full passes.")
    row_bytes: int | None = Field(
        ge=0, description="Memory that one more row of a pass with gradients takes; null where not measured."
    )
    gradient_error: float | None = Field(
        description="How far the gradient is from differences of the answers: the median over random "
        "directions, as a share of the gradient's length; null if not finite."
    )
    gradient_tolerance: float = Field(description="The most that `gradient_error` may be.")
    gradient_agrees: bool = Field(
        description="The gradient is that of the answers. Where it is not, attacks that follow it fail on a "
        "model that others break."
    )


class RemoteProbe(BaseModel):
    """What asking a remote model a handful of questions at its registration showed."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    measured_at: datetime
    queries: int = Field(ge=1, description="Rows that were asked about; they count towards the budget.")
    query_seconds: float = Field(ge=0, description="Seconds that a question about one image took.")
    deterministic: bool = Field(description="The same image was answered twice with the same numbers.")
    repeat_difference: float = Field(
        ge=0, description="Largest difference between those two answers' logits."
    )
    batch_invariant: bool = Field(description="An image alone was answered as it was beside another.")
    batch_difference: float = Field(ge=0, description="Largest difference between those two answers' logits.")
    decisions_only: bool = Field(description="It tells classes and nothing of how sure it is.")


RegistrationProbe = ModelProbe | RemoteProbe
"""What a registration showed of a model, be it a file or behind an address."""
