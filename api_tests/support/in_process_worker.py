"""A worker in the process of a test, whose engine is a fake one."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from api_tests.support import fake_worker
from api_tests.support.wait import wait_until
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.records import Job, Submission
from touchstone.settings import Settings
from touchstone.storage.blobs import Blobs, open_blobs
from workers.lease_keeper import LeaseKeeper
from workers.runner import Runner


class InProcessWorker:
    """A runner and its lease keeper on a fake engine, in this process."""

    def __init__(self, settings: Settings, submission: Submission, url: str) -> None:
        self.settings = settings
        self.blobs: Blobs = open_blobs(settings)
        self.ledger = Ledger(url, settings, self.blobs)
        self.engine = fake_worker.FakeEngine()
        self.exits: list[int] = []
        self.keeper = LeaseKeeper("w1", self.ledger, self.engine, settings, give_up=self.exits.append)
        run = partial(fake_worker.run, engine=self.engine)
        self.runner = Runner(self.ledger, self.blobs, self.keeper, run, settings)
        image = submission.image.model_copy(update={"digest": self.blobs.put(b"PNG")})
        self.submission = submission.model_copy(update={"image": image})
        self.threads: list[threading.Thread] = []

    def accept(self, *, deadline: float | None = None, rerun_of: str | None = None, **parameters: Any) -> str:
        changes = {"parameters": {"steps": 1, **parameters}, "deadline": deadline, "rerun_of": rerun_of}
        return self.ledger.accept(self.submission.model_copy(update=changes))[0].id

    def run(self, **parameters: Any) -> Job:
        job = self.accept(**parameters)
        self.runner(job)
        return self.ledger.read(job)

    def start(self, **parameters: Any) -> str:
        """Run a job on a thread; returns once it has started."""
        job, before = self.accept(**parameters), self.engine.started
        self.threads.append(threading.Thread(target=self.runner, args=[job]))
        self.threads[-1].start()
        wait_until(lambda: self.engine.started > before)
        return job

    def run_three_attempts(self, job: str) -> Job:
        """Run a job three times; each attempt but the last leaves it to its lease."""
        for attempt in (1, 2):
            self.runner(job)
            assert (self.ledger.read(job).status, self.ledger.read(job).attempts) == ("running", attempt)
            self.expire_lease(job)
        self.runner(job)
        return self.ledger.read(job)

    def expire_lease(self, job: str) -> None:
        """Let the lease of a job expire."""
        self.ledger.client.zadd("ts:leases", {job: 1})
        assert self.ledger.reap().lost == (job,)

    def close(self) -> None:
        self.engine.release_hang.set()
        for thread in self.threads:
            thread.join()
        self.keeper.close()
        self.ledger.close()
