"""Plans for one 8-bit image: predict it, attack it, round and judge what was found, count votes for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.certification.sampling import CertificateCase, Counts, sample_under_noise
from touchstone.engine.defences import straight_through
from touchstone.engine.device import to_device
from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.goals import Goal, are_finite
from touchstone.engine.noise import Noise, SampleNoise
from touchstone.engine.norms import NORMS
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.quantization import from_pixels, to_pixels
from touchstone.engine.queries import Answer, FileLogits, Logits, PlanOf
from touchstone.engine.threat import Case, Threat, softmax
from touchstone.errors import DeadlineExceeded
from touchstone.evaluation.attempts import AttackResult, attack_rows, round_rows
from touchstone.evaluation.judgment import Judgment, are_allowed, judge_images
from touchstone.evaluation.success_record import SuccessRecord, record_successes
from touchstone.images import Pixels
from touchstone.methods import Attack, Certificate
from touchstone.models.manifest import Manifest
from touchstone.models.output_end import is_saturated


@dataclass(frozen=True)
class ImageAttack:
    """What an attack found for one image, before its file is made and judged."""

    attack: Attack
    case: Case
    clean: Tensor  # (1, K) logits of the original
    found: AttackResult
    diagnostics: list[str]
    found_by: str | None  # the part of the attack that found it
    labeled: bool  # the label was given, or is what the model predicts
    stopped: str = ""  # why the attack ended before its time

    @property
    def success_float(self) -> bool:
        """Whether the best image before rounding meets the goal within the radius."""
        return bool(self.found.met & are_allowed(self.case.threat, self.found.x, files=False))

    @property
    def exact(self) -> NDArray[np.float32]:
        """The best image before rounding, (C, H, W)."""
        exact: NDArray[np.float32] = self.found.x[0].cpu().numpy()
        return exact


def logits_of(x: Tensor, *, as_files: bool) -> PlanOf[Tensor]:
    """The logits (B, K) of the images, or of the 8-bit files that hold them."""
    return (yield FileLogits(x) if as_files else Logits(x)).logits


def top_classes(logits: Tensor, manifest: Manifest, count: int) -> list[tuple[int, float]]:
    """The `count` most likely classes of one row of logits (K,) with the confidences of the model."""
    labels = logits.topk(min(count, len(logits))).indices.tolist()
    confidences = manifest.confidences(logits.cpu().numpy()).tolist()
    return [(label, confidences[label]) for label in labels]


def image_as_row(pixels: Pixels, device: torch.device) -> Tensor:
    """An 8-bit image (H, W, C) as one row (1, C, H, W) in [0,1]."""
    return from_pixels(to_device(device, torch.from_numpy(pixels.copy())).permute(2, 0, 1)[None])


def row_as_image(x: Tensor) -> Pixels:
    """One row (1, C, H, W) in [0,1] as an 8-bit image (H, W, C)."""
    pixels: Pixels = to_pixels(x[0]).permute(1, 2, 0).cpu().numpy()
    return pixels


def attack_image(
    attack: Attack,
    pixels: Pixels,
    oracle: Oracle,
    *,
    label: int | None,
    target: int | None,
    seed: int,
    surrogates: Sequence[Oracle] = (),
    manifest: Manifest | None = None,
) -> PlanOf[ImageAttack]:
    """Attack one 8-bit image; its label defaults to the model's own prediction."""
    plan = _attack(attack, pixels, oracle, surrogates, manifest, label=label, target=target, seed=seed)
    return straight_through(plan, attack.defence)


def _attack(
    attack: Attack,
    pixels: Pixels,
    oracle: Oracle,
    surrogates: Sequence[Oracle],
    manifest: Manifest | None,
    *,
    label: int | None,
    target: int | None,
    seed: int,
) -> PlanOf[ImageAttack]:
    x0 = image_as_row(pixels, oracle.device)
    diagnosis = Diagnosis()
    clean = yield from _check_model(x0, diagnosis)
    aim = clean.argmax(1) if label is None else clean.new_tensor([label], dtype=torch.long)
    if target is not None:
        aim = torch.full_like(aim, target)
    goal = Goal.of(aim, targeted=target is not None)
    case = build_case(attack, x0, goal, [(seed, 0)], surrogates=tuple(surrogates), manifest=manifest)
    found, stopped = yield from _attack_until_deadline(attack, case, clean, diagnosis)
    (found_by,) = part_names(attack, found.part)
    if found_by and attack.parts()[found_by].info.access != attack.info.access:
        diagnosis.signs.add("black_box_beats_white_box")
    labeled = label is not None or target is None
    return ImageAttack(attack, case, clean, found, diagnosis.codes(), found_by, labeled, stopped)


def _attack_until_deadline(
    attack: Attack, case: Case, clean: Tensor, diagnosis: Diagnosis
) -> PlanOf[tuple[AttackResult, str]]:
    """What the attack found or, if its deadline passed first, the best success that it had met until then."""
    record = SuccessRecord(case, by_distance=attack.info.budget == "minimal")
    try:
        return (yield from record_successes(attack_rows(attack, case, clean, diagnosis), record)), ""
    except DeadlineExceeded as late:
        if record.best is None:
            raise
        met = torch.ones_like(case.goal.targeted)
        return AttackResult(record.best, ~met, met, torch.full_like(case.goal.label, -1)), late.code


