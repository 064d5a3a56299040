"""From an image to an attack's verdict, as one plan: the clean prediction, the method and the rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.certification.sampling import CertificateCase, Counts, sample_under_noise
from touchstone.engine.defences import straight_through
from touchstone.engine.device import to_device
from touchstone.engine.goals import Goal
from touchstone.engine.noise import Noise, SampleNoise
from touchstone.engine.norms import NORMS
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.plans import Diagnosis, diagnose
from touchstone.engine.quantization import from_pixels, to_pixels
from touchstone.engine.queries import Answer, FileLogits, Logits, PlanOf
from touchstone.engine.threat import Case, Threat
from touchstone.evaluation.attempts import attack_rows
from touchstone.images import Pixels
from touchstone.methods import Attack, Certificate
from touchstone.models.manifest import Manifest
from touchstone.models.output_end import is_saturated


@dataclass(frozen=True)
class Verdict:
    """The result of an attack on one image, before its file is judged."""

    clean: Tensor  # (K,) logits of the original
    exact: NDArray[np.float32]  # (C, H, W) the best image before rounding
    pixels: Pixels  # (H, W, C) the same in 8 bits
    goal_label: int  # the label to leave, or the target to reach
    already_met: bool  # the original met the goal already
    met: bool  # `exact` meets it
    diagnostics: list[str]  # signs of gradient masking
    found_by: str | None  # the part of the attack that found it


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


def attack_image(
    attack: Attack,
    pixels: Pixels,
    oracle: Oracle,
    *,
    label: int | None,
    target: int | None,
    seed: int,
    surrogates: Sequence[Oracle] = (),
) -> PlanOf[Verdict]:
    """Attack one 8-bit image; its label defaults to the model's own prediction."""
    plan = _attack_and_judge(attack, pixels, oracle, surrogates, label=label, target=target, seed=seed)
    return straight_through(plan, attack.defence)


def _attack_and_judge(
    attack: Attack,
    pixels: Pixels,
    oracle: Oracle,
    surrogates: Sequence[Oracle],
    *,
    label: int | None,
    target: int | None,
    seed: int,
) -> PlanOf[Verdict]:
    x0 = image_as_row(pixels, oracle.device)
    diagnosis = Diagnosis()
    clean = yield from _check_model(x0, diagnosis)
    aim = clean.argmax(1) if label is None else clean.new_tensor([label], dtype=torch.long)
    if target is not None:
        aim = torch.full_like(aim, target)
    threat = Threat(x0, x0.new_tensor([getattr(attack, "eps", torch.inf)]), NORMS[_norm_of(attack)])
    goal = Goal.of(aim, targeted=target is not None)
    noise = Noise.from_seeds([(seed, 0)], attack.info.name)
    case = Case(threat, goal, noise, surrogates=tuple(surrogates))
    sought = yield from diagnose(attack_rows(attack, case, clean), diagnosis)
    (found_by,) = part_names(attack, sought.part)
    if found_by and attack.parts()[found_by].info.access != attack.info.access:
        diagnosis.signs.add("black_box_beats_white_box")
    return Verdict(
        clean=clean[0].cpu(),
        exact=sought.x[0].cpu().numpy(),
        pixels=to_pixels(sought.rounded[0]).permute(1, 2, 0).cpu().numpy(),
        goal_label=int(aim[0]),
        already_met=bool(sought.already_met[0]),
        met=bool(sought.met[0]),
        diagnostics=diagnosis.codes(),
        found_by=found_by,
    )


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
    """What a live plot shows of a step: mean loss and mean confidence of the predicted class."""
    confidences = manifest.confidences(answer.logits.detach().float().cpu().numpy())
    loss = {} if answer.loss is None else {"loss": float(answer.loss.mean())}
    return {**loss, "confidence": float(confidences.max(1).mean())}


def _norm_of(attack: Attack) -> str:
    return getattr(attack, "norm", attack.info.norms[0])
