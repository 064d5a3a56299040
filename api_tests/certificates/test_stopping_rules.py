"""The statistics of certificates against scipy, exact values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from touchstone.certificates.pixeldp import gaussian_radius, laplace_radius
from touchstone.engine import (
    STOPPING_RULES,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    log_e_value,
    majority_p_value,
    required_probability,
)


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (990, 1000), (100_000, 100_000)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.001, 0.001 / 7])
def test_clopper_pearson_bounds_match_scipy(hits, n, alpha):
    interval = stats.binomtest(hits, n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact")
    assert clopper_pearson_lower(hits, n, alpha) == pytest.approx(interval.low, rel=1e-9, abs=1e-12)
    assert clopper_pearson_upper(hits, n, alpha) == pytest.approx(interval.high, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "n", "p0"), [(70, 100, 0.5), (999, 1000, 0.9), (50, 100, 0.5), (3, 10, 0.8)]
)
def test_e_value_equals_its_mixture_integral(hits, n, p0):
    mixture, _ = quad(
        lambda p: math.exp(
            hits * math.log(p / p0) + (n - hits) * math.log((1 - p) / (1 - p0)) if 0 < p < 1 else -math.inf
        ),
        p0,
        1,
        points=[max(p0, hits / n)] if p0 < hits / n < 1 else None,
        limit=500,
    )
    assert math.exp(log_e_value(hits, n, p0)) == pytest.approx(mixture / (1 - p0), rel=1e-6)


def test_largest_radius_matches_the_paper():
    lower = STOPPING_RULES["fixed"].lower(100_000, 100_000, n=100_000, alpha=0.001)
    assert lower == pytest.approx(0.001 ** (1 / 100_000), rel=1e-12)
    assert certified_radius(lower, 1.0) == pytest.approx(3.8115, abs=1e-4)
    assert required_probability(certified_radius(0.9, 0.25), 0.25) == pytest.approx(0.9)
    assert certified_radius(0.5, 1.0) == 0


@pytest.mark.parametrize("rule", sorted(STOPPING_RULES))
def test_lower_bounds_fall_with_alpha_and_rise_with_hits(rule):
    at = [STOPPING_RULES[rule].lower(900, 1000, n=1000, alpha=alpha) for alpha in (0.1, 0.01, 0.001)]
    assert at == sorted(at, reverse=True)
    rising = [STOPPING_RULES[rule].lower(hits, 1000, n=1000, alpha=0.01) for hits in (0, 500, 700, 900, 1000)]
    assert rising == sorted(rising)
    assert rising[0] == 0


@pytest.mark.parametrize("rule", sorted(STOPPING_RULES))
@pytest.mark.parametrize("p", [0.55, 0.8, 0.99])
def test_bounds_of_all_looks_together_fail_no_more_often_than_alpha(rule, p):
    """The worst stopper stops whenever any look's bound is false; that must stay within alpha."""
    alpha, runs, n = 0.05, 2_000, 3_000
    draw = np.random.default_rng(1)
    looks = STOPPING_RULES[rule].looks(n)
    wrong = 0
    for _ in range(runs):
        sums = np.cumsum(draw.random(n) < p)
        wrong += any(
            STOPPING_RULES[rule].lower(int(sums[at - 1]), at, n=n, alpha=alpha) > p for at in looks[:40:4]
        )
    assert wrong / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_clopper_pearson_at_repeated_looks_fails_more_often_than_alpha():
    """What the rules are for: the naive way fails this project's own bar."""
    alpha, runs, p = 0.05, 400, 0.8
    draw = np.random.default_rng(2)
    wrong = 0
    for _ in range(runs):
        sums = np.cumsum(draw.random(3_000) < p)
        wrong += any(clopper_pearson_lower(int(sums[at - 1]), at, alpha) > p for at in range(100, 3_001, 100))
    assert wrong / runs > alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(("p", "size"), [(0.6, 0.059), (0.9, 0.390), (0.99, 0.555), (0.9999, 0.570)])
def test_pixeldp_radii_match_known_values(p, size):
    assert gaussian_radius(p, 1 - p, 1.0)[0] == pytest.approx(size, abs=1.5e-3)
    assert gaussian_radius(p, 1 - p, 0.25)[0] == pytest.approx(size / 4, abs=4e-4)


def test_pixeldp_conditions_hold_at_the_reported_radius():
    for lower, upper in [(0.7, 0.2), (0.95, 0.04), (0.51, 0.49), (0.3, 0.5)]:
        size, epsilon, delta = gaussian_radius(lower, upper, 1.0)
        if size:
            assert lower > math.exp(2 * epsilon) * upper + (1 + math.exp(epsilon)) * delta
            assert math.sqrt(2 * math.log(1.25 / delta)) * size / epsilon == pytest.approx(1.0)
            assert epsilon <= 1
            assert 0.000999 < delta < 0.3001
        size, epsilon, _ = laplace_radius(lower, upper, 0.5)
        assert size == pytest.approx(max(0.0, 0.5 * math.log(lower / upper) / 2), abs=1e-12)
        assert not size or lower > math.exp(2 * epsilon) * upper


def test_majority_p_value_matches_the_two_sided_binomial_test():
    for first, second in [(1, 0), (1, 1), (3, 0), (60, 40), (510, 490), (999, 1), (100_000, 99_000)]:
        assert majority_p_value(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue)
