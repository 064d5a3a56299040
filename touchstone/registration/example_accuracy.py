"""The accuracy of a model on labelled examples, and what in its description would make it better.

A wrong channel order, range, normalization or order of classes leaves a network running, and every figure of
it wrong: the examples are tried under the usual alternatives, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from touchstone.engine.oracles.oracle import TorchOracle
from touchstone.engine.quantization import from_pixels
from touchstone.images import Pixels
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import ExampleAccuracy, ExampleWarning

BATCH = 16
GOOD_ACCURACY = 0.9
"""From here on no alternative is tried: none would be far better."""

MAX_TRIED = 32
"""Examples that the alternatives are tried on."""

MIN_GAIN = 0.1
MAX_NAMED = 3
RISK = 0.05
"""The probability of a false warning: of chance for a model that is not, and of all alternatives together."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ALIKE = 1e-3


@dataclass(frozen=True)
class LabelledPixels:
    """Images of any sizes, and their classes."""

    images: Sequence[Pixels]
    labels: Sequence[int]


@dataclass(frozen=True)
class _Alternative:
    """Another description of a model, in words, and the classes (N,) that it then answers."""

    words: str
    answers: Tensor


def measure_examples(oracle: TorchOracle, manifest: Manifest, examples: LabelledPixels) -> ExampleAccuracy:
    """The accuracy of a model on examples, with warnings where it is chance or could be far better."""
    x = torch.cat([oracle.preprocessing.resize_files(_to_tensor(one)) for one in examples.images])
    labels = torch.tensor(list(examples.labels))
    answers = _predict(oracle, oracle.preprocessing.normalize(x))
    right = answers == labels
    correct, count, classes = int(right.sum()), len(labels), len(manifest.classes)
    warnings = []
    if is_chance(correct, count, classes):
        warnings.append(_warn_of_chance(correct, count, classes))
    if correct < GOOD_ACCURACY * count:
        warnings += _find_better(oracle, manifest, x, labels, answers)
    return ExampleAccuracy(count=count, correct=correct, accuracy=correct / count, warnings=tuple(warnings))


def _to_tensor(pixels: Pixels) -> Tensor:
    return from_pixels(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])


def _predict(oracle: TorchOracle, inputs: Tensor) -> Tensor:
    """The classes (N,) of normalized images (N, C, H, W)."""
    with torch.no_grad():
        return torch.cat([oracle.module(part).argmax(1) for part in torch.split(inputs, BATCH)])


def is_chance(correct: int, count: int, classes: int) -> bool:
    """Whether guesses would often have so many correct; false where the examples are too few to tell."""
    return (
        upper_tail(count, count, 1 / classes) < RISK / 10 and upper_tail(correct, count, 1 / classes) > RISK
    )


def upper_tail(successes: int, trials: int, share: float) -> float:
    """The probability of at least so many successes (binomial distribution)."""
    return math.fsum(
        math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes, trials + 1)
    )


def _warn_of_chance(correct: int, count: int, classes: int) -> ExampleWarning:
    return ExampleWarning(
        code="accuracy_at_chance",
        detail=f"{correct} of {count} examples are classified correctly, as a guess among {classes} classes "
        "would: the classes, their order, the normalization or the weights are wrong",
    )


def _find_better(
    oracle: TorchOracle, manifest: Manifest, x: Tensor, labels: Tensor, answers: Tensor
) -> list[ExampleWarning]:
    """What would be far better than the manifest: at most one order of classes, and one other input."""
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MAX_TRIED]
    right = answers == labels
    orders = list(_class_orders(manifest, answers))
    inputs = list(_inputs(oracle, manifest, x[some]))
    risk = RISK / max(1, len(orders) + len(inputs))
    found = (
        _choose_better("class_order", orders, labels, right, risk=risk),
        _choose_better("preprocessing", inputs, labels[some], right[some], risk=risk),
    )
    return [one for one in found if one is not None]


