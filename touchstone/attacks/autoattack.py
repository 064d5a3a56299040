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
    GradientAttack,
    Info,
    cost_of,
    find,
    rounds_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Asking, Best, Case, Plan


class AutoAttack(GradientAttack):
    """The standard version of AutoAttack: APGD on the cross-entropy, targeted APGD, targeted FAB and Square,
    each on the images that withstood those before.

    Section 5 of the paper: 100 steps, nine classes and 5,000 queries. In L1 five attempts of APGD and five
    classes, as Croce & Hein 2021 (2103.01208). Images leave as soon as they are misclassified, where the
    authors' code runs each part to its end. `found_by` tells which part it was; where that was Square, the
    gradients hide more than they show.
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
    queries: Count = Field(5_000, le=1_000_000, description="Times that Square asks about an image.")

    def parts(self) -> Mapping[str, Attack]:
        """The four, as they are declared in their own files."""
        sparse = self.norm == "l1"
        ball = {"norm": self.norm, "eps": self.eps, "early_stop": self.early_stop}
        climb = {**ball, "steps": self.steps}
        return {
            "apgd-ce": _attack("apgd", climb, restarts=5 if sparse else 1),
            "apgd-t": _attack("apgdt", climb, rivals=5 if sparse else 9),
            "fab-t": _attack("fab", {"norm": self.norm, "steps": self.steps}, rivals=9),
            "square": _attack("square", ball, queries=self.queries),
        }

    def cost(self) -> Cost:
        """That of all parts, and a look at what each of them found."""
        costs = [cost_of(part) for part in self.parts().values()]
        forward = sum(cost.forward for cost in costs) + len(costs)
        return Cost(forward, sum(cost.backward for cost in costs))

    def rounds(self) -> int:
        """One per step, class and query of all parts."""
        return sum(rounds_of(part) for part in self.parts().values())

    def done(self, forward: int, backward: int) -> int:
        """Forward passes, since Square makes no others."""
        return max(forward, backward)

    def run(self, case: Case) -> Plan:
        """Each part on the rows still open; what it found is looked at as a file before it counts."""
        best, by = engine.Best.none(case.threat.x0), case.goal.label.new_full((len(case),), -1)
        for index, part in enumerate(self.parts().values()):
            rows = (by < 0).nonzero().flatten() if self.early_stop else _all(by)
            if not len(rows):
                break
            found = yield from _looked_at(case[rows], part)
            new = (found.score >= engine.MET) & (by[rows] < 0)
            best, by = best.put(rows, found), by.index_fill(0, rows[new], index)
        return replace(best.found(), part=by)


def _attack(name: str, fields: Mapping[str, object], **others: object) -> Attack:
    method = find(name, "attack").parse({**fields, **others})
    if not isinstance(method, Attack):
        raise TypeError(f"{name} is no attack")
    return method


def _looked_at(case: Case, part: Attack) -> Asking[Best]:
    """What a part comes to, and how far its files are from the goal, by the margin."""
    found = yield from evaluation.pursued(part, case)
    x = case.threat.project(found.x)
    logits = (yield case.question(x)).logits
    margin = engine.Margin(case.goal)(logits)
    return engine.Best(x, margin.masked_fill(case.goal.met(logits), engine.HELD))


def _all(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)
