"""What a method costs with all its repetitions."""

from __future__ import annotations

from typing import Protocol

from touchstone.methods.cost import Cost
from touchstone.methods.families import RestartedAttack


class Costly(Protocol):
    """What has a cost, and rounds to count progress in."""

    def cost(self) -> Cost:
        """The most queries of one attempt at one image."""
        ...

    def rounds(self) -> int:
        """The rounds of one attempt."""
        ...


def cost_of(asked: Costly) -> Cost:
    """The most queries that one image may take, with all attempts and every asking behind a mean gradient."""
    attempt, restarts, eot = asked.cost(), *_repetitions(asked)
    return Cost(
        restarts * (attempt.forward + (eot - 1) * attempt.backward), restarts * eot * attempt.backward
    )


def rounds_of(asked: Costly) -> int:
    """The rounds of a full run, with all repetitions."""
    restarts, eot = _repetitions(asked)
    return restarts * eot * asked.rounds()


def _repetitions(asked: Costly) -> tuple[int, int]:
    return asked.restarts if isinstance(asked, RestartedAttack) else 1, getattr(asked, "eot", 1)