def build_case(
    attack: Attack,
    x0: Tensor,
    goal: Goal,
    keys: Sequence[tuple[int, int]],
    *,
    radii: Sequence[float] | None = None,
    quantize: bool = True,
    surrogates: tuple[Oracle, ...] = (),
    manifest: Manifest | None = None,
) -> Case:
    """The case of originals (B, C, H, W) with noise of these keys; `radii` where each has its own."""
    own = [attack.radius(x0.shape[1])] * len(x0)
    threat = Threat(x0, x0.new_tensor(radii or own), NORMS[_norm_of(attack)])
    least = getattr(attack, "min_confidence", None)
    return Case(
        threat,
        goal,
        Noise.from_seeds(keys, attack.info.name),
        quantize,
        surrogates,
        least,
        softmax if manifest is None or least is None else ShownConfidences(manifest.digest, manifest),
    )


@dataclass(frozen=True)
class ShownConfidences:
    """The confidences (B, K) that a model shows with its logits; equal for all jobs on one model."""

    digest: str
    manifest: Manifest = field(compare=False, repr=False)

    def __call__(self, logits: Tensor) -> Tensor:  # noqa: D102
        values = logits.float().nan_to_num().cpu().numpy()
        return torch.from_numpy(self.manifest.confidences(values)).to(logits.device)


def round_image(sought: ImageAttack) -> PlanOf[Pixels]:
    """What was found in 8 bits, (H, W, C)."""
    plan = round_rows(sought.attack, sought.case, sought.found)
    files = yield from straight_through(plan, sought.attack.defence)
    return row_as_image(files)


def judge_image(sought: ImageAttack, pixels: Pixels) -> PlanOf[Judgment]:
    """Whether a decoded file, (H, W, C), is a success; see `judge_images`."""
    file = image_as_row(pixels, sought.case.device)
    plan = judge_images(sought.case, file, sought.clean, sought.found.met)
    return straight_through(plan, sought.attack.defence)


def part_names(attack: Attack, part: Tensor) -> list[str | None]:
    """The names of an attack's parts by their indices (B,); None for -1."""
    names = [*attack.parts(), None]
    return [names[index] for index in part.tolist()]


RANDOMIZED_TOLERANCE = 1e-3
"""Larger differences between two answers to one image, as a share of the largest logit, are not rounding."""


def _check_model(x0: Tensor, diagnosis: Diagnosis) -> PlanOf[Tensor]:
    """The clean logits (1, K); what they reveal about the model is added to the diagnosis."""
    both = yield from logits_of(torch.cat([x0, x0]), as_files=True)
    first, second = both[:1], both[1:]
    if float((first - second).abs().max()) > RANDOMIZED_TOLERANCE * max(1.0, float(first.abs().max())):
        diagnosis.signs.add("randomised")
    if float(first.min()) >= 0 and abs(float(first.sum()) - 1) < 1e-4:
        diagnosis.signs.add("softmax_at_the_end")
    if is_saturated(first):
        diagnosis.signs.add("saturated_output")
    return first


def certify_image(
    certificate: Certificate,
    pixels: Pixels,
    oracle: Oracle,
    *,
    seed: int,
    prior: Counts | None = None,
    on_counts: Callable[[Counts], None] = lambda _counts: None,
) -> PlanOf[Counts]:
    """Count votes for one 8-bit image, at the size that the network takes; `on_counts` is given the counts so
    far.
    """
    image = oracle.preprocessing.resize_files(image_as_row(pixels, oracle.device))
    return (yield from certificate.run(CertificateCase(image, seed, prior, on_counts)))


def vote_image(
    pixels: Pixels, oracle: Oracle, classes: int, *, sigma: float, n: int, seed: int
) -> PlanOf[NDArray[np.int64]]:
    """The votes (K,) of n noisy copies of one 8-bit image, at the size that the network takes."""
    image = oracle.preprocessing.resize_files(image_as_row(pixels, oracle.device))
    return (yield from sample_under_noise(image, classes, noise=SampleNoise("gaussian", sigma, seed), n=n))


def predict_image(pixels: Pixels, oracle: Oracle) -> PlanOf[Tensor]:
    """The logits (K,) of one 8-bit image."""
    return (yield from logits_of(image_as_row(pixels, oracle.device), as_files=True))[0].cpu()


def step_metrics(answer: Answer, manifest: Manifest) -> dict[str, float]:
    """What a live plot shows of a step: mean loss and mean confidence of the rows with a prediction."""
    answer = answer[are_finite(answer.logits)]
    loss = {} if answer.loss is None else {"loss": float(answer.loss.mean())}
    metrics = {
        **loss,
        "confidence": float(ShownConfidences(manifest.digest, manifest)(answer.logits).amax(1).mean()),
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _norm_of(attack: Attack) -> str:
    return getattr(attack, "norm", attack.info.norms[0])
