"""Jobs whose worker was lost: they are suspected of it, and tried again with fewer others."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Mapping

import redis

from touchstone.errors import WorkerLost
from touchstone.ledger.codec import decode_pairs, log_unreadable
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.records import JobFailure
from touchstone.ledger.scripts import Scripts
from touchstone.settings import Settings

COHORTS = {1: 24, 2: 6, 3: 1}
"""By level (`Job.losses`), how many suspects a process runs together at most."""
ALONE = 3
"""The last level."""
ASIDE_MS = 60_000
"""How long a job that cannot be read waits for a worker that can."""
_RENEWAL_MS = 2_000
"""A worker renews its leases several times in so long."""
MIN_GAP_SECONDS = 3.0
"""After so long without a reaper the server stood still, or its clock jumped."""


class Losses:
    """A job that ends its worker takes others with it, so those that were lost are suspects: they run among
    their like, ever fewer together, and only a loss alone counts as a strike.
    """

    def __init__(self, scripts: Scripts, client: redis.Redis, settings: Settings) -> None:
        self._scripts = scripts
        self._client = client
        self._settings = settings

    def leave(self, job: str, attempt: int) -> bool:
        """Announce that a job's lease will no longer be renewed, for a reason outside of the job: it is tried
        again when the lease has run out. False where the claim is no longer valid.
        """
        return bool(self._scripts.run("jobs/leave", job, attempt))

    def let_go(self, job: str, attempt: int) -> bool:
        """Take a job from its worker, which lives on: it is tried again alone, or fails as `worker_lost`
        after its last strike. False where the claim is no longer valid.
        """
        return bool(self._scripts.run("jobs/let_go", job, attempt, *self.limits()))

    def set_aside(self, stored: Mapping[str, str], error: Exception) -> None:
        """Give back a job that this version cannot read, as if it had not been attempted. No worker gets it
        for a minute, so that those of this version go on with others, and one that can read it may come.
        """
        log_unreadable("job", stored["id"], error)
        self._scripts.run("jobs/set_aside", stored["id"], stored["claims"], ASIDE_MS)

    def lose(self, worker: str, suspects: Iterable[str] = ()) -> tuple[str, ...]:
        """Take all jobs from a worker that is lost, and return them. The `suspects`, or else all, are tried
        again with fewer others; the rest as if they had not been attempted.
        """
        return tuple(self._scripts.run("jobs/lose", worker, *self.limits(), *suspects))

    def count_waiting(self) -> dict[int, int]:
        """How many suspects wait, by level, of the models that this worker serves."""
        return self._look()[0]

    def are_expected(self) -> bool:
        """Whether suspects wait, or a worker has fallen silent, whose jobs will be suspects."""
        waiting, silent = self._look()
        return bool(waiting) or silent > 0

    def _look(self) -> tuple[dict[int, int], int]:
        lease = round(1000 * self._settings.lease)
        pairs, silent = self._scripts.run("jobs/suspects", min(lease // 2, lease - _RENEWAL_MS))
        counts: Counter[int] = Counter()
        for queue, count in decode_pairs(pairs).items():
            model, _, level = queue.partition("!")
            if model in (self._settings.served_models or ("",)):
                counts[int(level)] += int(count)
        return dict(counts), silent

    def may_quarantine(self, worker: str) -> bool:
        """Whether this worker is the one of its host whose process runs the suspects of these models; asked
        again before its lease is over, it stays so.
        """
        key = ":".join(("ts:quarantine", socket.gethostname(), *self._settings.served_models))
        lease = round(1000 * self._settings.lease)
        with map_redis_errors():
            if self._client.set(key, worker, nx=True, px=lease):
                return True
            return self._client.get(key) == worker and bool(self._client.pexpire(key, lease))

    def limits(self) -> tuple[int, str]:
        """How many strikes a job may have, and its error after them."""
        most = self._settings.max_attempts
        detail = f"the job ended {most} processes in which it ran alone, or let them hang"
        return most, JobFailure(code=WorkerLost.code, detail=detail).model_dump_json()

    @property
    def max_gap(self) -> int:
        """Milliseconds without a reaper after which leases and deadlines tell nothing."""
        return round(1000 * max(MIN_GAP_SECONDS, self._settings.lease))
