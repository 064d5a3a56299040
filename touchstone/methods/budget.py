"""What a method costs with all its repetitions."""

from __future__ import annotations

from typing import Protocol

from touchstone.methods.cost import Cost
from touchstone.methods.families import RestartedAttack


class SupportsCost(Protocol):
    """Anything with a cost and with rounds, in which progress is counted."""

    def cost(self) -> Cost:
        """The most queries of one attempt at one image."""
        ...

    def rounds(self) -> int:
        """The rounds of one attempt."""
        ...


def total_cost(method: SupportsCost) -> Cost:
    """The most queries that one image may take, with all restarts and all EOT samples."""
    attempt, restarts, eot = method.cost(), *_repetitions(method)
    return Cost(
        restarts * (attempt.forward + (eot - 1) * attempt.backward), restarts * eot * attempt.backward
    )


def total_rounds(method: SupportsCost) -> int:
    """The rounds of a full run, with all repetitions."""
    restarts, eot = _repetitions(method)
    return restarts * eot * method.rounds()


def _repetitions(method: SupportsCost) -> tuple[int, int]:
    return method.restarts if isinstance(method, RestartedAttack) else 1, getattr(method, "eot", 1)
