"""Open queries that wait for a pass, and the choice of what the next pass answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from weakref import WeakKeyDictionary

from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.queries import NoisyLogits
from touchstone.engine.scheduler.device_time import MAX_ACCOUNTS, DeviceTime
from touchstone.engine.scheduler.task import Task

TINY = 1e-9

LOW_MEMORY_SECONDS = 60.0
"""After running out of memory, passes are smaller for so long: the memory may be free again afterwards."""


SLICE_SECONDS = 0.2
MIN_SLICE_ROWS = 4
"""While others wait for the device, a pass takes about so long at most, as far as so few rows allow."""

OWNER_ROWS = 8
"""Where owners share a pass, it has room for so many rows of each, or for as many as the one with the fewest
has: who asks about one image at a time does not wait for passes full of another's.
"""

Share = list[tuple[Task, int]]
"""How many rows of each task a pass answers."""


class PassQueue:
    """Tasks with an open query, in groups that can share a pass.

    Owners get equal shares of the device's time, as measured, and each owner's models equal shares of that:
    the group of whoever has had the least is next. So forty short passes of a small model fit beside one long
    pass of a large one. Within a group each owner gets an equal share of the rows of a pass, and each of the
    owner's tasks an equal share of that; what one does not need goes to the others. So a query of a hundred
    thousand rows delays a query of one row by one pass.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, deque[Task]] = {}
        self._limits: WeakKeyDictionary[Oracle, tuple[int, float]] = WeakKeyDictionary()
        """Rows of a pass after running out of memory, and until when."""
        self._row_seconds: WeakKeyDictionary[Oracle, float] = WeakKeyDictionary()
        self._owners = DeviceTime[str]()
        self._models: dict[str, DeviceTime[int]] = {}  # by owner

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

    def next_pass(self) -> Share:
        """The rows that the next pass answers, all of one group; the tasks stay queued, behind the others."""
        key = self._next_group()
        group = self._groups[key]
        chosen = self._share(group)
        served = {task for task, _ in chosen}
        # The group goes behind the other groups, and these tasks behind the others of the group.
        del self._groups[key]
        self._groups[key] = deque(sorted(group, key=served.__contains__))
        return chosen

    def charge_pass(self, chosen: Share, seconds: float) -> None:
        """Charge a pass to the tasks that had a part in it, by their rows."""
        rows = sum(part for _, part in chosen)
        self._row_seconds[chosen[0][0].current_oracle] = seconds / rows
        by_owner: dict[str, int] = {}
        for task, part in chosen:
            by_owner[task.owner] = by_owner.get(task.owner, 0) + part
        for owner, part in by_owner.items():
            self._charge(owner, chosen[0][0].current_oracle, seconds * part / rows)

    def charge_plan(self, task: Task, seconds: float) -> None:
        """Charge the work of a task's own plan between two passes."""
        self._charge(task.owner, task.oracle, seconds)

    def limit_rows(self, oracle: Oracle, rows: int) -> None:
        """Limit the passes of an oracle that ran out of memory, for a while."""
        self._limits[oracle] = (rows, time.monotonic() + LOW_MEMORY_SECONDS)

    def _charge(self, owner: str, oracle: Oracle, seconds: float) -> None:
        self._owners.charge(owner, seconds)
        self._models.setdefault(owner, DeviceTime[int]()).charge(id(oracle), seconds)
        if len(self._models) > MAX_ACCOUNTS:
            self._models = {owner: self._models[owner] for owner in self._waiting_owners()}

    def _next_group(self) -> Hashable:
        if len(self._groups) == 1:
            return next(iter(self._groups))
        owner = self._owners.next(self._waiting_owners())
        wanted = {key: group for key, group in self._groups.items() if any(t.owner == owner for t in group)}
        models = self._models.setdefault(owner, DeviceTime[int]())
        oracle = models.next(id(group[0].current_oracle) for group in wanted.values())
        return next(key for key, group in wanted.items() if id(group[0].current_oracle) == oracle)

    def _waiting_owners(self) -> list[str]:
        return list(dict.fromkeys(task.owner for group in self._groups.values() for task in group))

    def _share(self, group: Sequence[Task]) -> Share:
        """As many rows as one pass takes, spread evenly over owners, and each owner's over its tasks."""
        owners: dict[str, list[Task]] = {}
        for task in group:
            owners.setdefault(task.owner, []).append(task)
        capacity = self._capacity(group)
        if len(owners) > 1:
            fewest = min(map(_count_remaining, owners.values()))
            capacity = min(capacity, len(owners) * max(fewest, OWNER_ROWS))
        if _count_remaining(group) <= capacity:
            return [(task, task.remaining_rows) for task in group]
        return [
            (task, part)
            for tasks, rows in _spread(list(owners.values()), capacity)
            for [task], part in _spread([[task] for task in tasks], rows)
        ]

    def _capacity(self, group: Sequence[Task]) -> int:
        oracle = group[0].current_oracle
        fixed = group[0].deterministic or any(isinstance(task.query, NoisyLogits) for task in group)
        rows = oracle.fixed_rows if fixed else oracle.rows
        rows = min(rows, group[0].most_rows or rows)
        limit, until = self._limits.get(oracle, (rows, 0.0))
        rows = min(rows, limit) if time.monotonic() < until else rows
        if fixed or len(self._groups) == 1:
            return rows
        seconds = self._row_seconds.get(oracle, SLICE_SECONDS)  # unknown: the first pass is a short one
        return min(rows, max(MIN_SLICE_ROWS, int(SLICE_SECONDS / max(seconds, TINY))))


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
