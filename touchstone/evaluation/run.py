"""One job from its image to its result: the clean look, the method, the file it leaves, and the verdict on
that file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from touchstone import evaluation
from touchstone.engine.certification.sampling import Counts
from touchstone.engine.defences import straight_through
from touchstone.errors import Canceled
from touchstone.evaluation.certificate_result import certificate_result
from touchstone.evaluation.perturbation import perturbation
from touchstone.images import Pixels, decode, difference, difference_factor, encode
from touchstone.ledger.records import Progress, Submission, Timings
from touchstone.methods import Attack, Certificate, Method, find, rounds_of
from touchstone.methods.compatibility import check_fit
from touchstone.methods.inference import OUTPUTS, Infer, Stack, to_npy, unpack
from touchstone.methods.prediction import Predict, smoothed_result
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import Reached
from touchstone.models.store import bound
from touchstone.models.store import find as named
from touchstone.registration.remote_probe import reached

if TYPE_CHECKING:
    from touchstone.engine import Answer, AnyOracle, Asking, Counted, Engine, Noisy, Query, Running
    from touchstone.evaluation import Verdict

TOP = 5
REPORT_EVERY = 0.2

Report = Callable[[Progress, dict[str, float]], None]
Started = Callable[["Running"], None]


@dataclass(frozen=True)
class Finished:
    """What a job leaves: its result, its files (bytes and media type by name), and how long its phases
    took.
    """

    result: dict[str, Any]
    artifacts: dict[str, tuple[bytes, str]]
    timings: Timings
    counts: dict[str, Any] | None = None  # what another job may go on from
    canceled: bool = False  # ended by a cancel, with what was shown until then


def run(
    submission: Submission,
    png: bytes,
    engine: Engine,
    *,
    deadline: float | None = None,
    started: Started = lambda _: None,
    report: Report = lambda _progress, _metric: None,
    prior: dict[str, Any] | None = None,
) -> Finished:
    """Run a job to its end on an engine; blocks, and may be called from many threads. A registration is one
    of a remote model: those of files do not run on the engine.

    `deadline` is in seconds from now. `started` is given each of the job's tasks, so that they can be
    canceled; `report` is called on the engine's thread, at most a few times a second. Raises Canceled,
    DeadlineExceeded, WorkerStopping and the failures of the method.
    """
    began = time.perf_counter()
    if submission.kind == "registration":
        return _reach(submission, engine, deadline, started)
    card = bound(engine.shelf.of(submission.tenant), submission.model.id, submission.model.digest)
    source: Any = unpack(png) if submission.kind == "inference" else decode(png).pixels
    with ExitStack() as held:
        oracle = held.enter_context(engine.models.hold(card))
        surrogates = [held.enter_context(engine.models.hold(one)) for one in _surrogates(submission, engine)]
        prepared = time.perf_counter()
        ask = _Asker(submission, engine, oracle, deadline, started, prior, surrogates)
        finished = _RUNS[submission.kind](submission, source, card, ask, report)
    compute = time.perf_counter() - prepared
    return replace(finished, timings=Timings(prepare=prepared - began, compute=compute))


def _surrogates(submission: Submission, engine: Engine) -> list[Manifest]:
    """The models that an attack is crafted on."""
    ids: Sequence[str] = submission.parameters.get("surrogate", ())
    shelf = engine.shelf.of(submission.tenant)
    return [named(shelf, one) for one in ids]


def _reach(submission: Submission, engine: Engine, deadline: float | None, started: Started) -> Finished:
    """Ask a remote model for the first time; it is on no shelf yet."""
    began = time.perf_counter()
    card = Manifest.model_validate(submission.parameters)
    ask = _Asker(submission, engine, engine.remote(card), deadline, started)
    found: Reached = ask(reached(card))
    result = {"model": card.card(), "probe": found.model_dump(mode="json")}
    return Finished(result, {}, Timings(compute=time.perf_counter() - began))


@dataclass
class _Asker:
    """Runs one job's plans on the engine, all within one deadline, and adds up their queries."""

    submission: Submission
    engine: Engine
    oracle: AnyOracle
    deadline: float | None
    started: Started
    prior: dict[str, Any] | None = None
    surrogates: Sequence[AnyOracle] = ()
    forward: int = 0
    backward: int = 0
    surrogate: int = 0

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def __call__(
        self, plan: Asking[Any], answered: Callable[[Query | Noisy, Answer, Counted], None] | None = None
    ) -> Any:
        spent = time.monotonic() - self._began
        running = self.engine.start(
            plan,
            self.oracle,
            deadline=None if self.deadline is None else self.deadline - spent,
            deterministic=self.submission.execution == "deterministic",
            answered=answered,
            owner=self.submission.tenant,
        )
        self.started(running)
        result = running.result()
        self.forward += running.queries.forward
        self.backward += running.queries.backward
        self.surrogate += running.queries.surrogate
        return result


def _predict(submission: Submission, pixels: Pixels, card: Manifest, ask: _Asker, report: Report) -> Finished:
    asked = Predict.model_validate(submission.parameters)
    check_fit(asked, card)
    logits = ask(evaluation.look_at(pixels, ask.oracle))
    result = {"original": _opinion(logits, card, asked.top)}
    if asked.defence:
        plan = evaluation.vote_on(
            pixels, ask.oracle, len(card.classes), sigma=asked.sigma, n=asked.n, seed=submission.seed
        )
        votes = ask(plan, _Reporter(asked, report))
        result["smoothed"] = smoothed_result(asked, votes, card)
    return Finished({**result, "queries": _queries(ask)}, {}, Timings())


