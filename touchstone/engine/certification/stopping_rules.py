"""When counting votes may stop, and what the counts prove: rules that stay valid under early stopping.

A rule bounds from below the probability p that the smoothed class is voted for, with total error `alpha` over
all looks. The votes that a bound is taken from are never those that chose the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from scipy.special import betainc, betaincinv, betaln, ndtr, ndtri

LOOKS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
RuleName = Literal["group_sequential", "e_process", "fixed"]


def clopper_pearson_lower(hits: int, n: int, alpha: float) -> float:
    """One-sided lower confidence bound of a probability after `hits` of `n` (Clopper & Pearson 1934)."""
    return float(betaincinv(hits, n - hits + 1, alpha)) if hits else 0.0


def clopper_pearson_upper(hits: int, n: int, alpha: float) -> float:
    """One-sided upper confidence bound of a probability after `hits` of `n`."""
    return float(betaincinv(hits + 1, n - hits, 1 - alpha)) if hits < n else 1.0


def log_e_value(hits: int, n: int, p0: float) -> float:
    """Evidence against p <= p0: the logarithm of a uniform mixture over (p0, 1), a test martingale at p = p0.

    Whenever it reaches log(1/alpha), p > p0 with error at most alpha, however often it is checked (Ville).
    """
    misses = n - hits
    rest = float(betainc(misses + 1, hits + 1, 1 - p0))  # 1 - I_p0(hits + 1, misses + 1) without cancellation
    if rest == 0:
        return -math.inf
    likelihood = hits * math.log(p0) + misses * math.log1p(-p0)
    return float(betaln(hits + 1, misses + 1)) + math.log(rest) - math.log1p(-p0) - likelihood


def majority_p_value(first: int, second: int) -> float:
    """The probability of votes at least as uneven as these if both classes are equally likely (two-sided,
    exact).
    """
    return min(1.0, 2 * float(betainc(max(first, second), min(first, second) + 1, 0.5)))


def certified_radius(p: float, sigma: float) -> float:
    """σ Φ⁻¹(p), the L2 radius of Cohen, Rosenfeld & Kolter 2019, equation 3 with p_B = 1 - p; 0 where p <=
    1/2.
    """
    return sigma * float(ndtri(p)) if p > 0.5 else 0.0


def required_probability(radius: float, sigma: float) -> float:
    """The vote probability that a radius requires: Φ(r/σ)."""
    return float(ndtr(radius / sigma))


class StoppingRule(Protocol):
    """When to look at the counts, and what they prove then."""

    @property
    def name(self) -> RuleName:
        """As the parameter `rule` names it."""
        ...

    def looks(self, n: int) -> tuple[int, ...]:
        """The cumulative counts, up to `n`, at which a bound may be taken."""
        ...

    def lower(self, hits: int, at: int, *, n: int, alpha: float) -> float:
        """The lower bound of p at the look `at` of a run planned for `n`."""
        ...

    def alpha_spending(self, n: int) -> str:
        """How alpha is spent, in words and numbers."""
        ...


@dataclass(frozen=True)
class FixedSample:
    """One look, after all samples: the rule of the paper."""

    name: RuleName = "fixed"

    def looks(self, n: int) -> tuple[int, ...]:  # noqa: D102
        return (n,)

    def lower(self, hits: int, at: int, *, n: int, alpha: float) -> float:  # noqa: D102, ARG002
        return clopper_pearson_lower(hits, at, alpha)

    def alpha_spending(self, n: int) -> str:  # noqa: D102
        return f"clopper-pearson, one look at {n}, alpha"


@dataclass(frozen=True)
class GroupSequential:
    """A few looks, each with an equal share of alpha (Bonferroni)."""

    name: RuleName = "group_sequential"

    def looks(self, n: int) -> tuple[int, ...]:  # noqa: D102
        return (*(look for look in LOOKS if look < n), n)

    def lower(self, hits: int, at: int, *, n: int, alpha: float) -> float:  # noqa: D102
        return clopper_pearson_lower(hits, at, alpha / len(self.looks(n)))

    def alpha_spending(self, n: int) -> str:  # noqa: D102
        looks = self.looks(n)
        return f"clopper-pearson, looks at {', '.join(map(str, looks))}, alpha/{len(looks)} each"


@dataclass(frozen=True)
class EProcess:
    """Anytime valid: look after any sample, stop, resume and pool counts as you like."""

    name: RuleName = "e_process"

    def looks(self, n: int) -> tuple[int, ...]:
        """A look wherever the count has grown by a tenth."""
        looks = [100]
        while looks[-1] < n:
            looks.append(looks[-1] + max(50, looks[-1] // 10))
        return (*(look for look in looks if look < n), n)

    def lower(self, hits: int, at: int, *, n: int, alpha: float) -> float:  # noqa: ARG002
        """The largest p0 at which the e-value reaches 1/alpha."""
        from scipy.optimize import brentq  # noqa: PLC0415 - takes a third of a second to import

        enough = math.log(1 / alpha)
        guess = hits / at
        if guess == 0 or log_e_value(hits, at, 1e-12) < enough:
            return 0.0
        top = min(guess, 1 - 1e-15)
        if log_e_value(hits, at, top) >= enough:
            return top
        return float(brentq(lambda p0: log_e_value(hits, at, p0) - enough, 1e-12, top, xtol=1e-15))

    def alpha_spending(self, n: int) -> str:  # noqa: D102, ARG002
        return "e-process, uniform mixture over (p0, 1), anytime valid, alpha"


STOPPING_RULES: dict[RuleName, StoppingRule] = {
    rule.name: rule for rule in (GroupSequential(), EProcess(), FixedSample())
}
