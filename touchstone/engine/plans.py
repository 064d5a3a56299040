"""Plans around plans: who asks, what may be asked, and how often. Wrappers, not subclasses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.engine.queries import Answer, Asking, Noisy, Query
from touchstone.errors import GradientRefused
from touchstone.fields import Access

T = TypeVar("T")
Question = Query | Noisy
Ask = Callable[[Question], Asking[Answer]]


def through(plan: Asking[T], ask: Ask) -> Asking[T]:
    """Run a plan whose questions `ask` asks for it: others instead, or the same and more.

    What ends the plan from outside (a cancellation, a deadline) reaches it as if nothing were in between.
    """
    try:
        question = next(plan)
        while True:
            try:
                answer = yield from ask(question)
            except GeneratorExit:
                plan.close()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on to the plan, which may catch it
                question = plan.throw(error)
            else:
                question = plan.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def restricted(plan: Asking[T], access: Access, most: int | None = None) -> Asking[T]:
    """A plan that gets no more than it declared: no gradients, or no scores either, and at most so many rows.

    Raises GradientRefused, and RuntimeError where a method breaks its own budget.
    """
    return through(plan, partial(_within, _Purse(most), access))


@dataclass
class _Purse:
    left: int | None

    def pay(self, rows: int) -> None:
        if self.left is None:
            return
        self.left -= rows
        if self.left < 0:
            raise RuntimeError("the method asks more often than its budget of queries allows")


def _within(purse: _Purse, access: Access, question: Question) -> Asking[Answer]:
    if question.of is not None:
        return (yield question)
    if question.passes:
        raise GradientRefused("the method is a black-box one: it may not ask for gradients")
    purse.pay(len(question))
    answer = yield question
    return Answer(_decision(answer.logits)) if access == "decisions" else answer


def _decision(logits: Tensor) -> Tensor:
    """All that an answer without scores tells: which class it is."""
    return functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


def averaged(plan: Asking[T], times: int) -> Asking[T]:
    """Expectation over transformation (Athalye et al. 2018, 1707.07397): gradients are means of many askings.

    For models that answer differently each time; logits and losses are means, too.
    """
    return plan if times == 1 else through(plan, partial(_mean, times))


def _mean(times: int, question: Question) -> Asking[Answer]:
    if not question.passes:
        return (yield question)
    answers: list[Answer] = []
    for _ in range(times):
        answers.append((yield question))
    losses = [answer.loss for answer in answers if answer.loss is not None]
    grads = [answer.grad for answer in answers if answer.grad is not None]
    mean = [torch.stack(values).mean(0) if values else None for values in (losses, grads)]
    return Answer(torch.stack([answer.logits for answer in answers]).mean(0), *mean)


@dataclass
class Diagnosis:
    """Signs that a model's gradients hide more than they show (Athalye et al. 2018, section 3.1)."""

    gradients: int = 0
    empty: int = 0
    signs: set[str] = field(default_factory=set)

    def codes(self) -> list[str]:
        """What was seen, as stable words."""
        zero = {"zero_gradient"} if self.gradients and self.empty == self.gradients else set()
        return sorted(self.signs | zero)


def diagnosed(plan: Asking[T], diagnosis: Diagnosis) -> Asking[T]:
    """A plan whose answers are looked at on the way, those of the model under attack."""
    return through(plan, partial(_noted, diagnosis))


def _noted(diagnosis: Diagnosis, question: Question) -> Asking[Answer]:
    answer = yield question
    if answer.grad is not None and question.of is None:
        diagnosis.gradients += len(answer.grad)
        diagnosis.empty += int((~answer.grad.flatten(1).any(1)).sum())
    return answer
