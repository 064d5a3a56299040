"""A model with its preprocessing: images of any size in [0,1] in, logits and input gradients out."""

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
BATCH_TOLERANCE = 1e-3
"""How much of the largest logit a row's logits may differ by alone and in a batch."""

Q = TypeVar("Q", bound=Query | NoisyLogits)

StillWanted = Callable[[], Sequence[bool]]
"""For each query, whether a task still waits for its answer; a slow oracle calls it repeatedly."""


class Oracle(Protocol):
    """Anything that answers queries: a network on this machine, or a remote model."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""

    @property
    def device(self) -> torch.device:
        """The device that the images of queries must be on."""

    @property
    def rows(self) -> int:
        """How many rows to query in one pass."""

    @property
    def fixed_rows(self) -> int:
        """Rows of a pass whose answers must not depend on the batch."""

    @property
    def shared(self) -> bool:
        """Whether jobs may share a pass."""

    @property
    def eval_mode(self) -> bool | None:
        """Whether no part of the network is in training mode; None where that cannot be observed."""

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> Sequence[Answer | Failure]:
        """An answer to each query, or the failure that prevented it."""


@dataclass(frozen=True, eq=False)
class TorchOracle:
    """A frozen network in eval mode with its preprocessing: channels, resize, crop and normalization.

    Answers many queries with one forward pass and at most one backward pass, with respect to the inputs only.
    A black-box oracle refuses gradients.
    """

    module: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    knowledge: Knowledge = "white-box"
    rows: int = 64
    """How many rows to query in one pass; see `probe.measure_gradient_rates`."""
    shared: bool = True
    """Whether jobs may share a pass: not where a row's answer depends on the other rows."""

    @property
    def fixed_rows(self) -> int:
        """Rows of a pass whose answers must not depend on the batch: set by the size of the input alone."""
        spec = self.preprocessing.spec
        return 64 if spec is not None and spec.height * spec.width <= SMALL_INPUT else 16

    @property
    def eval_mode(self) -> bool:
        """Whether no part of the network is in training mode."""
        return not any(module.training for module in self.module.modules())

    def answer(self, queries: Sequence[Query | NoisyLogits]) -> list[Answer]:
        """Answers in the order of the queries; they are all of a kind: gradients, Jacobians of as many
        classes, or neither.

        Noisy queries are answered in passes of one fixed shape, so that no vote depends on the
        batch. Raises GradientRefused for gradients of a black box.
        """
        if queries[0].backward_passes and self.knowledge == "black-box":
            raise GradientRefused("this model is a black box: it gives logits, not gradients")
        if isinstance(queries[0], Gradient):
            return self._differentiate([query for query in queries if isinstance(query, Gradient)])
        if isinstance(queries[0], Jacobian):
            return self._compute_jacobians([query for query in queries if isinstance(query, Jacobian)])
        with torch.no_grad():
            inputs = _cat([self._preprocess(run) for run in _group_neighbors(queries)])
            fixed = any(isinstance(query, NoisyLogits) for query in queries)
            logits = self._forward_fixed(inputs) if fixed else self._forward(inputs)
        return [Answer(part) for part in _split(logits, queries)]

    def _differentiate(self, queries: Sequence[Gradient]) -> list[Answer]:
        runs = _group_neighbors(queries)
        with torch.enable_grad():
            leaves, logits = self._leaves(runs)
            loss = _compute_losses(logits, queries)
            grads = torch.autograd.grad(loss.sum(), leaves)
        parts = _split_runs(runs, grads)
        answers = zip(_split(logits.detach(), queries), _split(loss.detach(), queries), parts, strict=True)
        return [Answer(*answer) for answer in answers]

    def _compute_jacobians(self, queries: Sequence[Jacobian]) -> list[Answer]:
        runs = _group_neighbors(queries)
        classes, label = _cat([query.classes for query in queries]), _cat([query.label for query in queries])
        with torch.enable_grad():
            leaves, logits = self._leaves(runs)
            chosen = (logits.gather(1, classes) - logits.gather(1, label[:, None])).sum(0)
            last = len(chosen) - 1
            columns = [
                torch.autograd.grad(one, leaves, retain_graph=at < last) for at, one in enumerate(chosen)
            ]
        grads = [torch.stack(column, 1) for column in zip(*columns, strict=True)]
        answers = zip(_split(logits.detach(), queries), _split_runs(runs, grads), strict=True)
        return [Answer(part, None, grad) for part, grad in answers]

    def _leaves(self, runs: Sequence[Sequence[Query]]) -> tuple[list[Tensor], Tensor]:
        leaves = [_cat([query.x for query in run]).detach().requires_grad_() for run in runs]
        return leaves, self._forward(_cat([self.preprocessing.apply(x) for x in leaves]))

    def _preprocess(self, queries: Sequence[Query | NoisyLogits]) -> Tensor:
        return preprocessing_for(queries[0])(self.preprocessing, _cat([query.x for query in queries]))

    def _forward(self, inputs: Tensor) -> Tensor:
        logits = self.module(inputs.contiguous(memory_format=torch.channels_last))
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise InvalidModel(f"the network must answer logits (N, K), one row an image, not {what}")
        return logits

    def _forward_fixed(self, inputs: Tensor) -> Tensor:
        rows = self.fixed_rows
        missing = -len(inputs) % rows
        padded = torch.cat([inputs, inputs.new_zeros(missing, *inputs.shape[1:])]) if missing else inputs
        starts = range(0, len(padded), rows)
        return torch.cat([self._forward(padded[at : at + rows]) for at in starts])[: len(inputs)]


