"""Workers and the ledger are killed again and again under load; then a checker goes over every job."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pretend
import pytest

from service.queue import open_bell
from touchstone import embedded
from touchstone.errors import LedgerUnavailable
from touchstone.jobs.bell import QUEUE
from touchstone.jobs.blobs import FolderBlobs, digest_of, open_blobs
from touchstone.jobs.ledger import Ledger
from touchstone.jobs.record import TERMINAL, Job, Submission
from touchstone.settings import Settings

WORKER_KILLS = 100
LEDGER_KILLS = 20
CRASHES = (
    (Ledger, "claim", "claimed"),
    (pretend, "run", "run"),
    (FolderBlobs, "put_many", "stored"),
    (Ledger, "finish", "finished"),
)
"""Whose method, its name, and what has just happened once it returns."""


def crash_once(point: str, home: Path) -> None:
    """Kill this process at a named point, if the test armed it and nobody went off there since."""
    try:
        (home / f"crash-{point}").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def arm(settings: Settings) -> None:
    """Let the worker of this process crash right after each of the points."""

    def crashing(function: Callable[..., Any], point: str) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            answer = function(*args, **options)
            crash_once(point, settings.home)
            return answer

        return called

    for owner, name, point in CRASHES:
        setattr(owner, name, crashing(getattr(owner, name), point))


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Storm:
    """A load of small jobs on two workers, and everything that is needed to make their life hard."""

    def __init__(self, home: Path, submission: Submission) -> None:
        self.settings = Settings(home=home, lease=1.0)
        self.valkey = embedded.start(home)
        self.ledger = Ledger(self.valkey.url, self.settings)
        self.blobs = open_blobs(self.settings)
        image = submission.image.model_copy(update={"digest": self.blobs.put(b"PNG")})
        self.submission = submission.model_copy(update={"image": image})
        self.accepted: dict[str, str] = {}
        self.workers = [self._start(), self._start()]
        self._calm = threading.Event()
        self._client = threading.Thread(target=self._submit)
        self._client.start()

    def _start(self) -> BaseProcess:
        return pretend.start(self.settings, prepare=arm)

    def _submit(self) -> None:
        """A client that keeps a book of what was accepted."""
        ring = open_bell(self.valkey.url, lambda _job: QUEUE)
        for number in itertools.count():
            if self._calm.wait(0.02):
                return
            changes = {"parameters": {"steps": random.randint(1, 5), "number": number}}
            try:
                job, _ = self.ledger.accept(
                    self.submission.model_copy(update=changes), idempotency=(f"key {number}", "digest")
                )
            except LedgerUnavailable:
                continue
            self.accepted[f"key {number}"] = job.id
            ring(job.id)

    def kill_worker(self, point: str | None) -> None:
        """Kill one at any time, or have whichever comes there first crash at a named point."""
        wait_until(self._both_work)
        if point is None:
            time.sleep(random.uniform(0, 0.1))
            random.choice(self.workers).kill()
        else:
            (self.settings.home / f"crash-{point}").touch()
        wait_until(lambda: any(not process.is_alive() for process in self.workers))
        self.workers = [process if process.is_alive() else self._start() for process in self.workers]

    def _both_work(self) -> bool:
        alive = {worker.info["pid"] for worker in self.ledger.workers()}
        return alive >= {process.pid for process in self.workers}

    def kill_ledger(self) -> None:
        assert self.valkey.child is not None
        self.valkey.child.kill()
        wait_until(lambda: not self.valkey.alive())
        self.valkey = embedded.start(self.settings.home)
        time.sleep(random.uniform(0, 0.5))

    def jobs(self) -> list[Job]:
        return [self.ledger.read(name) for name in self.accepted.values()]

    def calm_down(self, seconds: float = 60.0) -> None:
        """Accept nothing more, and wait for the end of all jobs."""
        self._calm.set()
        self._client.join()
        wait_until(lambda: {job.status for job in self.jobs()} <= TERMINAL, seconds)

    def close(self) -> None:
        self._calm.set()
        self._client.join()
        for process in self.workers:
            process.kill()
            process.join()
        self.ledger.close()
        self.valkey.stop()


def check(storm: Storm) -> None:
    """Every promise about accepted jobs, from what client, ledger and blobs say afterwards."""
    for key, name in storm.accepted.items():
        job = storm.ledger.read(name)
        assert job.status in TERMINAL
        assert job.attempts <= storm.settings.max_attempts
        again, created = storm.ledger.accept(storm.submission, idempotency=(key, "digest"))
        assert (again.id, created) == (name, False)
        check_events(storm, name)
        if job.status == "succeeded":
            file = job.artifacts["adversarial.png"]
            assert digest_of(storm.blobs.get(file.digest)) == file.digest
        else:
            assert job.error is not None
            assert job.error.code == "worker_lost"
            assert job.attempts == storm.settings.max_attempts


def check_events(storm: Storm, job: str) -> None:
    events = storm.ledger.events(job)
    assert [event.type for event in events].count("completed") == 1
    assert events[-1].type == "completed"
    done = 0
    for event in events:
        if event.type == "status":
            done = 0
        elif event.type == "progress":
            assert event.data["done"] >= done
            done = event.data["done"]


@pytest.fixture
def storm(tmp_path_factory: pytest.TempPathFactory, submission: Submission) -> Iterator[Storm]:
    storm = Storm(tmp_path_factory.mktemp("s"), submission)
    yield storm
    storm.close()


@pytest.mark.timeout(300)
def test_no_job_is_lost_whichever_workers_are_killed(storm: Storm) -> None:
    for point in itertools.islice(itertools.cycle((None, *(point for _, _, point in CRASHES))), WORKER_KILLS):
        storm.kill_worker(point)
    storm.calm_down()
    assert len(storm.accepted) > WORKER_KILLS
    check(storm)


@pytest.mark.timeout(300)
def test_no_accepted_job_is_lost_when_the_ledger_is_killed(storm: Storm) -> None:
    for _ in range(LEDGER_KILLS):
        storm.kill_ledger()
    storm.calm_down()
    assert len(storm.accepted) > LEDGER_KILLS
    check(storm)
