"""Running an attack on rows of images: attempts, restarts and rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.engine.plans import average_gradients, restrict
from touchstone.engine.queries import Found, Plan, PlanOf
from touchstone.engine.rows import Rows
from touchstone.engine.search.gradient_ascent import SUCCESS, Best, run_restarts
from touchstone.engine.search.rounding import round_to_success
from touchstone.engine.threat import Case
from touchstone.methods import Attack, MinimalNorm, RestartedAttack


@dataclass(frozen=True)
class AttackResult(Rows):
    """The result of an attack, per row."""

    x: Tensor  # (B, C, H, W) the best images before rounding
    rounded: (
        Tensor  # (B, C, H, W) the same on the 8-bit lattice; equal to `x` where the case does not quantize
    )
    already_met: Tensor  # (B,) the original met the goal already
    met: Tensor  # (B,) `x` meets the goal
    part: Tensor  # (B,) which of the attack's parts found it: an index, or -1


def attack_rows(attack: Attack, case: Case, clean: Tensor) -> PlanOf[AttackResult]:
    """Attack the originals that do not meet the goal already, and round what was found.

    `clean` (B, K) are the logits of the originals.
    """
    done = case.goal.is_met(clean)
    x, rounded, met = case.threat.x0, case.threat.x0, done
    part = torch.full_like(case.goal.label, -1)
    if not bool(done.all()):
        rows = (~done).nonzero().flatten()
        case = case[~done]
        found = yield from run_attempts(attack, case)
        x = x.index_copy(0, rows, found.x)
        rounded = rounded.index_copy(0, rows, (yield from _round_found(attack, case, found)))
        met = met.index_copy(0, rows, found.met)
        part = part if found.part is None else part.index_copy(0, rows, found.part)
    return AttackResult(x, rounded, done, met, part)


def run_attempts(attack: Attack, case: Case) -> Plan:
    """The attack's attempts, limited to its declared access and queries; with EOT, on mean gradients."""
    if not isinstance(attack, RestartedAttack) or attack.restarts == 1:
        return _run_attempt(attack, case)
    return _run_with_restarts(attack, case)


def _run_with_restarts(attack: RestartedAttack, case: Case) -> Plan:
    def attempt(case: Case) -> PlanOf[Best]:
        found = yield from _run_attempt(attack, case)
        lost = torch.full_like(case.threat.eps, -torch.inf)
        return Best(found.x, lost.masked_fill(found.met, SUCCESS) if found.score is None else found.score)

    best = yield from run_restarts(case, attack.restarts, attempt, early_stop=attack.early_stop)
    return best.to_found()


def _run_attempt(attack: Attack, case: Case) -> Plan:
    plan = attack.run(case)
    if attack.info.access == "gradients":
        return average_gradients(plan, getattr(attack, "eot", 1))
    queries = getattr(attack, "queries", None)
    return restrict(plan, attack.info.access, queries and queries * len(case))


def _round_found(attack: Attack, case: Case, found: Found) -> PlanOf[Tensor]:
    if not case.quantize:
        return found.x
    if isinstance(attack, MinimalNorm):
        return (yield from round_to_success(case, found))
    return case.snap(found.x)
