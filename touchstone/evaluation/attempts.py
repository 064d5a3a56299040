"""Running an attack on rows of images: attempts, restarts and rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.plans import average_gradients, diagnose, restrict
from touchstone.engine.queries import Found, Plan, PlanOf
from touchstone.engine.rows import Rows, column
from touchstone.engine.search.gradient_ascent import SUCCESS, Best, run_restarts
from touchstone.engine.search.rounding import round_to_success
from touchstone.engine.threat import Case
from touchstone.methods import Attack, MinimalNorm, RestartedAttack


@dataclass(frozen=True)
class AttackResult(Rows):
    """The result of an attack before rounding, per row."""

    x: Tensor  # (B, C, H, W) the best images
    already_met: Tensor  # (B,) the original met the goal already
    met: Tensor  # (B,) by the attack's own account `x` meets the goal
    part: Tensor  # (B,) which of the attack's parts found it: an index, or -1

    def put(self, rows: Tensor, found: Found) -> AttackResult:
        """This result with what was found in the rows of index vector `rows`."""
        return replace(
            self,
            x=self.x.index_copy(0, rows, found.x),
            met=self.met.index_copy(0, rows, found.met),
            part=self.part if found.part is None else self.part.index_copy(0, rows, found.part),
        )


def attack_rows(attack: Attack, case: Case, clean: Tensor, diagnosis: Diagnosis) -> PlanOf[AttackResult]:
    """Attack the originals that do not meet the goal already, unless no file but the original is in reach.

    `clean` (B, K) are the logits of the originals.
    """
    done = case.goal.is_met(clean)
    out_of_reach = ~done & case.below_one_level
    if bool(out_of_reach.any()):
        diagnosis.signs.add("below_one_level")
    result = AttackResult(case.threat.x0, done, done, torch.full_like(case.goal.label, -1))
    rows = (~done & ~out_of_reach).nonzero().flatten()
    if not len(rows):
        return result
    found = yield from diagnose(run_attempts(attack, case[rows]), diagnosis)
    return result.put(rows, _without_non_finite(case[rows], found))


def round_rows(attack: Attack, case: Case, sought: AttackResult) -> PlanOf[Tensor]:
    """What was found on the 8-bit lattice, (B, C, H, W), or as it is where the case does not quantize."""
    rows = (sought.x != case.threat.x0).flatten(1).any(1).nonzero().flatten()
    if not case.quantize or not len(rows):
        return sought.x
    found = Found(sought.x[rows], sought.met[rows])
    if isinstance(attack, MinimalNorm):
        files = yield from round_to_success(case[rows], found)
    else:
        files = case[rows].snap(found.x)
    return sought.x.index_copy(0, rows, files)


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


def _without_non_finite(case: Case, found: Found) -> Found:
    """What was found, with the originals in place of images that are not finite."""
    whole = found.x.flatten(1).isfinite().all(1)
    return replace(found, x=found.x.where(column(whole, found.x), case.threat.x0), met=found.met & whole)
