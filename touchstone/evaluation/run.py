"""One job from its image to its result: the clean prediction, the method, the resulting file, and the verdict
on that file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from touchstone import evaluation
from touchstone.engine.certification.sampling import Counts
from touchstone.errors import DeadlineExceeded, JobCanceled
from touchstone.evaluation.attack_result import build_attack_result, describe_prediction
from touchstone.evaluation.certificate_result import build_certificate_result
from touchstone.images import Pixels, decode, difference, encode
from touchstone.ledger.records import Progress, Submission, Timings
from touchstone.methods import Attack, Certificate, Method, find, total_rounds
from touchstone.methods.compatibility import check_compatible
from touchstone.methods.inference import OUTPUTS, Infer, Stack, to_npy, unpack
from touchstone.methods.memory_price import ImageSize, memory_of
from touchstone.methods.prediction import Predict, build_smoothed_result
from touchstone.models.manifest import Manifest
from touchstone.models.measurements import RemoteProbe
from touchstone.models.store import find_model, find_pinned
from touchstone.registration.remote_probe import probe_remote

if TYPE_CHECKING:
    from touchstone.engine import Answer, AnyQuery, Engine, Oracle, PlanOf, QueryCount, TaskHandle
    from touchstone.evaluation import ImageAttack, Judgment

REPORT_SECONDS = 0.2

Report = Callable[[Progress, dict[str, float]], None]
Started = Callable[["TaskHandle"], None]


@dataclass(frozen=True)
class JobOutcome:
    """A job's result, its files (bytes and media type by name), and the durations of its phases."""

    result: dict[str, Any]
    artifacts: dict[str, tuple[bytes, str]]
    timings: Timings
    counts: dict[str, Any] | None = None  # from which another job can continue
    canceled: bool = False  # ended by a cancellation, with what was proved until then


def run_job(
    submission: Submission,
    png: bytes,
    engine: Engine,
    *,
    deadline: float | None = None,
    started: Started = lambda _: None,
    report: Report = lambda _progress, _metric: None,
    prior: dict[str, Any] | None = None,
) -> JobOutcome:
    """Run a job to its end on an engine; blocks, and may be called from many threads. Of registrations, only
    those of remote models run on the engine.

    `deadline` is in seconds from now. `started` is given each of the job's tasks, so that they can be
    canceled; `report` is called on the engine's thread, at most a few times a second. Raises JobCanceled,
    DeadlineExceeded, WorkerStopping and the failures of the method.
    """
    began = time.perf_counter()
    if submission.kind == "registration":
        return _probe_remote(submission, engine, deadline, started)
    manifest = find_pinned(engine.store.of(submission.tenant), submission.model.id, submission.model.digest)
    engine.check_access(manifest, submission.tenant)
    source: Any = unpack(png) if submission.kind == "inference" else decode(png).pixels
    with ExitStack() as models:
        oracle = models.enter_context(engine.models.acquire(manifest))
        surrogates = [
            models.enter_context(engine.models.acquire(one)) for one in _find_surrogates(submission, engine)
        ]
        prepared = time.perf_counter()
        run_plan = _PlanRunner(submission, engine, oracle, deadline, started, prior, surrogates)
        try:
            outcome = _RUNNERS[submission.kind](submission, source, manifest, run_plan, report)
        except DeadlineExceeded:
            raise DeadlineExceeded(run_plan.explain_deadline(time.perf_counter() - began)) from None
    compute = time.perf_counter() - prepared
    return replace(outcome, timings=Timings(prepare=prepared - began, compute=compute))


def _find_surrogates(submission: Submission, engine: Engine) -> list[Manifest]:
    """The surrogate models of a transfer attack."""
    ids: Sequence[str] = submission.parameters.get("surrogate", ())
    store = engine.store.of(submission.tenant)
    return [find_model(store, one) for one in ids]


def _probe_remote(
    submission: Submission, engine: Engine, deadline: float | None, started: Started
) -> JobOutcome:
    """Query a remote model for the first time; it is in no store yet."""
    began = time.perf_counter()
    manifest = Manifest.model_validate(submission.parameters)
    engine.check_access(manifest, submission.tenant)
    run_plan = _PlanRunner(submission, engine, engine.remote_oracle(manifest), deadline, started)
    found: RemoteProbe = run_plan(probe_remote(manifest))
    result = {"model": manifest.card(), "probe": found.model_dump(mode="json")}
    return JobOutcome(result, {}, Timings(compute=time.perf_counter() - began))