def _choose_better(
    code: str, alternatives: Sequence[_Alternative], labels: Tensor, right: Tensor, *, risk: float
) -> ExampleWarning | None:
    """What is correct most often, if that is far more often than what the manifest says; all of the best."""
    right_counts = [int((one.answers == labels).sum()) for one in alternatives]
    if not alternatives:
        return None
    best = [one for one, n in zip(alternatives, right_counts, strict=True) if n == max(right_counts)]
    better = best[0].answers == labels
    gained, lost = int((better & ~right).sum()), int((right & ~better).sum())
    # A sign test: were both as good, each would win half of the examples that only one of them gets right.
    if gained - lost < MIN_GAIN * len(labels) or upper_tail(gained, gained + lost, 0.5) > risk:
        return None
    return ExampleWarning(
        code=f"{code}_looks_wrong",
        detail=f"{int(right.sum())} of {len(labels)} examples are classified correctly as described; "
        f"{int(better.sum())} would be {', or '.join(one.words for one in best[:MAX_NAMED])}",
        accuracy=int(better.sum()) / len(labels),
    )


def _class_orders(manifest: Manifest, answers: Tensor) -> Iterator[_Alternative]:
    """The answers if the outputs were in another order than that of the classes: the k-th is `order[k]`."""
    names, indices = manifest.classes, list(range(len(manifest.classes)))
    orders = {
        "if the classes were sorted by name": sorted(indices, key=lambda i: names[i]),
        "if the classes were sorted by name, without regard to case": sorted(
            indices, key=lambda i: names[i].casefold()
        ),
        f"if {names[1][:40]!r} were the first class": [*indices[1:], 0],
        f"if {names[-1][:40]!r} were the first class, before all others": [indices[-1], *indices[:-1]],
    }
    seen = [indices]
    for words, order in orders.items():
        if order not in seen:
            yield _Alternative(words, torch.tensor(order)[answers])
        seen.append(order)


def _inputs(oracle: TorchOracle, manifest: Manifest, x: Tensor) -> Iterator[_Alternative]:
    """The answers to images (N, C, H, W) in [0,1] that are prepared in other ways."""
    tried, declared = [oracle.preprocessing.normalize(x)], manifest.input.channel_order
    others = [order for order in ("rgb", "bgr") if order != declared and manifest.input.channels == 3]
    for order in (declared, *others):
        pixels = x.flip(1) if order == "bgr" else x
        for words, (mean, std) in _normalizations(manifest, order).items():
            inputs = (pixels - _shape(mean)) / _shape(std)
            if not any(torch.allclose(inputs[:1], other[:1], atol=_ALIKE) for other in tried):
                named = [words] if order == declared else [f"the channel order {order}", words]
                yield _Alternative("with " + " and ".join(filter(None, named)), _predict(oracle, inputs))
            tried.append(inputs)


def _shape(values: Sequence[float]) -> Tensor:
    """Numbers, one for each channel, shaped to be broadcast over images."""
    return torch.tensor(values).view(1, -1, 1, 1)


def _normalizations(manifest: Manifest, order: str) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Mean and std in this order of channels: the manifest's, and the usual ones by what they are called."""
    channels, step = manifest.input.channels, -1 if order == "bgr" else 1
    zero, one = (0.0,) * channels, (1.0,) * channels
    levels = (1 / 255,) * channels
    found: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "": (manifest.mean, manifest.std),
        "pixels in [0,1], without mean and std": (zero, one),
        "the range -1,1": ((0.5,) * channels, (0.5,) * channels),
        "the range 0,255": (zero, levels),
    }
    if channels == 3:
        mean, std = IMAGENET_MEAN[::step], IMAGENET_STD[::step]
        numbers = ",".join(map(str, mean))
        found[f"ImageNet's mean {numbers} and std {','.join(map(str, std))}"] = (mean, std)
        found[f"ImageNet's mean {numbers} and std 1/255"] = (mean, levels)
    return found
