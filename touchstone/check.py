"""Checks a certificate from the numbers in it, sharing no code with what made it: only scipy and the
formulas of the papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from scipy import stats
from scipy.integrate import quad

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Finding:
    """One number of a certificate, as claimed and as recomputed."""

    name: str
    claimed: Any
    recomputed: Any
    agrees: bool


def check(certificate: Mapping[str, Any]) -> list[Finding]:
    """Recompute every number of a certificate's result; it is valid if all findings agree.

    Accepts the result object itself or the whole job. Raises KeyError where a field is missing, ValueError
    where the method or the rule is unknown.
    """
    result = certificate.get("result", certificate)
    sampling = result["sampling"]
    if result["method"] == "smoothing":
        findings = _check_smoothing(result, sampling)
    elif result["method"] == "pixeldp":
        findings = _check_pixeldp(result, sampling)
    else:
        raise ValueError(f"unknown method {result['method']!r}: expected smoothing or pixeldp")
    return [*_check_counts(result, sampling), *findings, *_check_verdict(result)]


def _check_counts(result: Mapping[str, Any], sampling: Mapping[str, Any]) -> list[Finding]:
    top = sampling["counts_top5"]
    n, hits = sampling["n_used"], sampling["nA"]
    predicted = result["predicted_class"]
    of_class = {one["label"]: one["count"] for one in top}
    return [
        Finding("n_used within n_max", n, sampling["n_max"], 0 <= n <= sampling["n_max"]),
        Finding("nA within n_used", hits, n, 0 <= hits <= n),
        Finding("votes within n_used", sum(of_class.values()), n, sum(of_class.values()) <= n),
        Finding("alpha in (0, 1/2)", sampling["alpha"], "(0, 0.5)", 0 < sampling["alpha"] < 0.5),
        Finding("sigma positive", sampling["sigma"], "> 0", sampling["sigma"] > 0),
        Finding(
            "nA are the class's votes",
            hits,
            None if predicted is None else of_class.get(predicted["label"]),
            predicted is None or of_class.get(predicted["label"]) == hits,
        ),
        Finding(
            "batch invariance",
            result["batch_invariance_max_abs_diff"],
            "<= 0.01",
            result["batch_invariance_max_abs_diff"] <= 0.01 and result["eval_mode_checked"] is not False,
        ),
    ]


def _check_smoothing(result: Mapping[str, Any], sampling: Mapping[str, Any]) -> list[Finding]:
    hits, n, sigma = sampling["nA"], sampling["n_used"], sampling["sigma"]
    if sampling["rule"] == "e_process":
        found = [_check_e_value(result, sampling)] if n else []
        lower = sampling["pA_lower"]
        found.append(Finding("e-value at pA_lower is 1/alpha", lower, "", _e_bound_holds(hits, n, sampling)))
    else:
        looks = sampling["looks"]
        lower = _binomial_lower(hits, n, sampling["alpha"] / len(looks)) if n else 0.0
        found = [
            Finding("n_used is a planned look", n, looks, n == 0 or n in looks),
            Finding("looks are the rule's", looks, "", _looks_match_rule(sampling)),
            _compare_numbers("pA_lower", sampling["pA_lower"], lower),
        ]
    radius = sigma * float(stats.norm.isf(1 - lower)) if lower > 0.5 else 0.0
    return [*found, _compare_numbers("radius", result["radius"], radius), _check_decision(result, sampling)]


def _looks_match_rule(sampling: Mapping[str, Any]) -> bool:
    n, looks = sampling["n_max"], sampling["looks"]
    if sampling["rule"] == "fixed":
        return bool(looks == [n])
    if sampling["rule"] != "group_sequential":
        raise ValueError(f"unknown rule {sampling['rule']!r}")
    planned = [a * 10**b for b in range(2, 6) for a in (1, 3) if a * 10**b <= 100_000]
    return bool(looks == [*[look for look in planned if look < n], n])


def _binomial_lower(hits: int, n: int, alpha: float) -> float:
    """The p at which `hits` or more of `n` have probability alpha."""
    if hits == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if stats.binom.sf(hits - 1, n, middle) < alpha else (low, middle)
    return low


def _log_e(hits: int, n: int, p0: float) -> float:
    """The mixture of likelihood ratios over p in (p0, 1), integrated numerically around its peak."""
    misses = n - hits
    if not 0 < p0 < 1:
        return -math.inf if p0 >= 1 else math.inf

    def log_ratio(p: float) -> float:
        gain = hits * math.log(p / p0)
        return gain + (misses * math.log((1 - p) / (1 - p0)) if misses else 0.0)

    peak = min(max(hits / n, p0), 1 - 1e-12)
    top = log_ratio(peak)
    width = max(math.sqrt(peak * (1 - peak) / n), 1 / n)
    edges = sorted(
        {p0, 1.0, *(min(max(peak + k * width, p0), 1.0) for k in (-40, -12, -4, -1, 0, 1, 4, 12, 40))}
    )
    area = sum(
        quad(lambda p: math.exp(log_ratio(p) - top) if 0 < p < 1 else 0.0, a, b, epsabs=0, epsrel=1e-10)[0]
        for a, b in pairwise(edges)
    )
    return top + math.log(area / (1 - p0)) if area > 0 else -math.inf


def _e_bound_holds(hits: int, n: int, sampling: Mapping[str, Any]) -> bool:
    lower = sampling["pA_lower"]
    if lower == 0 or n == 0:
        return bool(lower == 0)
    return _log_e(hits, n, lower) >= math.log(1 / sampling["alpha"]) - 1e-6


def _check_e_value(result: Mapping[str, Any], sampling: Mapping[str, Any]) -> Finding:
    target = result["target_radius"]
    p0 = float(stats.norm.cdf(target / sampling["sigma"])) if target else 0.5
    found = _log_e(sampling["nA"], sampling["n_used"], p0)
    return _compare_numbers("log_e_value", sampling["log_e_value"], found, tolerance=1e-5)


def _check_decision(result: Mapping[str, Any], sampling: Mapping[str, Any]) -> Finding:
    target, decision = result["target_radius"], result["decision"]
    if target is None:
        return Finding("decision", decision, None, decision is None)
    certified = result["radius"] >= target - TOLERANCE
    known = decision in ("certified", "refuted", "undecided", "abstain")
    agrees = known and (decision == "certified") == certified
    if decision == "refuted":
        agrees = agrees and sampling["pA_upper"] < float(stats.norm.cdf(target / sampling["sigma"]))
    return Finding("decision", decision, "certified" if certified else "not certified", agrees)


def _check_pixeldp(result: Mapping[str, Any], sampling: Mapping[str, Any]) -> list[Finding]:
    n, share = sampling["n_used"], sampling["alpha"] / sampling["classes"]
    lower = _binomial_lower(sampling["nA"], n, share) if n else 0.0
    upper = 1 - _binomial_lower(n - sampling["nB"], n, share) if n else 1.0
    found = [
        _compare_numbers("pA_lower", sampling["pA_lower"], lower),
        _compare_numbers("pB_upper", sampling["pB_upper"], upper),
    ]
    if not result["radius"]:
        return found
    return [
        *found,
        Finding("all samples were counted", n, sampling["n_max"], n == sampling["n_max"]),
        Finding("the robustness condition holds", [lower, upper], "", _is_private(lower, upper, sampling)),
        _compare_numbers("radius", result["radius"], _pixeldp_radius(sampling)),
    ]


def _is_private(lower: float, upper: float, sampling: Mapping[str, Any]) -> bool:
    """Proposition 1 of PixelDP at the certificate's own ε and δ."""
    epsilon, delta = sampling["epsilon"], sampling["delta"]
    allowed = 0 < epsilon <= 1 and 0 < delta < 1 if sampling["noise"] == "gaussian" else delta == 0
    return bool(allowed and lower > math.exp(2 * epsilon) * upper + (1 + math.exp(epsilon)) * delta - 1e-9)


def _pixeldp_radius(sampling: Mapping[str, Any]) -> float:
    """The L for which noise of this scale is (ε, δ)-private."""
    scale = sampling["sigma"] * sampling["epsilon"]
    if sampling["noise"] == "laplace" or not sampling["delta"]:
        return float(scale)
    return float(scale / math.sqrt(2 * math.log(1.25 / sampling["delta"])))


def _check_verdict(result: Mapping[str, Any]) -> list[Finding]:
    abstained = result["radius"] == 0
    return [
        Finding("abstained", result["abstained"], abstained, result["abstained"] is abstained),
        Finding("guarantee", result["guarantee"], "statistical", result["guarantee"] == "statistical"),
    ]


def _compare_numbers(
    name: str, claimed: float, recomputed: float, *, tolerance: float = TOLERANCE
) -> Finding:
    return Finding(
        name, claimed, recomputed, math.isclose(claimed, recomputed, rel_tol=tolerance, abs_tol=tolerance)
    )