@dataclass
class _PlanRunner:
    """Runs one job's plans on the engine, all within one deadline, and adds up their queries."""

    submission: Submission
    engine: Engine
    oracle: Oracle
    deadline: float | None
    started: Started
    prior: dict[str, Any] | None = None
    surrogates: Sequence[Oracle] = ()
    memory: int = 0  # bytes that the job may need for its images
    forward: int = 0
    backward: int = 0
    surrogate: int = 0
    plans: int = 0

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._reporter: _ProgressReporter | None = None

    def __call__(self, plan: PlanOf[Any], reporter: _ProgressReporter | None = None) -> Any:
        """Run a plan until its end or the deadline."""
        self._reporter = reporter or self._reporter
        left = None if self.deadline is None else self.deadline - (time.monotonic() - self._began)
        return self._run(plan, deadline=left, on_answer=reporter)

    def finish(self, plan: PlanOf[Any]) -> Any:
        """Run the plan of a few queries that makes what was found a result, even after the deadline."""
        return self._run(plan, expires=False)

    def explain_deadline(self, seconds: float) -> str:
        """Why there is no result after so many seconds."""
        limit = "" if self.deadline is None else f" of {self.deadline:g} s"
        step = "" if self._reporter is None else f", at step {self._reporter.done} of {self._reporter.total}"
        return f"the deadline{limit} passed after {seconds:.2f} s{step}, before anything was found"

    def _run(self, plan: PlanOf[Any], **limits: Any) -> Any:
        task = self.engine.start(
            plan,
            self.oracle,
            deterministic=self.submission.execution == "deterministic",
            owner=self.submission.tenant,
            noise_key=(self.submission.seed, self.plans),
            memory=self.memory,
            **limits,
        )
        self.plans += 1
        self.started(task)
        result = task.result()
        self.forward += task.queries.forward
        self.backward += task.queries.backward
        self.surrogate += task.queries.surrogate
        return result


def _predict(
    submission: Submission, pixels: Pixels, manifest: Manifest, run_plan: _PlanRunner, report: Report
) -> JobOutcome:
    parameters = Predict.model_validate(submission.parameters)
    check_compatible(parameters, manifest)
    run_plan.memory = _price(parameters, pixels, manifest)
    logits = run_plan(evaluation.predict_image(pixels, run_plan.oracle))
    result = {"original": describe_prediction(logits, manifest, parameters.top)}
    if parameters.defence:
        plan = evaluation.vote_image(
            pixels,
            run_plan.oracle,
            len(manifest.classes),
            sigma=parameters.sigma,
            n=parameters.n,
            seed=submission.seed,
        )
        votes = run_plan(plan, _ProgressReporter(parameters, manifest, report))
        result["smoothed"] = build_smoothed_result(parameters, votes, manifest)
    return JobOutcome({**result, "queries": _query_counts(run_plan)}, {}, Timings())


def _certify(
    submission: Submission, pixels: Pixels, manifest: Manifest, run_plan: _PlanRunner, report: Report
) -> JobOutcome:
    method = find(submission.method, "certificate").parse(submission.parameters)
    if not isinstance(method, Certificate):
        raise TypeError(f"{submission.method} is not a certificate")
    check_compatible(method, manifest)
    run_plan.memory = _price(method, pixels, manifest)
    before = None if run_plan.prior is None else Counts.from_record(run_plan.prior)
    reporter = _CertificateReporter(method, manifest, report)
    plan = evaluation.certify_image(
        method, pixels, run_plan.oracle, seed=submission.seed, prior=before, on_counts=reporter.note_counts
    )
    counts: Counts = run_plan(plan, reporter)
    reporter.report_final(counts, run_plan.forward)
    result = build_certificate_result(method, counts, submission, manifest, run_plan.oracle)
    outcome = JobOutcome({**result, "queries": _query_counts(run_plan)}, {}, Timings())
    return replace(outcome, counts=counts.to_record(), canceled=counts.stopped == JobCanceled.code)


