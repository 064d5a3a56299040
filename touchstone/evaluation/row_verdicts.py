"""One plan for many images: attack them, round what was found, and judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.engine.defences import straight_through
from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.goals import Goal
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.queries import PlanOf
from touchstone.engine.threat import Case
from touchstone.evaluation.attempts import attack_rows, round_rows
from touchstone.evaluation.judgment import Judgment, judge_images
from touchstone.evaluation.verdict import build_case, image_as_row, logits_of, part_names
from touchstone.images import Pixels
from touchstone.methods import Attack
from touchstone.models.manifest import Manifest


@dataclass(frozen=True)
class RowVerdicts:
    """What became of each row of a case."""

    clean: Tensor  # (B, K) logits of the originals
    already_met: Tensor  # (B,) bool: the original met the goal already
    judged: Judgment
    parts: list[str | None]  # which part of the attack found it
    diagnostics: list[str]  # of all rows together


def evaluate_rows(attack: Attack, case: Case, clean: Tensor) -> PlanOf[RowVerdicts]:
    """Attack the rows of a case whose originals have the logits `clean` (B, K), and judge what was found."""
    diagnosis = Diagnosis()
    sought = yield from attack_rows(attack, case, clean, diagnosis)
    images = yield from round_rows(attack, case, sought)
    judged = yield from judge_images(case, images, clean, sought.met)
    return RowVerdicts(clean, sought.already_met, judged, part_names(attack, sought.part), diagnosis.codes())


def attack_files(
    attack: Attack,
    files: Sequence[Pixels],
    oracle: Oracle,
    *,
    seeds: Sequence[tuple[int, int]],
    labels: Sequence[int | None],
    targets: Sequence[int] | None = None,
    surrogates: Sequence[Oracle] = (),
    manifest: Manifest | None = None,
) -> PlanOf[RowVerdicts]:
    """Attack 8-bit images of one shape, (H, W, C) each, as one job: an image's result is that which it would
    have alone with its seed (seed, row).

    A label of None is the model's own prediction; `targets` make the attack targeted.
    """

    def plan() -> PlanOf[RowVerdicts]:
        x0 = torch.cat([image_as_row(pixels, oracle.device) for pixels in files])
        clean = yield from logits_of(x0, as_files=True)
        predicted = clean.argmax(1)
        known = [-1 if label is None else label for label in labels]
        aims = predicted.new_tensor(known if targets is None else list(targets))
        goal = Goal.of(torch.where(aims < 0, predicted, aims), targeted=targets is not None)
        case = build_case(attack, x0, goal, seeds, surrogates=tuple(surrogates), manifest=manifest)
        return (yield from evaluate_rows(attack, case, clean))

    return straight_through(plan(), attack.defence)
