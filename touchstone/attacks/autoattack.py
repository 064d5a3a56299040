"""AutoAttack: four attacks in turn, each on the images that withstood those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine, evaluation
from touchstone.fields import Count
from touchstone.lazy import torch
from touchstone.methods import (
    Attack,
    Cost,
    Footprint,
    GradientAttack,
    Info,
    find,
    total_cost,
    total_rounds,
)

if TYPE_CHECKING:
    from touchstone.engine import Best, Case, Plan, PlanOf


class AutoAttack(GradientAttack):
    """The standard version of AutoAttack: APGD on the cross-entropy, targeted APGD, targeted FAB and Square,
    each on the images that withstood those before.

    Section 5 of the paper: 100 steps, nine classes and 5,000 queries. In L1 five attempts of APGD and five
    classes, as Croce & Hein 2021 (2103.01208). Images leave as soon as they are misclassified, where the
    authors' code runs each part to its end. `found_by` names the part that succeeded; Square there is a
    sign of gradient masking.
    """

    info = Info(
        name="autoattack",
        title="AutoAttack",
        norms=("linf", "l2", "l1"),
        paper="Croce & Hein 2020: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks",
        url="https://arxiv.org/abs/2003.01690",
        targeted=False,
    )

    steps: Count = Field(
        100, le=10_000, description="Steps of each climb of APGD, and of FAB towards each class."
    )
    queries: Count = Field(5_000, le=1_000_000, description="Queries of Square for one image.")

    def parts(self) -> Mapping[str, Attack]:
        """The four, as they are declared in their own files."""
        sparse = self.norm == "l1"
        ball = {
            "norm": self.norm,
            "eps": self.eps,
            "early_stop": self.early_stop,
            "min_confidence": self.min_confidence,
        }
        climb = {**ball, "steps": self.steps}
        return {
            "apgd-ce": _make_attack("apgd", climb, restarts=5 if sparse else 1),
            "apgd-t": _make_attack("apgdt", climb, rivals=5 if sparse else 9),
            "fab-t": _make_attack("fab", {"norm": self.norm, "steps": self.steps}, rivals=9),
            "square": _make_attack("square", ball, queries=self.queries),
        }

    def cost(self) -> Cost:
        """The cost of all parts, and a query for what each of them found."""
        costs = [total_cost(part) for part in self.parts().values()]
        forward = sum(cost.forward for cost in costs) + len(costs)
        return Cost(forward, sum(cost.backward for cost in costs))

    def footprint(self) -> Footprint:
        """That of the largest part, and what the parts before it found."""
        largest = max((part.footprint() for part in self.parts().values()), key=lambda own: own.images)
        return replace(largest, images=largest.images + 4)

    def rounds(self) -> int:
        """One per step, class and query of all parts."""
        return sum(total_rounds(part) for part in self.parts().values())

    def completed_rounds(self, forward: int, backward: int) -> int:
        """Forward passes, since Square makes no others."""
        return max(forward, backward)

    def run(self, case: Case) -> Plan:
        """Each part on the rows that are not done; what it found is queried as a file before it counts."""
        best, by = engine.Best.initial(case.threat.x0), case.goal.label.new_full((len(case),), -1)
        target = engine.target_score(case) if self.early_stop else torch.inf
        for index, part in enumerate(self.parts().values()):
            rows = (best.score < target).nonzero().flatten()
            if not len(rows):
                break
            found = yield from _run_part(case[rows], part)
            new = (found.score >= engine.SUCCESS) & (found.score > best.score[rows])
            best, by = best.put(rows, found), by.index_fill(0, rows[new], index)
        return replace(best.to_found(), part=by)


def _make_attack(name: str, fields: Mapping[str, object], **others: object) -> Attack:
    method = find(name, "attack").parse({**fields, **others})
    if not isinstance(method, Attack):
        raise TypeError(f"{name} is not an attack")
    return method


def _run_part(case: Case, part: Attack) -> PlanOf[Best]:
    """What a part found, its files scored by what the model says of them."""
    found = yield from evaluation.run_attempts(part, case)
    x = case.threat.project(found.x)
    logits = (yield case.query(x)).logits
    success = engine.score_successes(case, logits, engine.SUCCESS_AS_FILE)
    return engine.Best(x, torch.where(case.goal.is_met(logits), success, engine.Margin(case.goal)(logits)))