def preprocessing_for(query: Query | NoisyLogits) -> Callable[[Preprocessing, Tensor], Tensor]:
    """How the images of a query become the network's input."""
    if isinstance(query, FileLogits):
        return Preprocessing.apply_to_files
    return Preprocessing.normalize if isinstance(query, InputLogits | NoisyLogits) else Preprocessing.apply


def _group_neighbors(queries: Sequence[Q]) -> list[list[Q]]:
    """Neighbors with the same preprocessing and image shape; the order is kept."""
    return [
        list(run) for _, run in groupby(queries, key=lambda one: (preprocessing_for(one), one.image_shape))
    ]


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _split(values: Tensor, among: Sequence[Sized]) -> Sequence[Tensor]:
    return values.split_with_sizes([len(one) for one in among])


def _split_runs(runs: Sequence[Sequence[Query]], values: Sequence[Tensor]) -> list[Tensor]:
    """The values of each query, from the values of each run of queries."""
    return [part for run, value in zip(runs, values, strict=True) for part in _split(value, run)]


def _compute_losses(logits: Tensor, queries: Sequence[Gradient]) -> Tensor:
    """Every row's loss; neighbors that share a kind of loss are computed together."""
    runs = [list(run) for _, run in groupby((query.loss for query in queries), key=lambda loss: loss.kind)]
    kinds = [run[0].cat(run) if len(run) > 1 else run[0] for run in runs]
    if len(kinds) == 1:
        return kinds[0](logits)
    parts = logits.split_with_sizes([sum(map(len, run)) for run in runs])
    return torch.cat([loss(part) for loss, part in zip(kinds, parts, strict=True)])


def check_finite(query: Query | NoisyLogits, answer: Answer) -> None:
    """Raise NonFiniteOutput if the model answered NaN or infinity to a query that does not allow it."""
    if query.allow_non_finite or bool(torch.isfinite(answer.logits).all()):
        return
    if isinstance(query, NoisyLogits):
        raise NonFiniteOutput(
            "the model answered NaN or infinite logits for noisy copies of the image; their values leave "
            "[0,1], and the network must be defined there, too"
        )
    raise NonFiniteOutput(
        "the model answered NaN or infinite logits for the image; check its weights and its normalization"
    )
