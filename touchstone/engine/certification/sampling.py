"""Counting votes under noise: a pilot picks a class, fresh samples count it, and a rule says when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from touchstone.engine.certification.stopping_rules import (
    Rule,
    clopper_pearson_upper,
    probability_of,
    radius_of,
)
from touchstone.engine.noise import Stream
from touchstone.engine.queries import Asking, Logits, Noisy
from touchstone.errors import BatchDependent, Canceled, DeadlineExceeded, QueryBudgetSpent

PILOT = 2**63
"""The pilot's samples are numbered from here, the count's from 0: no sample is ever both."""

CHUNK = 256
"""Samples of a question, a multiple of every fixed pass: between two questions others hear how it stands."""

OVERLAP = 8
BATCH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Counts:
    """Votes counted so far for an image: `hits` of `n` for `label`, which a pilot chose."""

    label: int
    clean: int  # what the model says of the image without noise
    votes: NDArray[np.int64]  # (K,) of the n samples
    seed: int
    n: int = 0
    pooled: int = 0  # of the n, counted by earlier jobs
    batch_difference: float = 0.0
    stopped: str = ""

    stream = Stream.name

    @property
    def hits(self) -> int:
        """Votes for `label`."""
        return int(self.votes[self.label])

    def top(self, count: int = 5) -> list[tuple[int, int]]:
        """The classes with the most votes, and how many."""
        order = np.argsort(-self.votes, kind="stable")[:count]
        return [(int(label), int(self.votes[label])) for label in order if self.votes[label]]

    def record(self) -> dict[str, Any]:
        """As JSON, to be continued from."""
        votes = {str(label): int(count) for label, count in enumerate(self.votes) if count}
        return {
            "label": self.label,
            "clean": self.clean,
            "seed": self.seed,
            "n": self.n,
            "classes": len(self.votes),
            "votes": votes,
            "batch_difference": self.batch_difference,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Counts:
        """From what `record` wrote."""
        votes = np.zeros(record["classes"], dtype=np.int64)
        for label, count in record["votes"].items():
            votes[int(label)] = count
        n, difference = record["n"], record["batch_difference"]
        return cls(record["label"], record["clean"], votes, record["seed"], n, n, difference)


@dataclass(frozen=True)
class Subject:
    """What a certificate is given: an image (1, C, h, w) at the network's size, a seed, counts to go on
    from, and who is told how the count stands.
    """

    image: Tensor
    seed: int
    prior: Counts | None = None
    tell: Callable[[Counts], None] = lambda _counts: None


@dataclass(frozen=True)
class Stopping:
    """When a count ends: at which looks, and for which reasons."""

    rule: Rule
    n: int
    alpha: float
    sigma: float
    target: float | None = None
    tolerance: float = 0.0

    def lower(self, hits: int, at: int) -> float:
        """The proven lower bound of the vote's probability at a look."""
        return self.rule.lower(hits, at, n=self.n, alpha=self.alpha)

    def upper(self, hits: int, at: int) -> float:
        """An upper bound: it decides only when to give up, so no certificate depends on it."""
        return clopper_pearson_upper(hits, at, self.alpha / len(self.rule.looks(self.n)))

    def reason(self, hits: int, at: int) -> str:
        """Why to stop at this look; empty to go on."""
        lower, upper = self.lower(hits, at), self.upper(hits, at)
        if self.target is not None:
            needed = probability_of(self.target, self.sigma)
            if lower >= needed:
                return "certified"
            if upper < needed:
                return "refuted"
        if upper < 0.5:
            return "no_majority"
        if self.target is None and self.tolerance and self._gain(lower, upper) <= self.tolerance:
            return "tolerance"
        return "n" if at >= self.n else ""

    def _gain(self, lower: float, upper: float) -> float:
        return radius_of(upper, self.sigma) - radius_of(lower, self.sigma)


def counted(subject: Subject, *, noise: Stream, pilot: int, stop: Stopping) -> Asking[Counts]:
    """Count votes until `stop` says why to end, or until the deadline, a cancel or the end of the model's
    budget: what was looked at before stays.

    With a prior, goes on where that ended. Raises BatchDependent if answers depend on the batch.
    """
    counts = subject.prior
    if counts is not None:
        noise = replace(noise, seed=counts.seed)  # the samples go on where the earlier ones ended
    try:
        if counts is None:
            counts = yield from _piloted(subject.image, noise, pilot)
        if counts.n and (reason := stop.reason(counts.hits, counts.n)):
            return replace(counts, stopped=reason)
        for look in stop.rule.looks(stop.n):
            if look <= counts.n:
                continue
            counts = yield from _drawn(counts, subject, noise, look)
            if reason := stop.reason(counts.hits, look):
                return replace(counts, stopped=reason)
    except (Canceled, DeadlineExceeded, QueryBudgetSpent) as ended:
        if counts is None:
            raise
        return replace(counts, stopped=ended.code)
    return replace(counts, stopped="n")


def _piloted(image: Tensor, noise: Stream, pilot: int) -> Asking[Counts]:
    """The class that most of the pilot's samples vote for, and whether votes depend on the batch."""
    clean = (yield Logits(image)).logits
    difference = yield from _steadied(image, noise)
    none = np.zeros(clean.shape[1], dtype=np.int64)
    votes = yield from _votes(none, image, noise, range(PILOT, PILOT + pilot))
    return Counts(int(votes.argmax()), int(clean.argmax()), none, noise.seed, batch_difference=difference)


def voted(image: Tensor, classes: int, *, noise: Stream, n: int) -> Asking[NDArray[np.int64]]:
    """The votes (K,) of n samples. Raises BatchDependent if answers depend on the batch."""
    yield from _steadied(image, noise)
    return (yield from _votes(np.zeros(classes, dtype=np.int64), image, noise, range(n)))


def _steadied(image: Tensor, noise: Stream) -> Asking[float]:
    """By how much logits depend on their place in the batch, which must be next to nothing."""
    first = (yield Noisy(image, noise, range(PILOT, PILOT + 2 * OVERLAP))).logits
    again = (yield Noisy(image, noise, range(PILOT + OVERLAP, PILOT + 3 * OVERLAP))).logits
    difference = float((first[OVERLAP:] - again[:OVERLAP]).abs().max())
    if difference > BATCH_TOLERANCE * max(1.0, float(first.abs().max())):
        raise BatchDependent(
            "the model answers the same image differently in different batches (logits differ by "
            f"{difference:.3g}), so its votes prove nothing; export it in evaluation mode"
        )
    return difference


def _drawn(counts: Counts, subject: Subject, noise: Stream, until: int) -> Asking[Counts]:
    for samples in _chunks(range(counts.n, until)):
        votes = yield from _votes(counts.votes, subject.image, noise, samples)
        counts = replace(counts, votes=votes, n=samples.stop)
        subject.tell(counts)
    return counts


def _votes(
    before: NDArray[np.int64], image: Tensor, noise: Stream, samples: range
) -> Asking[NDArray[np.int64]]:
    votes = before.copy()
    for chunk in _chunks(samples):
        logits = (yield Noisy(image, noise, chunk)).logits
        votes += torch.bincount(logits.argmax(1), minlength=len(votes)).cpu().numpy()
    return votes


def _chunks(samples: range) -> list[range]:
    return [
        range(start, min(start + CHUNK, samples.stop)) for start in range(samples.start, samples.stop, CHUNK)
    ]
