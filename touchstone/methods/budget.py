"""What a method costs with all its repetitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from touchstone.methods.cost import Cost
from touchstone.methods.families import RestartedAttack
from touchstone.methods.footprint import Footprint


class SupportsCost(Protocol):
    """Anything with a cost and with rounds, in which progress is counted."""

    def cost(self) -> Cost:
        """The most queries of one attempt at one image."""
        ...

    def rounds(self) -> int:
        """The rounds of one attempt."""
        ...


class SupportsFootprint(Protocol):
    """Anything that says what it holds in memory."""

    def footprint(self) -> Footprint:
        """The most that one attempt at one image holds."""
        ...


EOT_SUMS, EOT_COPIES = 6, 2
"""Tensors that a mean of gradients takes: its sums, where it is computed one by one; else each gradient in
the list and in the stack.
"""


def total_cost(method: SupportsCost) -> Cost:
    """The most queries that one image may take, with all restarts and all EOT samples."""
    attempt, restarts, eot = method.cost(), *_repetitions(method)
    return Cost(
        restarts * (attempt.forward + (eot - 1) * attempt.backward), restarts * eot * attempt.backward
    )


def total_footprint(method: SupportsFootprint) -> Footprint:
    """The most that a job on one image holds in memory, with the gradients that EOT averages."""
    own, eot = method.footprint(), getattr(method, "eot", 1)
    if eot == 1:
        return own
    return replace(own, images=own.images + EOT_SUMS, many=own.many + eot, each=max(own.each, EOT_COPIES))


def total_rounds(method: SupportsCost) -> int:
    """The rounds of a full run, with all repetitions."""
    restarts, eot = _repetitions(method)
    return restarts * eot * method.rounds()


def _repetitions(method: SupportsCost) -> tuple[int, int]:
    return method.restarts if isinstance(method, RestartedAttack) else 1, getattr(method, "eot", 1)
