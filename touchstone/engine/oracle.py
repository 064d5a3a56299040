"""A model made ready to be asked: images of any size in [0,1] go in, logits and input gradients come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from touchstone.engine.goals import CrossEntropy, Margin
from touchstone.engine.queries import Answer, Gradient, Query
from touchstone.engine.resize import Sight
from touchstone.errors import GradientRefused, NonFiniteOutput

Knowledge = Literal["white-box", "black-box"]
MOST_ROWS = 64


@dataclass(frozen=True, eq=False)
class Oracle:
    """A frozen network in eval mode with what stands before it: channels, resize, crop and normalisation.

    Answers many queries with one forward pass and at most one backward pass; with respect to the inputs only.
    A black-box oracle refuses gradients.
    """

    module: nn.Module
    sight: Sight
    device: torch.device
    knowledge: Knowledge = "white-box"
    rows: int = MOST_ROWS
    """How many rows to ask about at once; see `probe.best_rows`."""

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers in the order of the queries, which are all of one type.

        Raises GradientRefused for gradients of a black box.
        """
        if not isinstance(queries[0], Gradient):
            with torch.no_grad():
                logits = self._forward([_images(run) for run in _by_size(queries)])
            return [Answer(part) for part in _split(logits, queries)]
        if self.knowledge == "black-box":
            raise GradientRefused("this model is a black box: it answers logits, not gradients")
        return self._differentiate([query for query in queries if isinstance(query, Gradient)])

    def _differentiate(self, queries: Sequence[Gradient]) -> list[Answer]:
        runs = _by_size(queries)
        with torch.enable_grad():
            leaves = [_images(run).detach().requires_grad_() for run in runs]
            logits = self._forward(leaves)
            loss = _losses(logits, queries)
            grads = torch.autograd.grad(loss.sum(), leaves)
        parts = [part for run, grad in zip(runs, grads, strict=True) for part in _split(grad, run)]
        shown = zip(_split(logits.detach(), queries), _split(loss.detach(), queries), parts, strict=True)
        return [Answer(*answer) for answer in shown]

    def _forward(self, images: Sequence[Tensor]) -> Tensor:
        seen = torch.cat([self.sight.see(x) for x in images])
        logits: Tensor = self.module(seen.contiguous(memory_format=torch.channels_last))
        return logits


Q = TypeVar("Q", bound=Query)


def _by_size(queries: Sequence[Q]) -> list[list[Q]]:
    """Neighbours whose images have one size, which share a resize; the order is kept."""
    return [list(run) for _, run in groupby(queries, key=lambda query: query.x.shape[1:])]


def _images(queries: Sequence[Query]) -> Tensor:
    return torch.cat([query.x for query in queries]) if len(queries) > 1 else queries[0].x


def _split(values: Tensor, queries: Sequence[Query]) -> Sequence[Tensor]:
    return torch.split(values, [len(query) for query in queries])


def _losses(logits: Tensor, queries: Sequence[Gradient]) -> Tensor:
    """Every row's loss; neighbours that share a kind of loss are computed together."""
    losses, start = [], 0
    for _, run in groupby((query.loss for query in queries), key=type):
        loss = _joined(list(run))
        losses.append(loss(logits[start : start + len(loss)]))
        start += len(loss)
    return torch.cat(losses)


def _joined(losses: Sequence[CrossEntropy | Margin]) -> CrossEntropy | Margin:
    return type(losses[0]).cat(losses)  # type: ignore[arg-type]


def check_finite(answer: Answer) -> None:
    """Raise NonFiniteOutput if the model answered NaN or infinity."""
    if not bool(torch.isfinite(answer.logits).all()):
        raise NonFiniteOutput(
            "the model answered NaN or infinite logits; check its weights and its normalisation"
        )
