"""APGD-T: auto-PGD towards each of the likeliest other classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from touchstone import engine
from touchstone.attacks.apgd import ascend, dlr_denominator
from touchstone.fields import Count, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, RestartedAttack

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Best, Case, Plan

IMAGES_PER_RIVAL = {"linf": 20, "l2": 24, "l1": 56}
"""Tensors that a climb holds in its norm, with those of a step."""


class APGDT(RestartedAttack):
    """Auto-PGD on the targeted difference of logits ratio, towards each of the nine likeliest other classes
    at once.

    Section 4.1 of the paper, equation 7; models of fewer than four classes are attacked by their margin.
    The attempts towards all classes share their passes, where the paper makes one after the other; an image
    leaves as soon as one of them succeeds, else the point that came nearest to its class is kept.
    """

    info = Info(
        name="apgdt",
        title="Targeted auto-PGD",
        norms=("linf", "l2", "l1"),
        paper="Croce & Hein 2020: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
        "Parameter-free Attacks",
        url="https://arxiv.org/abs/2003.01690",
        targeted=False,
    )

    rivals: Count = Field(9, le=1_000, description="How many of the likeliest other classes to head for.")
    steps: Count = Field(100, le=10_000, description="Steps towards each class.")
    rho: Ratio = Field(
        0.75, ge=0, le=1, description="ρ: the share of steps that must raise the loss for the step to last."
    )

    def cost(self) -> Cost:
        """A query of the image, and a climb towards each class."""
        climb = Cost.for_climb(self.steps)
        return Cost(1 + self.rivals * climb.forward, self.rivals * climb.backward)

    def rounds(self) -> int:
        """One per class and step."""
        return self.rivals * self.steps

    def footprint(self) -> Footprint:
        """As many climbs at once as there are classes to head for; none is cut."""
        return replace(super().footprint(), images=16 + self.rivals * IMAGES_PER_RIVAL[self.norm])

    def run(self, case: Case) -> Plan:
        """As many rows for each image as there are classes to head for, all climbing together."""
        logits = (yield engine.Logits(case.threat.x0)).logits
        others = logits.scatter(1, case.goal.label[:, None], -torch.inf)
        rivals = others.topk(min(self.rivals, logits.shape[1] - 1), dim=1).indices
        count = rivals.shape[1]
        image_of_row = torch.arange(len(case), device=case.device).repeat_interleave(count)
        each = case[image_of_row]
        loss = engine.CustomLoss(_targeted_dlr, each.goal.label, rivals.flatten())
        best = yield from ascend(
            each, loss, steps=self.steps, rho=self.rho, early_stop=self.early_stop, image_of_row=image_of_row
        )
        return _best_of(best, count).to_found()


def _targeted_dlr(logits: Tensor, label: Tensor, rival: Tensor) -> Tensor:
    """How much the rival's logit exceeds the label's, over the spread of the highest ones."""
    lead = (logits.gather(1, rival[:, None]) - logits.gather(1, label[:, None]))[:, 0]
    return lead if logits.shape[1] < 4 else lead / dlr_denominator(logits, fourth=label >= 0)


def _best_of(best: Best, count: int) -> Best:
    """The best of every `count` neighboring rows."""
    chosen = best.score.view(-1, count).argmax(1)
    return best[chosen + count * torch.arange(len(chosen), device=chosen.device)]
