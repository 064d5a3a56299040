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
    StoppingRule,
    certified_radius,
    clopper_pearson_upper,
    required_probability,
)
from touchstone.engine.noise import SampleNoise
from touchstone.engine.noise_streams import FORMER_SAMPLE_STREAM
from touchstone.engine.oracles.oracle import BATCH_TOLERANCE
from touchstone.engine.queries import Logits, NoisyLogits, PlanOf
from touchstone.errors import BatchDependent, DeadlineExceeded, JobCanceled, QueryBudgetSpent

PILOT_START = 2**63
"""The pilot's samples are numbered from here, the count's from 0: no sample is ever both."""

CHUNK = 256
"""Samples of a query, a multiple of every fixed pass. Progress is reported between two queries."""

OVERLAP = 8


@dataclass(frozen=True)
class Counts:
    """Votes counted so far for an image: `hits` of `n` for `label`, which a pilot chose."""

    label: int
    clean: int  # the class predicted without noise
    votes: NDArray[np.int64]  # (K,) of the n samples
    seed: int
    n: int = 0
    pooled: int = 0  # of the n, counted by earlier jobs
    batch_difference: float = 0.0
    stopped: str = ""
    stream: str = SampleNoise.name  # that the samples are drawn from

    @property
    def hits(self) -> int:
        """Votes for `label`."""
        return int(self.votes[self.label])

    def top(self, count: int = 5) -> list[tuple[int, int]]:
        """The classes with the most votes, and how many."""
        order = np.argsort(-self.votes, kind="stable")[:count]
        return [(int(label), int(self.votes[label])) for label in order if self.votes[label]]

    def to_record(self) -> dict[str, Any]:
        """As JSON, from which a later job can continue the count."""
        votes = {str(label): int(count) for label, count in enumerate(self.votes) if count}
        return {
            "label": self.label,
            "clean": self.clean,
            "seed": self.seed,
            "n": self.n,
            "classes": len(self.votes),
            "votes": votes,
            "batch_difference": self.batch_difference,
            "stream": self.stream,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Counts:
        """From what `to_record` wrote."""
        votes = np.zeros(record["classes"], dtype=np.int64)
        for label, count in record["votes"].items():
            votes[int(label)] = count
        n, difference = record["n"], record["batch_difference"]
        stream = record.get("stream", FORMER_SAMPLE_STREAM)
        return cls(record["label"], record["clean"], votes, record["seed"], n, n, difference, stream=stream)


@dataclass(frozen=True)
class CertificateCase:
    """What a certificate is given: an image (1, C, h, w) at the network's size, a seed, counts to continue
    from, and a callback that is given the counts so far.
    """

    image: Tensor
    seed: int
    prior: Counts | None = None
    on_counts: Callable[[Counts], None] = lambda _counts: None


@dataclass(frozen=True)
class StoppingCriterion:
    """When a count ends: at which looks (the sample counts at which a bound may be taken), and why."""

    rule: StoppingRule
    n: int
    alpha: float
    sigma: float
    target: float | None = None
    tolerance: float = 0.0

    def lower(self, hits: int, at: int) -> float:
        """The proven lower bound of the vote's probability at a look."""
        return self.rule.lower(hits, at, n=self.n, alpha=self.alpha)

    def upper(self, hits: int, at: int) -> float:
        """An upper bound. It only decides when to give up, so no certificate depends on it."""
        return clopper_pearson_upper(hits, at, self.alpha / len(self.rule.looks(self.n)))

    def reason(self, hits: int, at: int) -> str:
        """Why to stop at this look; empty to go on."""
        lower, upper = self.lower(hits, at), self.upper(hits, at)
        if self.target is not None:
            needed = required_probability(self.target, self.sigma)
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
        return certified_radius(upper, self.sigma) - certified_radius(lower, self.sigma)


def count_votes(
    subject: CertificateCase, *, noise: SampleNoise, pilot: int, stop: StoppingCriterion
) -> PlanOf[Counts]:
    """Count votes until `stop` gives a reason to end, or until the deadline, a cancellation or the end of the
    model's query budget, which all keep the counts so far.

    With a prior, the count continues where that ended, unless its samples are of another stream: those are
    not pooled. Raises BatchDependent if answers depend on the batch.
    """
    counts = subject.prior if subject.prior is not None and subject.prior.stream == noise.name else None
    if counts is not None:
        noise = replace(noise, seed=counts.seed)  # the samples continue the earlier ones
    try:
        if counts is None:
            counts = yield from _run_pilot(subject.image, noise, pilot)
        if counts.n and (reason := stop.reason(counts.hits, counts.n)):
            return replace(counts, stopped=reason)
        for look in stop.rule.looks(stop.n):
            if look <= counts.n:
                continue
            counts = yield from _count_until(counts, subject, noise, look)
            if reason := stop.reason(counts.hits, look):
                return replace(counts, stopped=reason)
    except (JobCanceled, DeadlineExceeded, QueryBudgetSpent) as ended:
        if counts is None:
            raise
        return replace(counts, stopped=ended.code)
    return replace(counts, stopped="n")


def _run_pilot(image: Tensor, noise: SampleNoise, pilot: int) -> PlanOf[Counts]:
    """The class that most of the pilot's samples vote for, and whether votes depend on the batch."""
    clean = (yield Logits(image)).logits
    difference = yield from _check_batch_invariance(image, noise)
    none = np.zeros(clean.shape[1], dtype=np.int64)
    votes = yield from _add_votes(none, image, noise, range(PILOT_START, PILOT_START + pilot))
    label, clean_label = int(votes.argmax()), int(clean.argmax())
    return Counts(label, clean_label, none, noise.seed, batch_difference=difference, stream=noise.name)


def sample_under_noise(
    image: Tensor, classes: int, *, noise: SampleNoise, n: int
) -> PlanOf[NDArray[np.int64]]:
    """The votes (K,) of n samples. Raises BatchDependent if answers depend on the batch."""
    yield from _check_batch_invariance(image, noise)
    return (yield from _add_votes(np.zeros(classes, dtype=np.int64), image, noise, range(n)))


def _check_batch_invariance(image: Tensor, noise: SampleNoise) -> PlanOf[float]:
    """By how much logits depend on their place in the batch; more than a tolerance is refused."""
    first = (yield NoisyLogits(image, noise, range(PILOT_START, PILOT_START + 2 * OVERLAP))).logits
    again = (yield NoisyLogits(image, noise, range(PILOT_START + OVERLAP, PILOT_START + 3 * OVERLAP))).logits
    difference = float((first[OVERLAP:] - again[:OVERLAP]).abs().max())
    if difference > BATCH_TOLERANCE * max(1.0, float(first.abs().max())):
        raise BatchDependent(
            "the model answers the same image differently in different batches (logits differ by "
            f"{difference:.3g}), so its votes prove nothing; export it in evaluation mode"
        )
    return difference


def _count_until(counts: Counts, subject: CertificateCase, noise: SampleNoise, until: int) -> PlanOf[Counts]:
    for samples in _chunks(range(counts.n, until)):
        votes = yield from _add_votes(counts.votes, subject.image, noise, samples)
        counts = replace(counts, votes=votes, n=samples.stop)
        subject.on_counts(counts)
    return counts


def _add_votes(
    before: NDArray[np.int64], image: Tensor, noise: SampleNoise, samples: range
) -> PlanOf[NDArray[np.int64]]:
    votes = before.copy()
    for chunk in _chunks(samples):
        logits = (yield NoisyLogits(image, noise, chunk)).logits
        votes += torch.bincount(logits.argmax(1), minlength=len(votes)).cpu().numpy()
    return votes


def _chunks(samples: range) -> list[range]:
    return [
        range(start, min(start + CHUNK, samples.stop)) for start in range(samples.start, samples.stop, CHUNK)
    ]
