"""The result of an attack job: what its decoded file is, beside the original."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from touchstone import evaluation
from touchstone.engine.noise_streams import ATTACK_STREAM
from touchstone.evaluation.perturbation import measure_perturbation
from touchstone.images import Pixels, difference_factor
from touchstone.models.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.evaluation import ImageAttack, Judgment

TOP = 5


def build_attack_result(
    sought: ImageAttack, judged: Judgment, original: Pixels, adversarial: Pixels, manifest: Manifest
) -> dict[str, Any]:
    """The result of what was found, as judged; both images are 8-bit (H, W, C) at the size of the upload."""
    return {
        "outcome": _outcome(sought, success=bool(judged.success)),
        "success": bool(judged.success),
        "success_float": sought.success_float,
        "original": describe_prediction(sought.clean[0], manifest, TOP),
        "adversarial": describe_prediction(judged.logits[0], manifest, TOP),
        "perturbation": measure_perturbation(original, adversarial),
        "difference_factor": difference_factor(original, adversarial),
        "diagnostics": sought.diagnostics,
        "stream": ATTACK_STREAM,
        **({"stopped_by": sought.stopped} if sought.stopped else {}),
        **({"found_by": sought.found_by} if sought.attack.parts() else {}),
        **({} if sought.attack.defence == "none" else {"defence": sought.attack.defence}),
    }


def describe_prediction(logits: Tensor, manifest: Manifest, count: int) -> dict[str, Any]:
    """The prediction (K,) for an image, as the API shows it."""
    ranked = [
        {"label": label, "name": manifest.classes[label], "confidence": confidence}
        for label, confidence in evaluation.top_classes(logits, manifest, count)
    ]
    return {**ranked[0], "top": ranked}


def _outcome(sought: ImageAttack, *, success: bool) -> str:
    if bool(sought.found.already_met):
        return "already_misclassified" if sought.labeled else "already_at_target"
    return "success" if success else "failure"
