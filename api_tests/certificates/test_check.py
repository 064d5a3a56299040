"""The independent checker: it accepts what the certifier makes, and nothing that was altered."""

from __future__ import annotations

import ast
import copy
import inspect

import pytest

from touchstone import check as checker
from touchstone.check import check
from touchstone.engine import Counts
from touchstone.methods import find

CASES = [
    ("smoothing", {"rule": "group_sequential", "n": 10_000}, 9_900, 10_000),
    ("smoothing", {"rule": "group_sequential", "n": 10_000, "target_radius": 0.2}, 300, 300),
    ("smoothing", {"rule": "fixed", "n": 1_000}, 1_000, 1_000),
    ("smoothing", {"rule": "fixed", "n": 1_000}, 510, 1_000),
    ("smoothing", {"rule": "e_process", "n": 5_000}, 4_321, 4_400),
    ("smoothing", {"rule": "e_process", "n": 5_000, "target_radius": 0.1}, 790, 800),
    ("smoothing", {"rule": "e_process", "n": 5_000}, 40, 100),
    ("pixeldp", {"n": 2_000}, 1_950, 2_000),
    ("pixeldp", {"n": 2_000, "noise": "laplace"}, 1_999, 2_000),
    ("pixeldp", {"n": 2_000}, 900, 2_000),
]


def certificate(name, parameters, hits, n):
    import numpy as np  # noqa: PLC0415 - needed here alone

    votes = np.array([n - hits, hits, 0, 0])
    counts = Counts(1, 1, votes, seed=0, n=n, stopped="certified" if "target_radius" in parameters else "n")
    own = find(name).parse(parameters).result(counts)
    top = [{"label": label, "count": count} for label, count in counts.top()]
    return {
        "method": name,
        **own,
        "predicted_class": None if own["abstained"] else {"label": 1, "name": "one"},
        "sampling": own["sampling"] | {"counts_top5": top},
        "eval_mode_checked": True,
        "batch_invariance_max_abs_diff": 0.0,
    }


@pytest.mark.parametrize(("name", "parameters", "hits", "n"), CASES)
def test_checker_accepts_honest_certificates(name, parameters, hits, n):
    findings = check(certificate(name, parameters, hits, n))
    assert [finding for finding in findings if not finding.agrees] == []
    assert len(findings) >= 10


@pytest.mark.parametrize(("name", "parameters", "hits", "n"), CASES)
@pytest.mark.parametrize("tamper", ["radius", "nA", "alpha", "pA_lower", "abstained"])
def test_checker_rejects_altered_certificates(name, parameters, hits, n, tamper):
    altered = copy.deepcopy(certificate(name, parameters, hits, n))
    if tamper == "radius":
        altered["radius"] += 0.01
    elif tamper == "abstained":
        altered["abstained"] = not altered["abstained"]
    elif tamper == "nA":
        altered["sampling"]["nA"] -= 3
    elif tamper == "alpha":
        altered["sampling"]["alpha"] /= 100
    else:
        altered["sampling"]["pA_lower"] += 0.001
    if hits * 2 < n and tamper == "alpha":
        return  # an abstention stays one at any smaller alpha
    assert not all(finding.agrees for finding in check({"result": altered}))


def test_checker_shares_no_code_with_the_certifier():
    tree = ast.parse(inspect.getsource(checker))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {str(getattr(node, "module", None) or node.names[0].name) for node in imports}
    assert not {name for name in imported if name.startswith(("touchstone", "torch"))}


def test_checker_refuses_an_unknown_method():
    with pytest.raises(ValueError, match="unknown method"):
        check({"method": "hope", "sampling": {}})
