"""Predictions: the classes of an image, and those of the smoothed classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from touchstone import engine
from touchstone.engine.noise_streams import SAMPLE_STREAM
from touchstone.fields import Count, Ratio
from touchstone.methods import Cost
from touchstone.methods.footprint import CERTIFICATE, Footprint
from touchstone.models.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TOP = 1_000
"""Classes that a prediction may name from now on: a result is read, listed and delivered as a whole. Earlier
jobs may have asked for more, so that this is checked at the submission.
"""

DEFENCE_FIELDS = ("sigma", "n", "alpha")


class Predict(BaseModel):
    """The parameters of a prediction.

    With `defence` it answers as the smoothed classifier does (PREDICT of Cohen, Rosenfeld & Kolter 2019,
    section 3.2.1): with the class that most Gaussian noises vote for, or not at all where it might be
    another one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    top: Count = Field(
        5,
        json_schema_extra={"maximum": MAX_TOP},
        description="How many classes to name, the likeliest first; at most as many as there are. Inference "
        "gives the logits of all.",
    )
    defence: Literal["smoothing"] | None = Field(
        None, description="`smoothing` answers with the vote of noisy copies, too, or abstains."
    )
    sigma: Ratio = Field(0.25, gt=0, le=10, description="Of the defence: standard deviation of the noise.")
    n: Count = Field(1_000, le=10_000_000, description="Of the defence: noisy copies that vote.")
    alpha: Ratio = Field(
        0.001, gt=0, lt=0.5, description="Of the defence: probability of answering with a wrong class."
    )

    @model_validator(mode="after")
    def _check_defence(self) -> Predict:
        idle = [name for name in DEFENCE_FIELDS if name in self.model_fields_set]
        if idle and self.defence is None:
            raise ValueError(f"{idle[0]}: it belongs to defence=smoothing; ask for that or leave it out")
        return self

    def parameters(self) -> dict[str, Any]:
        """The parameters that have an effect, as a job shows them."""
        return self.model_dump(mode="json", exclude=set() if self.defence else {"defence", *DEFENCE_FIELDS})

    def cost(self) -> Cost:
        """The clean query, and with the defence its samples and two queries for batch invariance."""
        return Cost(forward=self.n + 40 if self.defence else 1, backward=0)

    def footprint(self) -> Footprint:
        """The upload while it is resized; with the defence also that of a certificate."""
        return CERTIFICATE

    def rounds(self) -> int:
        """The rounds in which progress is counted."""
        return self.cost().forward

    def completed_rounds(self, forward: int, _backward: int) -> int:
        """How many rounds these queries complete."""
        return forward


def build_smoothed_result(
    parameters: Predict, votes: NDArray[np.int64], manifest: Manifest
) -> dict[str, Any]:
    """The result of the votes (K,): the class with the most, unless chance may have decided between the first
    two.
    """
    order = np.argsort(-votes, kind="stable")[:5]
    first, second = int(votes[order[0]]), int(votes[order[1]]) if len(order) > 1 else 0
    p_value = engine.majority_p_value(first, second)
    abstained = p_value > parameters.alpha
    label = None if abstained else int(order[0])
    return {
        "label": label,
        "name": None if label is None else manifest.classes[label],
        "abstained": abstained,
        "p_value": p_value,
        "n": int(votes.sum()),
        "sigma": parameters.sigma,
        "alpha": parameters.alpha,
        "counts_top5": [{"label": int(one), "count": int(votes[one])} for one in order if votes[one]],
        "stream": SAMPLE_STREAM,
    }