def _attack(
    submission: Submission, pixels: Pixels, manifest: Manifest, run_plan: _PlanRunner, report: Report
) -> JobOutcome:
    method = find(submission.method, "attack").parse(submission.parameters)
    if not isinstance(method, Attack):
        raise TypeError(f"{submission.method} is not an attack")
    check_compatible(method, manifest)
    run_plan.memory = _price(method, pixels, manifest)
    plan = evaluation.attack_image(
        method,
        pixels,
        run_plan.oracle,
        label=submission.label,
        target=submission.target,
        seed=submission.seed,
        surrogates=run_plan.surrogates,
        manifest=manifest,
    )
    sought: ImageAttack = run_plan(plan, _ProgressReporter(method, manifest, report))
    file = encode(run_plan.finish(evaluation.round_image(sought)))
    judged: Judgment = run_plan.finish(evaluation.judge_image(sought, decode(file).pixels))
    adversarial = evaluation.row_as_image(judged.images)
    result = build_attack_result(sought, judged, pixels, adversarial, manifest)
    enlarged = difference(pixels, adversarial, result["difference_factor"])
    artifacts = {
        "adversarial.png": (file if bool(judged.kept) else encode(pixels), "image/png"),
        "difference.png": (encode(enlarged), "image/png"),
        "adversarial.npy": (to_npy([sought.exact]), "application/octet-stream"),
    }
    return JobOutcome({**result, "queries": _query_counts(run_plan)}, artifacts, Timings())


def _price(method: Method | Predict, pixels: Pixels, manifest: Manifest) -> int:
    height, width, channels = pixels.shape
    spec = manifest.input
    values = spec.channels * spec.height * spec.width
    return memory_of(method, ImageSize(width, height, channels, values, len(manifest.classes)))


def _infer(
    submission: Submission, stacks: Sequence[Stack], manifest: Manifest, run_plan: _PlanRunner, report: Report
) -> JobOutcome:
    parameters = Infer.model_validate(submission.parameters)
    reporter = _ProgressReporter(parameters, manifest, report)
    logits = run_plan(evaluation.infer(stacks, run_plan.oracle), reporter)
    result = {"rows": len(logits), "classes": len(manifest.classes), "queries": _query_counts(run_plan)}
    return JobOutcome(result, {OUTPUTS: (to_npy([logits]), "application/octet-stream")}, Timings())


_RUNNERS: dict[str, Callable[[Submission, Any, Manifest, _PlanRunner, Report], JobOutcome]] = {
    "attack": _attack,
    "certificate": _certify,
    "prediction": _predict,
    "inference": _infer,
}


def _query_counts(run_plan: _PlanRunner) -> dict[str, int]:
    counts = {"forward": run_plan.forward, "backward": run_plan.backward}
    return counts | ({"surrogate": run_plan.surrogate} if run_plan.surrogate else {})


class _ProgressReporter:
    """Reports progress from answers, a few times a second."""

    def __init__(self, parameters: Method | Predict | Infer, manifest: Manifest, report: Report) -> None:
        self.done, self.total = 0, total_rounds(parameters)
        self._parameters, self._manifest = parameters, manifest
        self._report = report
        self._next = 0.0

    def __call__(self, _query: AnyQuery, answer: Answer, queries: QueryCount) -> None:
        now = time.monotonic()
        backward = queries.backward + queries.surrogate
        self.done = min(self._parameters.completed_rounds(queries.forward, backward), self.total)
        if now < self._next and self.done < self.total:
            return
        self._next = now + REPORT_SECONDS
        self._report(Progress(done=self.done, total=self.total), self._metric(answer))

    def _metric(self, answer: Answer) -> dict[str, float]:
        return evaluation.step_metrics(answer, self._manifest)


class _CertificateReporter(_ProgressReporter):
    """The same for a certificate, with the counts so far and the bounds that follow from them."""

    def __init__(self, certificate: Certificate, manifest: Manifest, report: Report) -> None:
        super().__init__(certificate, manifest, report)
        self._certificate = certificate
        self._counts: Counts | None = None

    def note_counts(self, counts: Counts) -> None:
        """Keep the newest counts; bounds are computed when they are reported."""
        self._counts = counts

    def report_final(self, counts: Counts, forward: int) -> None:
        """Report the final counts."""
        progress = Progress(done=min(forward, self.total), total=self.total)
        self._report(progress, self._interval(counts))

    def _metric(self, answer: Answer) -> dict[str, float]:
        return super()._metric(answer) | (self._interval(self._counts) if self._counts else {})

    def _interval(self, counts: Counts) -> dict[str, float]:
        lower, upper = self._certificate.bounds(counts)
        return {"n": counts.n, "hits": counts.hits, "lower": lower, "upper": upper}
