"""Messages to and from a child process that tries a model, as JSON. Never imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.ledger.records import ExamplesRef
from touchstone.models.manifest import Gradients, Manifest
from touchstone.models.measurements import ModelProbe
from touchstone.models.output_activation import MAX_STEPS, NORMALIZERS, ActivationStep

STEPS = ("start", "build", "answer", "gradient check", "latency", "examples")
"""The steps of a trial, in order; the last one only where there are examples."""


def list_steps(*, examples: bool) -> tuple[str, ...]:
    """The steps of a trial with or without examples."""
    return STEPS if examples else STEPS[:-1]


class TrialMessagePart(BaseModel):
    """Strict about its fields: what a child writes is checked like any user's input."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrialRequest(TrialMessagePart):
    """The model to try, and how much of the machine that may take; examples, if any, and the file follow."""

    manifest: Manifest
    seconds: float = Field(gt=0)
    memory: int = Field(gt=0)
    examples: ExamplesRef | None = None


class StepStarted(TrialMessagePart):
    """A step of `STEPS` that has started, counted from 0."""

    step: int = Field(ge=0, lt=len(STEPS))


class TrialError(TrialMessagePart):
    """Why the model cannot be used: a code of `touchstone.errors` and a sentence."""

    code: str = Field(max_length=40)
    detail: str = Field(max_length=2000)
    field: str | None = Field(None, max_length=60)


class OutputEnd(TrialMessagePart):
    """What stands between the logits and the output, as a manifest has it."""

    activation: tuple[ActivationStep, ...] = Field((), max_length=MAX_STEPS)
    single: bool = False

    def complete_manifest(self, manifest: Manifest, parameters: int) -> Manifest:
        """The manifest with these results."""
        learned = {"output_activation": self.activation, "single_output": self.single}
        return manifest.model_copy(update={"parameters": parameters, "softmax": self._softmax(), **learned})

    def _softmax(self) -> Literal["none", "removed", "inverted"]:
        handled = [one.handling for one in self.activation if one.function in NORMALIZERS]
        return handled[-1] if handled else "none"


class TrialResult(TrialMessagePart):
    """What the trial measured that the manifest did not contain."""

    parameters: int = Field(ge=0)
    gradients: Gradients = "exact"
    end: OutputEnd
    probe: ModelProbe

    def complete_manifest(self, manifest: Manifest) -> Manifest:
        """The manifest with these results."""
        found = self.end.complete_manifest(manifest, self.parameters)
        return found.model_copy(update={"gradients": self.gradients})


class Message(TrialMessagePart):
    """One line of a child: one of these."""

    started: StepStarted | None = None
    error: TrialError | None = None
    result: TrialResult | None = None
