"""From an image to an attack's verdict: the clean look, the method, the rounding and the last look, as one
plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.certification.sampling import Counts, Subject, voted
from touchstone.engine.defences import straight_through
from touchstone.engine.device import onto
from touchstone.engine.goals import Goal
from touchstone.engine.noise import Noise, Stream
from touchstone.engine.norms import NORMS
from touchstone.engine.oracles.oracle import AnyOracle
from touchstone.engine.plans import Diagnosis, diagnosed
from touchstone.engine.quantization import from_pixels, to_pixels
from touchstone.engine.queries import Answer, Asking, Logits, Saved
from touchstone.engine.threat import Case, Threat
from touchstone.evaluation.attempts import search
from touchstone.images import Pixels
from touchstone.methods import Attack, Certificate


@dataclass(frozen=True)
class Verdict:
    """What an attack on one image came to, before its file is judged."""

    clean: Tensor  # (K,) logits of the original
    exact: NDArray[np.float32]  # (C, H, W) the best image before rounding
    pixels: Pixels  # (H, W, C) the same in 8 bits
    aim: int  # the label to leave, or the target to reach
    met_at_once: bool  # the original met the goal already
    met: bool  # `exact` meets it
    diagnostics: list[str]  # signs of gradient masking
    found_by: str | None  # which of the attack's parts found it


def look(x: Tensor, *, saved: bool) -> Asking[Tensor]:
    """What the model says of the images, or of the 8-bit files that hold them: logits (B, K)."""
    return (yield Saved(x) if saved else Logits(x)).logits


def top(logits: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` most likely classes of one row of logits (K,) with their probabilities."""
    found = torch.softmax(logits.double(), 0).topk(min(count, len(logits)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def row_of(pixels: Pixels, device: torch.device) -> Tensor:
    """An 8-bit image (H, W, C) as one row (1, C, H, W) in [0,1]."""
    return from_pixels(onto(device, torch.from_numpy(pixels.copy())).permute(2, 0, 1)[None])


def attack_image(
    attack: Attack,
    pixels: Pixels,
    oracle: AnyOracle,
    *,
    label: int | None,
    target: int | None,
    seed: int,
    surrogates: Sequence[AnyOracle] = (),
) -> Asking[Verdict]:
    """Attack one 8-bit image; its label defaults to the model's own prediction."""
    plan = _judged(attack, pixels, oracle, surrogates, label=label, target=target, seed=seed)
    return straight_through(plan, attack.defence)


def _judged(
    attack: Attack,
    pixels: Pixels,
    oracle: AnyOracle,
    surrogates: Sequence[AnyOracle],
    *,
    label: int | None,
    target: int | None,
    seed: int,
) -> Asking[Verdict]:
    x0 = row_of(pixels, oracle.device)
    diagnosis = Diagnosis()
    clean = yield from _twice(x0, diagnosis)
    aim = clean.argmax(1) if label is None else clean.new_tensor([label], dtype=torch.long)
    if target is not None:
        aim = torch.full_like(aim, target)
    threat = Threat(x0, x0.new_tensor([getattr(attack, "eps", torch.inf)]), NORMS[_norm_of(attack)])
    goal = Goal.of(aim, targeted=target is not None)
    noise = Noise.of([(seed, 0)], attack.info.name)
    case = Case(threat, goal, noise, surrogates=tuple(surrogates))
    sought = yield from diagnosed(search(attack, case, clean), diagnosis)
    (found_by,) = found_by_part(attack, sought.part)
    if found_by and attack.parts()[found_by].info.access != attack.info.access:
        diagnosis.signs.add("black_box_beats_white_box")
    return Verdict(
        clean=clean[0].cpu(),
        exact=sought.x[0].cpu().numpy(),
        pixels=to_pixels(sought.rounded[0]).permute(1, 2, 0).cpu().numpy(),
        aim=int(aim[0]),
        met_at_once=bool(sought.met_at_once[0]),
        met=bool(sought.met[0]),
        diagnostics=diagnosis.codes(),
        found_by=found_by,
    )


def found_by_part(attack: Attack, part: Tensor) -> list[str | None]:
    """The names of an attack's parts by their indices (B,); None for -1."""
    names = [*attack.parts(), None]
    return [names[index] for index in part.tolist()]


RANDOMISED = 1e-3
"""Difference between two answers to one image, of the largest logit, that no rounding explains."""


def _twice(x0: Tensor, diagnosis: Diagnosis) -> Asking[Tensor]:
    """The clean look (1, K), and what it shows of the model."""
    both = yield from look(torch.cat([x0, x0]), saved=True)
    first, second = both[:1], both[1:]
    if float((first - second).abs().max()) > RANDOMISED * max(1.0, float(first.abs().max())):
        diagnosis.signs.add("randomised")
    if float(first.min()) >= 0 and abs(float(first.sum()) - 1) < 1e-4:
        diagnosis.signs.add("softmax_at_the_end")
    return first


def certify_image(
    certificate: Certificate,
    pixels: Pixels,
    oracle: AnyOracle,
    *,
    seed: int,
    prior: Counts | None = None,
    tell: Callable[[Counts], None] = lambda _counts: None,
) -> Asking[Counts]:
    """Count votes for one 8-bit image, at the size that the network takes; `tell` hears how it stands."""
    image = oracle.sight.place_files(row_of(pixels, oracle.device))
    return (yield from certificate.run(Subject(image, seed, prior, tell)))


def vote_on(
    pixels: Pixels, oracle: AnyOracle, classes: int, *, sigma: float, n: int, seed: int
) -> Asking[NDArray[np.int64]]:
    """The votes (K,) of n noisy copies of one 8-bit image, at the size that the network takes."""
    image = oracle.sight.place_files(row_of(pixels, oracle.device))
    return (yield from voted(image, classes, noise=Stream("gaussian", sigma, seed), n=n))


def look_at(pixels: Pixels, oracle: AnyOracle) -> Asking[Tensor]:
    """What the model says of one 8-bit image: logits (K,)."""
    return (yield from look(row_of(pixels, oracle.device), saved=True))[0].cpu()


def metric(answer: Answer) -> dict[str, float]:
    """What a live plot shows of a step: mean loss and mean confidence of the likeliest class."""
    confidence = torch.softmax(answer.logits, 1).amax(1).mean()
    loss = {} if answer.loss is None else {"loss": float(answer.loss.mean())}
    return {**loss, "confidence": float(confidence)}


def _norm_of(attack: Attack) -> str:
    return getattr(attack, "norm", attack.info.norms[0])
