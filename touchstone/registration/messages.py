"""What a child process that tries a model is told and tells, as JSON: never imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Examined

STEPS = ("read", "build", "answer", "differentiate", "measure")
"""What is done in turn."""

Softmax = Literal["none", "removed", "inverted"]


class Part(BaseModel):
    """Strict about its fields: what a child writes is checked as if a stranger had written it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Request(Part):
    """The model to try, and how much of the machine that may take; the file follows."""

    card: Manifest
    seconds: float = Field(gt=0)
    memory: int = Field(gt=0)


class Begun(Part):
    """A step of `STEPS` that was begun, counted from 0."""

    step: int = Field(ge=0, lt=len(STEPS))


class Fault(Part):
    """Why the model cannot be used: a code of `touchstone.errors` and a sentence."""

    code: str = Field(max_length=40)
    detail: str = Field(max_length=2000)
    field: str | None = Field(None, max_length=60)


class Findings(Part):
    """What is now known of the model that its card could not tell before."""

    parameters: int = Field(ge=0)
    softmax: Softmax
    examined: Examined

    def completed(self, card: Manifest) -> Manifest:
        """The card with it."""
        return card.model_copy(update={"parameters": self.parameters, "softmax": self.softmax})


class Word(Part):
    """One line of a child: one of these."""

    begun: Begun | None = None
    fault: Fault | None = None
    findings: Findings | None = None