def _certify(submission: Submission, pixels: Pixels, card: Manifest, ask: _Asker, report: Report) -> Finished:
    method = find(submission.method, "certificate").parse(submission.parameters)
    if not isinstance(method, Certificate):
        raise TypeError(f"{submission.method} is no certificate")
    check_fit(method, card)
    before = None if ask.prior is None else Counts.of(ask.prior)
    tally = _Tally(method, report)
    plan = evaluation.certify_image(
        method, pixels, ask.oracle, seed=submission.seed, prior=before, tell=tally.counted
    )
    counts: Counts = ask(plan, tally)
    tally.ended(counts, ask.forward)
    result = certificate_result(method, counts, submission, card, ask.oracle)
    finished = Finished({**result, "queries": _queries(ask)}, {}, Timings())
    return replace(finished, counts=counts.record(), canceled=counts.stopped == Canceled.code)


def _attack(submission: Submission, pixels: Pixels, card: Manifest, ask: _Asker, report: Report) -> Finished:
    method = find(submission.method, "attack").parse(submission.parameters)
    if not isinstance(method, Attack):
        raise TypeError(f"{submission.method} is no attack")
    check_fit(method, card)
    plan = evaluation.attack_image(
        method,
        pixels,
        ask.oracle,
        label=submission.label,
        target=submission.target,
        seed=submission.seed,
        surrogates=ask.surrogates,
    )
    verdict: Verdict = ask(plan, _Reporter(method, report))
    file = encode(verdict.pixels)
    judged = decode(file).pixels
    logits = ask(straight_through(evaluation.look_at(judged, ask.oracle), method.defence))
    reached = int(logits.argmax()) == verdict.aim
    success = reached if submission.target is not None else not reached
    factor = difference_factor(pixels, judged)
    result = {
        "outcome": _outcome(success, verdict),
        "success": success,
        "success_float": verdict.met,
        "original": _opinion(verdict.clean, card, TOP),
        "adversarial": _opinion(logits, card, TOP),
        "perturbation": perturbation(pixels, judged),
        "difference_factor": factor,
        "diagnostics": verdict.diagnostics,
        **({"found_by": verdict.found_by} if method.parts() else {}),
        **({} if method.defence == "none" else {"defence": method.defence}),
        "queries": _queries(ask),
    }
    artifacts = {
        "adversarial.png": (file, "image/png"),
        "difference.png": (encode(difference(pixels, judged, factor)), "image/png"),
        "adversarial.npy": (to_npy([verdict.exact]), "application/octet-stream"),
    }
    return Finished(result, artifacts, Timings())


def _infer(
    submission: Submission, stacks: Sequence[Stack], card: Manifest, ask: _Asker, report: Report
) -> Finished:
    asked = Infer.model_validate(submission.parameters)
    logits = ask(evaluation.infer(stacks, ask.oracle), _Reporter(asked, report))
    result = {"rows": len(logits), "classes": len(card.classes), "queries": _queries(ask)}
    return Finished(result, {OUTPUTS: (to_npy([logits]), "application/octet-stream")}, Timings())


_RUNS: dict[str, Callable[[Submission, Any, Manifest, _Asker, Report], Finished]] = {
    "attack": _attack,
    "certificate": _certify,
    "prediction": _predict,
    "inference": _infer,
}


def _outcome(success: bool, verdict: Verdict) -> str:
    if verdict.met_at_once:
        return "already_misclassified"
    return "success" if success else "failure"


def _opinion(logits: Any, card: Manifest, count: int) -> dict[str, Any]:
    """What the model says of an image, as the contract shows it."""
    ranked = [
        {"label": label, "name": card.classes[label], "confidence": confidence}
        for label, confidence in evaluation.top(logits, count)
    ]
    return {**ranked[0], "top": ranked}


def _queries(ask: _Asker) -> dict[str, int]:
    asked = {"forward": ask.forward, "backward": ask.backward}
    return asked | ({"surrogate": ask.surrogate} if ask.surrogate else {})


class _Reporter:
    """Turns answers into progress, a few times a second."""

    def __init__(self, asked: Method | Predict | Infer, report: Report) -> None:
        self._asked = asked
        self._total = rounds_of(asked)
        self._report = report
        self._next = 0.0

    def __call__(self, _query: Query | Noisy, answer: Answer, queries: Counted) -> None:
        now = time.monotonic()
        backward = queries.backward + queries.surrogate
        done = min(self._asked.done(queries.forward, backward), self._total)
        if now < self._next and done < self._total:
            return
        self._next = now + REPORT_EVERY
        self._report(Progress(done=done, total=self._total), self._metric(answer))

    def _metric(self, answer: Answer) -> dict[str, float]:
        return evaluation.metric(answer)


class _Tally(_Reporter):
    """The same for a certificate: tells how the count stands and what would follow from it, too."""

    def __init__(self, certificate: Certificate, report: Report) -> None:
        super().__init__(certificate, report)
        self._certificate = certificate
        self._counts: Counts | None = None

    def counted(self, counts: Counts) -> None:
        """Hear how the count stands; bounds are computed when they are reported."""
        self._counts = counts

    def ended(self, counts: Counts, forward: int) -> None:
        """Report the count that the certificate rests on."""
        progress = Progress(done=min(forward, self._total), total=self._total)
        self._report(progress, self._interval(counts))

    def _metric(self, answer: Answer) -> dict[str, float]:
        return super()._metric(answer) | (self._interval(self._counts) if self._counts else {})

    def _interval(self, counts: Counts) -> dict[str, float]:
        lower, upper = self._certificate.bounds(counts)
        return {"n": counts.n, "hits": counts.hits, "lower": lower, "upper": upper}
