"""PixelDP: certified robustness from the group privacy of noise at the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from touchstone import engine
from touchstone.fields import Count, Integer, Ratio
from touchstone.methods import Certificate, Cost, Info

if TYPE_CHECKING:
    from touchstone.engine import CertificateCase, Counts, PlanOf

DELTAS = np.geomspace(1e-3, 0.3, 400)
EPSILONS = np.linspace(1e-3, 1.0, 1000)

ABSTAIN_REASON = "the vote's lower bound does not exceed the other classes' upper bound by enough"
INCOMPLETE_REASON = "the job ended before all samples were counted, and they prove something only together"


class PixelDP(Certificate):
    """The expected vote under noise cannot change much where the noise makes the image differentially
    private.

    With noise at the image the sensitivity is 1: Gaussian noise of σ = L·sqrt(2 ln(1.25/δ))/ε makes
    predictions (ε, δ)-private for changes of L2 size L, Laplace noise of scale L/ε does so for L1 with δ = 0.
    The answer is robust to L where the chosen class's lower bound exceeds e^{2ε} times the others' upper
    bound plus (1+e^ε)δ (Proposition 1); the largest L over ε <= 1 and δ is reported. Bounds are
    Clopper-Pearson on votes, shared among the classes; a pilot picks the class.
    """

    info = Info(
        name="pixeldp",
        title="PixelDP",
        norms=("l2", "l1"),
        paper="Lecuyer et al. 2019: Certified Robustness to Adversarial Examples with Differential Privacy",
        url="https://arxiv.org/abs/1802.03471",
        access="scores",
        targeted=False,
    )

    noise: Literal["gaussian", "laplace"] = Field(
        "gaussian", description="Gaussian noise certifies in L2, Laplace noise in L1."
    )
    sigma: Ratio = Field(
        0.25, gt=0, le=10, description="Scale of the noise: σ of the Gaussian, b of the Laplace distribution."
    )
    n0: Count = Field(100, le=100_000, description="Samples of the pilot, which picks the class.")
    n: Integer = Field(2_000, ge=300, le=10_000_000, description="Samples of the count.")
    alpha: Ratio = Field(0.001, gt=0, lt=0.5, description="Total probability of error (the paper's η).")

    def cost(self) -> Cost:
        """A pass for each sample, two queries for batch invariance, and the clean one."""
        return Cost(forward=self.n0 + self.n + 40, backward=0)

    def run(self, subject: CertificateCase) -> PlanOf[Counts]:
        """Count all n samples."""
        stop = engine.StoppingCriterion(engine.STOPPING_RULES["fixed"], self.n, self.alpha, self.sigma)
        noise = engine.SampleNoise(self.noise, self.sigma, subject.seed)
        return (yield from engine.count_votes(subject, noise=noise, pilot=self.n0, stop=stop))

    def bounds(self, counts: Counts) -> tuple[float, float]:
        """Clopper-Pearson bounds, which are a proof only once all samples are counted."""
        if not counts.n:
            return 0.0, 1.0
        share = self.alpha / len(counts.votes)
        lower = engine.clopper_pearson_lower(counts.hits, counts.n, share)
        return lower, engine.clopper_pearson_upper(counts.hits, counts.n, share)

    def result(self, counts: Counts) -> dict[str, Any]:
        """What the counts prove."""
        share = self.alpha / len(counts.votes)
        others = np.delete(counts.votes, counts.label)
        lower, _ = self.bounds(counts)
        upper = engine.clopper_pearson_upper(int(others.max()), counts.n, share) if counts.n else 1.0
        radius, epsilon, delta = (gaussian_radius if self.noise == "gaussian" else laplace_radius)(
            lower, upper, self.sigma
        )
        abstained = radius == 0
        why = ABSTAIN_REASON if counts.n else INCOMPLETE_REASON
        return {
            "guarantee": "statistical",
            "norm": "l2" if self.noise == "gaussian" else "l1",
            "radius": radius,
            "abstained": abstained,
            "abstain_reason": why if abstained else None,
            "target_radius": None,
            "decision": None,
            "stopped_by": counts.stopped,
            "sampling": {
                "noise": self.noise,
                "sigma": self.sigma,
                "n0": self.n0,
                "n_used": counts.n,
                "n_max": self.n,
                "looks": [self.n],
                "alpha": self.alpha,
                "rule": "fixed",
                "alpha_rule": f"clopper-pearson, one look at {self.n}, alpha/{len(counts.votes)} a class",
                "classes": len(counts.votes),
                "nA": counts.hits,
                "nB": int(others.max()),
                "pA_lower": lower,
                "pA_upper": 1.0,
                "pB_upper": upper,
                "epsilon": epsilon,
                "delta": delta,
                "log_e_value": None,
            },
        }


def gaussian_radius(lower: float, upper: float, sigma: float) -> tuple[float, float, float]:
    """The largest L2 size that Gaussian noise of scale σ certifies, and the ε and δ that show it
    (Proposition 1).
    """
    delta, epsilon = DELTAS[:, None], EPSILONS[None, :]
    robust = lower > np.exp(2 * epsilon) * upper + (1 + np.exp(epsilon)) * delta
    size = np.where(robust, sigma * epsilon / np.sqrt(2 * np.log(1.25 / delta)), 0.0)
    row, column = np.unravel_index(int(size.argmax()), size.shape)
    if size[row, column] == 0:
        return 0.0, 0.0, 0.0
    return float(size[row, column]), float(EPSILONS[column]), float(DELTAS[row])


def laplace_radius(lower: float, upper: float, scale: float) -> tuple[float, float, float]:
    """The largest L1 size that Laplace noise of this scale certifies: ε just under ln(lower/upper)/2, δ =
    0.
    """
    if lower <= upper or upper <= 0:
        return 0.0, 0.0, 0.0
    epsilon = math.log(lower / upper) / 2 * (1 - 1e-12)
    return scale * epsilon, epsilon, 0.0
