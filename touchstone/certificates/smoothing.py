"""Randomized smoothing: count a class's votes under Gaussian noise, and certify a radius from the count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from touchstone import engine
from touchstone.fields import Count, Distance, Ratio
from touchstone.methods import Certificate, Cost, Info

if TYPE_CHECKING:
    from touchstone.engine import CertificateCase, Counts, PlanOf, StoppingCriterion

ABSTAIN_REASONS = {
    "no_majority": "no class has a majority of the noisy votes",
    "n": "the samples do not show that one class has a majority; more of them might",
    "deadline_exceeded": "the deadline passed before the samples showed a majority",
    "query_budget_spent": "the model's budget of queries was spent before the samples showed a majority",
    "canceled": "the job was canceled before the samples showed a majority",
}


class Smoothing(Certificate):
    """The smoothed classifier answers with the class that most Gaussian noises vote for.

    CERTIFY of the paper (section 3.2.2): a pilot of `n0` samples picks the class, fresh samples bound the
    probability p of its vote from below, and the answer cannot change within σ Φ⁻¹(p) in L2; it abstains
    where p is not above 1/2. Noise is added in [0,1] at the size the model takes, before normalization.
    Counting stops early under rules that stay valid: at `target_radius`, once it is decided, or when there is
    no more to gain than `tolerance`.
    """

    info = Info(
        name="smoothing",
        title="Randomized smoothing",
        norms=("l2",),
        paper="Cohen, Rosenfeld & Kolter 2019: Certified Adversarial Robustness via Randomized Smoothing",
        url="https://arxiv.org/abs/1902.02918",
        access="scores",
        targeted=False,
    )

    sigma: Ratio = Field(0.25, gt=0, le=10, description="Standard deviation of the noise, in the box [0,1].")
    n0: Count = Field(100, le=100_000, description="Samples of the pilot, which picks the class.")
    n: Count = Field(100_000, le=10_000_000, description="Samples of the count, at most.")
    alpha: Ratio = Field(0.001, gt=0, lt=0.5, description="Probability of a false certificate, in all.")
    rule: Literal["group_sequential", "e_process", "fixed"] = Field(
        "group_sequential",
        description="When to stop: at a few looks that share alpha, at any time, or after all n samples.",
    )
    target_radius: Distance | None = Field(
        None, description="Ask only whether this L2 radius holds: far cheaper than the largest one."
    )
    tolerance: Distance = Field(0.0, description="Stop when the radius cannot grow by more than this.")

    @model_validator(mode="after")
    def _check_target(self) -> Smoothing:
        if self.target_radius == 0:
            raise ValueError("target_radius: a radius of 0 needs no certificate; ask for a positive one")
        return self

    def cost(self) -> Cost:
        """A pass for each sample, two queries for batch invariance, and the clean one."""
        return Cost(forward=self.n0 + self.n + 40, backward=0)

    def pooling_parameters(self) -> dict[str, Any] | None:
        """Under the e-process, counts of equal image, model and these parameters are one count."""
        if self.rule != "e_process":
            return None
        return self.model_dump(include={"sigma", "n0", "alpha", "rule"})

    def run(self, subject: CertificateCase) -> PlanOf[Counts]:
        """Pick the class, then count its votes until the rule stops."""
        noise = engine.SampleNoise("gaussian", self.sigma, subject.seed)
        return (
            yield from engine.count_votes(
                subject, noise=noise, pilot=self.n0, stop=self._stopping_criterion()
            )
        )

    def bounds(self, counts: Counts) -> tuple[float, float]:
        """The bounds of the stopping rule, which are a proof only at its looks."""
        if not counts.n:
            return 0.0, 1.0
        stopping = self._stopping_criterion()
        return stopping.lower(counts.hits, counts.n), stopping.upper(counts.hits, counts.n)

    def result(self, counts: Counts) -> dict[str, Any]:
        """What the counts prove."""
        stopping = self._stopping_criterion()
        lower, upper = self.bounds(counts)
        abstained = lower <= 0.5
        radius = 0.0 if abstained else engine.certified_radius(lower, self.sigma)
        return {
            "guarantee": "statistical",
            "norm": "l2",
            "radius": radius,
            "abstained": abstained,
            "abstain_reason": ABSTAIN_REASONS.get(counts.stopped, ABSTAIN_REASONS["n"])
            if abstained
            else None,
            "target_radius": self.target_radius,
            "decision": self._decide(lower, counts.stopped, abstained=abstained),
            "stopped_by": counts.stopped,
            "sampling": {
                "noise": "gaussian",
                "sigma": self.sigma,
                "n0": self.n0,
                "n_used": counts.n,
                "n_max": max(self.n, counts.n),  # earlier jobs may have counted more than this one requires
                "looks": list(stopping.rule.looks(self.n)) if self.rule != "e_process" else "any",
                "alpha": self.alpha,
                "rule": self.rule,
                "alpha_rule": stopping.rule.alpha_spending(self.n),
                "nA": counts.hits,
                "pA_lower": lower,
                "pA_upper": upper,
                "log_e_value": self._log_e_value(counts),
            },
        }

    def _stopping_criterion(self) -> StoppingCriterion:
        return engine.StoppingCriterion(
            engine.STOPPING_RULES[self.rule],
            self.n,
            self.alpha,
            self.sigma,
            self.target_radius,
            self.tolerance,
        )

    def _required_probability(self) -> float:
        """The vote probability to be proved: that of the target radius, else a majority."""
        return engine.required_probability(self.target_radius, self.sigma) if self.target_radius else 0.5

    def _log_e_value(self, counts: Counts) -> float | None:
        if self.rule != "e_process" or not counts.n:
            return None
        return engine.log_e_value(counts.hits, counts.n, self._required_probability())

    def _decide(self, lower: float, stopped: str, *, abstained: bool) -> str | None:
        if self.target_radius is None:
            return None
        if lower >= self._required_probability():
            return "certified"
        if stopped == "refuted":
            return "refuted"
        return "abstain" if abstained and stopped == "no_majority" else "undecided"
