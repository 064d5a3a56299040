"""Plans that wrap others, rewrite or restrict their queries, average or examine answers, or ask in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.engine.diagnosis import Diagnosis
from touchstone.engine.goals import are_finite
from touchstone.engine.loops import run_steps
from touchstone.engine.pieces import RowSum, cut, rows_of_piece
from touchstone.engine.queries import Answer, AnyQuery, NoisyLogits, PlanOf, Query, Repeat
from touchstone.errors import GradientRefused
from touchstone.fields import Access

T = TypeVar("T")
Rewrite = Callable[[AnyQuery], PlanOf[Answer]]


def rewrite_queries(plan: PlanOf[T], rewrite: Rewrite) -> PlanOf[T]:
    """Run a plan whose queries `rewrite` makes for it: others instead, or the same and more.

    An exception from outside (a cancellation, a deadline) reaches the plan as if it were not wrapped.
    """
    try:
        query = next(plan)
        while True:
            try:
                answer = yield from rewrite(query)
            except GeneratorExit:
                plan.close()
                raise
            except BaseException as error:  # noqa: BLE001 - passed on to the plan, which may catch it
                query = plan.throw(error)
            else:
                query = plan.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def expand_loops(plan: PlanOf[T]) -> PlanOf[T]:
    """A plan that runs its loops itself, with all their queries its own."""
    return rewrite_queries(plan, _expand_loop)


def _expand_loop(query: AnyQuery) -> PlanOf[Answer]:
    return (yield from run_steps(query)) if isinstance(query, Repeat) else (yield query)


def restrict(plan: PlanOf[T], access: Access, max_queries: int | None = None) -> PlanOf[T]:
    """A plan limited to what it declared: no gradients, or no scores either, and at most `max_queries` rows.

    Raises GradientRefused, and RuntimeError where a method breaks its own budget.
    """
    plan = expand_loops(plan) if access == "decisions" else plan
    return rewrite_queries(plan, partial(_enforce_access, _QueryBudget(max_queries), access))


@dataclass
class _QueryBudget:
    left: int | None

    def spend(self, rows: int) -> None:
        if self.left is None:
            return
        self.left -= rows
        if self.left < 0:
            raise RuntimeError("the method sends more queries than its budget of queries allows")


def _enforce_access(budget: _QueryBudget, access: Access, query: AnyQuery) -> PlanOf[Answer]:
    if query.surrogate is not None:
        return (yield query)
    if isinstance(query, Repeat):
        answer = yield query
        _check_gradients(int(query.tally.backward.values.sum()))
        budget.spend(int(query.tally.forward.values.sum()))
        return answer
    _check_gradients(query.backward_passes)
    budget.spend(len(query))
    answer = yield query
    return Answer(_decision(answer.logits)) if access == "decisions" else answer


def _check_gradients(passes: int) -> None:
    if passes:
        raise GradientRefused("a black-box method must not query gradients")


def _decision(logits: Tensor) -> Tensor:
    """The predicted class alone, one-hot; NaN where there is none."""
    chosen = functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
    return chosen.masked_fill(~are_finite(logits)[:, None], torch.nan)


def average_gradients(plan: PlanOf[T], times: int) -> PlanOf[T]:
    """Expectation over transformation (Athalye et al. 2018, 1707.07397): gradients are means of `times`
    queries.

    For models whose answers vary at random; logits and losses are means, too.
    """
    return plan if times == 1 else rewrite_queries(expand_loops(plan), partial(_average_answers, times))


def _average_answers(times: int, query: AnyQuery) -> PlanOf[Answer]:
    if not isinstance(query, Query) or not query.backward_passes:
        return (yield query)
    if times > rows_of_piece(2 * query.x.numel() * query.backward_passes):
        return (yield from _average_one_by_one(times, query))
    answers: list[Answer] = []
    for _ in range(times):
        answers.append((yield query))
    losses = [answer.loss for answer in answers if answer.loss is not None]
    grads = [answer.grad for answer in answers if answer.grad is not None]
    mean = [torch.stack(values).mean(0) if values else None for values in (losses, grads)]
    return Answer(torch.stack([answer.logits for answer in answers]).mean(0), *mean)


def _average_one_by_one(times: int, query: AnyQuery) -> PlanOf[Answer]:
    """The same to the bit without holding all answers."""
    sums: dict[str, RowSum] = {}
    for _ in range(times):
        answer = yield query
        for name in ("logits", "loss", "grad"):
            if (value := getattr(answer, name)) is not None:
                sums.setdefault(name, RowSum(times)).add(value[:, None])
    return Answer(**{name: total.total().div_(times) for name, total in sums.items()})


def diagnose(plan: PlanOf[T], diagnosis: Diagnosis) -> PlanOf[T]:
    """A plan that goes on wherever the model's answer is not finite; what that says is noted in `diagnosis`.

    Values of a gradient that are NaN or infinite count as 0, losses that are NaN as -∞, and a point without
    finite logits meets no goal and is never the best.
    """
    return rewrite_queries(plan, partial(_examine_answer, diagnosis))


def _examine_answer(diagnosis: Diagnosis, query: AnyQuery) -> PlanOf[Answer]:
    if isinstance(query, NoisyLogits):
        return (yield query)
    if isinstance(query, Repeat):
        try:
            return (yield query)
        finally:
            diagnosis.note_tally(query.tally)
    answer = yield replace(query, allow_non_finite=True)
    if query.surrogate is None:
        diagnosis.note_logits(answer.logits)
        if answer.grad is not None:
            diagnosis.note_gradients(answer.grad)
    return answer.without_non_finite()


def ask_in_pieces(count: int, values: int, ask: Callable[[slice], PlanOf[Tensor]]) -> PlanOf[Tensor]:
    """What `ask` returns for each piece of `count` images of so many values, joined.

    Answers are those of one piece wherever the network's do not depend on the batch.
    """
    parts = []
    for piece in cut(count, values):
        parts.append((yield from ask(piece)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
