"""A model made ready to be asked: images of any size in [0,1] go in, logits and input gradients come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from touchstone.engine.oracles.preprocessing import Preprocessing
from touchstone.engine.queries import Answer, FileLogits, Gradient, InputLogits, Jacobian, NoisyLogits, Query
from touchstone.errors import Failure, GradientRefused, InvalidModel, NonFiniteOutput

Knowledge = Literal["white-box", "black-box"]
SMALL_INPUT = 64 * 64

Q = TypeVar("Q", bound=Query | NoisyLogits)

StillWanted = Callable[[], Sequence[bool]]
"""Which of the queries somebody still waits for; called again and again by an oracle that takes its time."""


class Oracle(Protocol):
    """Whatever can be asked: a network on this machine, or one behind an address."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What stands between an image and the network."""

    @property
    def device(self) -> torch.device:
        """Where images are wanted."""

    @property
    def rows(self) -> int:
        """How many rows to ask about at once."""

    @property
    def fixed_rows(self) -> int:
        """How many rows to ask about at once where no answer may depend on how it was batched."""

    @property
    def shared(self) -> bool:
        """Whether jobs may share a pass."""

    @property
    def eval_mode(self) -> bool | None:
        """Whether no part of the network is in training mode; None where nobody can look."""

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> Sequence[Answer | Failure]:
        """An answer to each query, or why there is none."""


@dataclass(frozen=True, eq=False)
class TorchOracle:
    """A frozen network in eval mode with what stands before it: channels, resize, crop and normalisation.

    Answers many queries with one forward pass and at most one backward pass; with respect to the inputs only.
    A black-box oracle refuses gradients.
    """

    module: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    knowledge: Knowledge = "white-box"
    rows: int = 64
    """How many rows to ask about at once; see `probe.measure_gradient_rates`."""
    shared: bool = True
    """Whether jobs may share a pass: not where a row's answer depends on those beside it."""

    @property
    def fixed_rows(self) -> int:
        """Rows of a pass whose answers must not depend on the batch: told by the size of the input alone."""
        spec = self.preprocessing.spec
        return 64 if spec is not None and spec.height * spec.width <= SMALL_INPUT else 16

    @property
    def eval_mode(self) -> bool:
        """Whether no part of the network is in training mode."""
        return not any(module.training for module in self.module.modules())

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> list[Answer]:
        """Answers in the order of the queries; they are all of a kind: gradients, Jacobians of as many
        classes, or neither.

        Noisy queries are answered in passes of one fixed shape, so that no vote depends on how it was
        batched. Raises GradientRefused for gradients of a black box.
        """
        if queries[0].backward_passes and self.knowledge == "black-box":
            raise GradientRefused("this model is a black box: it answers logits, not gradients")
        if isinstance(queries[0], Gradient):
            return self._differentiate([query for query in queries if isinstance(query, Gradient)])
        if isinstance(queries[0], Jacobian):
            return self._compute_jacobians([query for query in queries if isinstance(query, Jacobian)])
        with torch.no_grad():
            seen = _cat([self._preprocess(run) for run in _group_neighbours(queries)])
            fixed = any(isinstance(query, NoisyLogits) for query in queries)
            logits = self._forward_fixed(seen) if fixed else self._forward(seen)
        return [Answer(part) for part in _split(logits, queries)]

    def _differentiate(self, queries: Sequence[Gradient]) -> list[Answer]:
        runs = _group_neighbours(queries)
        with torch.enable_grad():
            leaves, logits = self._leaves(runs)
            loss = _compute_losses(logits, queries)
            grads = torch.autograd.grad(loss.sum(), leaves)
        parts = _split_runs(runs, grads)
        shown = zip(_split(logits.detach(), queries), _split(loss.detach(), queries), parts, strict=True)
        return [Answer(*answer) for answer in shown]

    def _compute_jacobians(self, queries: Sequence[Jacobian]) -> list[Answer]:
        runs = _group_neighbours(queries)
        classes, label = _cat([query.classes for query in queries]), _cat([query.label for query in queries])
        with torch.enable_grad():
            leaves, logits = self._leaves(runs)
            chosen = (logits.gather(1, classes) - logits.gather(1, label[:, None])).sum(0)
            last = len(chosen) - 1
            columns = [
                torch.autograd.grad(one, leaves, retain_graph=at < last) for at, one in enumerate(chosen)
            ]
        grads = [torch.stack(column, 1) for column in zip(*columns, strict=True)]
        shown = zip(_split(logits.detach(), queries), _split_runs(runs, grads), strict=True)
        return [Answer(part, None, grad) for part, grad in shown]

    def _leaves(self, runs: Sequence[Sequence[Query]]) -> tuple[list[Tensor], Tensor]:
        leaves = [_cat([query.x for query in run]).detach().requires_grad_() for run in runs]
        return leaves, self._forward(_cat([self.preprocessing.apply(x) for x in leaves]))

    def _preprocess(self, queries: Sequence[Query | NoisyLogits]) -> Tensor:
        return preprocessing_for(queries[0])(self.preprocessing, _cat([query.x for query in queries]))

    def _forward(self, seen: Tensor) -> Tensor:
        logits = self.module(seen.contiguous(memory_format=torch.channels_last))
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise InvalidModel(f"the network must answer logits (N, K), one row an image, not {what}")
        return logits

    def _forward_fixed(self, seen: Tensor) -> Tensor:
        rows = self.fixed_rows
        missing = -len(seen) % rows
        padded = torch.cat([seen, seen.new_zeros(missing, *seen.shape[1:])]) if missing else seen
        starts = range(0, len(padded), rows)
        return torch.cat([self._forward(padded[at : at + rows]) for at in starts])[: len(seen)]


def preprocessing_for(query: Query | NoisyLogits) -> Callable[[Preprocessing, Tensor], Tensor]:
    """How the images of a query become the network's input."""
    if isinstance(query, FileLogits):
        return Preprocessing.apply_to_files
    return Preprocessing.normalize if isinstance(query, InputLogits | NoisyLogits) else Preprocessing.apply


def _group_neighbours(queries: Sequence[Q]) -> list[list[Q]]:
    """Neighbours that share a resize; the order is kept."""
    return [
        list(run) for _, run in groupby(queries, key=lambda one: (preprocessing_for(one), one.image_shape))
    ]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _split(values: Tensor, among: Sequence[Sized]) -> Sequence[Tensor]:
    return values.split_with_sizes([len(one) for one in among])


def _split_runs(runs: Sequence[Sequence[Query]], values: Sequence[Tensor]) -> list[Tensor]:
    """What belongs to each query, of values that belong to each run."""
    return [part for run, value in zip(runs, values, strict=True) for part in _split(value, run)]


def _compute_losses(logits: Tensor, queries: Sequence[Gradient]) -> Tensor:
    """Every row's loss; neighbours that share a kind of loss are computed together."""
    runs = [list(run) for _, run in groupby((query.loss for query in queries), key=lambda loss: loss.kind)]
    kinds = [run[0].cat(run) if len(run) > 1 else run[0] for run in runs]
    if len(kinds) == 1:
        return kinds[0](logits)
    parts = logits.split_with_sizes([sum(map(len, run)) for run in runs])
    return torch.cat([loss(part) for loss, part in zip(kinds, parts, strict=True)])


def check_finite(answer: Answer) -> None:
    """Raise NonFiniteOutput if the model answered NaN or infinity."""
    if not bool(torch.isfinite(answer.logits).all()):
        raise NonFiniteOutput(
            "the model answered NaN or infinite logits; check its weights and its normalisation"
        )
