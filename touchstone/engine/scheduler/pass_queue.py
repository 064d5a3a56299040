"""Open queries that wait for a pass, and the choice of what the next pass answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from weakref import WeakKeyDictionary

from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.queries import NoisyLogits, Query
from touchstone.engine.scheduler.task import Task

LOW_MEMORY_SECONDS = 60.0
"""After running out of memory, passes are smaller for so long: the memory may be free again afterwards."""


class PassQueue:
    """Tasks with an open query, in groups that can share a pass.

    Groups take turns. Within a group each owner gets an equal share of the rows of a pass, and each of the
    owner's tasks an equal share of that; what one does not need goes to the others. So a query of a hundred
    thousand rows delays a query of one row by one pass.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[Task]] = {}
        self._limits: WeakKeyDictionary[Oracle, tuple[int, float]] = WeakKeyDictionary()
        """Rows of a pass after running out of memory, and until when."""

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, task: Task) -> None:
        """Queue a task whose query has just been opened."""
        self._groups.setdefault(task.group, deque()).append(task)

    def remove(self, task: Task) -> None:
        """Take a task out, if it is queued; its query is still the one that it was queued with."""
        group = self._groups.get(task.group)
        if group is not None and task in group:
            group.remove(task)
            if not group:
                del self._groups[task.group]

    def next_pass(self) -> list[tuple[Task, Query | NoisyLogits]]:
        """The rows that the next pass answers, all of one group; the tasks stay queued, behind the others."""
        key, group = next(iter(self._groups.items()))
        chosen = self._share(group)
        served = {task for task, _ in chosen}
        # The group goes behind the other groups, and these tasks behind the others of the group.
        del self._groups[key]
        self._groups[key] = deque(sorted(group, key=served.__contains__))
        return chosen

    def limit_rows(self, oracle: Oracle, rows: int) -> None:
        """Limit the passes of an oracle that ran out of memory, for a while."""
        self._limits[oracle] = (rows, time.monotonic() + LOW_MEMORY_SECONDS)

    def _share(self, group: Sequence[Task]) -> list[tuple[Task, Query | NoisyLogits]]:
        """As many rows as one pass takes, spread evenly over owners, and each owner's over its tasks."""
        oracle = group[0].current_oracle
        fixed = group[0].deterministic or any(isinstance(task.query, NoisyLogits) for task in group)
        rows = oracle.fixed_rows if fixed else oracle.rows
        limit, until = self._limits.get(oracle, (rows, 0.0))
        capacity = min(rows, limit) if time.monotonic() < until else rows
        owners: dict[str, list[Task]] = {}
        for task in group:
            owners.setdefault(task.owner, []).append(task)
        return [
            (task, task.slice_query(part))
            for tasks, rows in _spread(list(owners.values()), capacity)
            for [task], part in _spread([[task] for task in tasks], rows)
        ]


def _count_remaining(tasks: Sequence[Task]) -> int:
    return sum(task.remaining_rows for task in tasks)


def _spread(groups: Sequence[Sequence[Task]], capacity: int) -> Iterator[tuple[Sequence[Task], int]]:
    """Equal parts of the capacity for as many groups as it has rows, none larger than the group needs.

    The small groups come first, so that what they leave of their part goes to the large ones.
    """
    by_size = sorted(groups[:capacity], key=_count_remaining)
    for position, one in enumerate(by_size):
        part = min(_count_remaining(one), max(1, capacity // (len(by_size) - position)))
        capacity -= part
        yield one, part
