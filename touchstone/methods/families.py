"""Families of attacks: the parameters that attacks of one budget or one kind of access share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import (
    Field,
    model_validator,
)

from touchstone.fields import (
    Confidence,
    Count,
    Distance,
    EotSamples,
    Norm,
)
from touchstone.methods.declaration import Attack

if TYPE_CHECKING:
    from torch import Tensor


class NormAttack(Attack):
    """An attack that works in one of several norms: `norm` is checked against the method's own."""

    norm: Norm = Field("l2", description="The norm in which the perturbation is measured.")

    @model_validator(mode="after")
    def _check_norm(self) -> NormAttack:
        if self.norm not in self.info.norms:
            raise ValueError(
                f"norm: {self.info.name} works in {', '.join(self.info.norms)}, not in {self.norm}"
            )
        return self


class MinimalNorm(NormAttack):
    """An attack that looks for the nearest adversarial image, however far it is.

    What it finds is rounded to the 8-bit lattice afterwards, as near as it still fools the model there; see
    `engine.round_to_success`.
    """


class FixedBudget(NormAttack):
    """An attack that may move an image by at most `eps`."""

    norm: Norm = Field("linf", description="The norm in which the perturbation is bounded.")
    early_stop: bool = Field(
        True,
        description="Stop as soon as the image fools the model; false runs every step and returns the "
        "most confident success.",
    )
    min_confidence: Confidence | None = Field(
        None,
        description="Stop only once the model predicts another class (or the target) with this confidence; "
        "where it never does, the most confident success is returned.",
        examples=[0.9],
    )
    eps: Distance = Field(
        8 / 255,
        description="Radius of the ball around the image, in the box [0,1]; a number or a fraction: 8/255.",
        examples=["8/255"],
    )

    def radius(self, channels: int) -> float:  # noqa: ARG002
        """Its `eps`."""
        return self.eps

    @model_validator(mode="after")
    def _check_eps(self) -> FixedBudget:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"eps: {self.eps:g} is larger than the whole box [0,1]: did you mean {self.eps:g}/255?"
            )
        return self


E = TypeVar("E", float, "Tensor")


class StepSize:
    """An attack of fixed budget whose steps have a length: its `step_size`, or a default that follows from
    the radius.
    """

    if TYPE_CHECKING:
        eps: float
        step_size: float | None

    def default_step_size(self, eps: E) -> E:
        """The length of a step at this radius where none is given."""
        raise NotImplementedError

    def resolve_step_size(self, eps: E) -> E:
        """The length of a step at this radius."""
        return self.default_step_size(eps) if self.step_size is None else 0 * eps + self.step_size

    def resolve_defaults(self, classes: int) -> dict[str, Any]:  # noqa: ARG002
        """The length of its steps."""
        return {"step_size": self.resolve_step_size(self.eps)}


class GradientAttack(FixedBudget):
    """An attack of fixed budget that queries gradients.

    An attack of another family declares the same field, `eot: EotSamples = 1`; it needs nothing else for EOT.
    """

    eot: EotSamples = 1


class RestartedAttack(GradientAttack):
    """An attack that starts at random, and again where it failed; `run` is one attempt."""

    restarts: Count = Field(
        1, le=1_000, description="Attempts, each from its own start; later ones only where all before failed."
    )
