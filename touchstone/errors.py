"""Errors as codes and sentences; their HTTP statuses are in `service.problems`.

Every error text says what was wrong, where, and what would be right.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Failure(Exception):  # noqa: N818 - its subclasses name what went wrong
    """An error that a user can read and a program can match by `code`.

    `detail` is one or two sentences, `field` the name of the invalid parameter, if one is invalid, and
    `extra` has machine-readable details, such as the candidates for an ambiguous name.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.extra = extra


class InvalidParameter(Failure):
    """A parameter has a value that the method cannot use."""

    code = "invalid_parameter"


class InvalidImage(Failure):
    """The uploaded bytes are not an image that can be attacked."""

    code = "invalid_image"


class ImageTooLarge(Failure):
    """The upload has more bytes or more pixels than the limits allow."""

    code = "image_too_large"


class CostTooHigh(Failure):
    """The queries that the job may ask for are more than the budget of one job."""

    code = "cost_too_high"


class UnknownMethod(Failure):
    """No attack or certificate has this name."""

    code = "unknown_method"


class UnknownModel(Failure):
    """No model has this id."""

    code = "unknown_model"


class UnknownLabel(Failure):
    """The model has no class of this index or name, or several of this name."""

    code = "unknown_label"


class ModelConflict(Failure):
    """Another model has this id already, or this version was registered with another manifest."""

    code = "model_conflict"


class ModelInUse(Failure):
    """A job that waits or runs names the model, so it cannot be deleted."""

    code = "model_in_use"


class ModelTooLarge(Failure):
    """The model's file has more bytes than the operator allows."""

    code = "model_too_large"


class ModelTooCostly(Failure):
    """Trying the model took more time or memory than the operator allows."""

    code = "model_too_costly"


class NonFiniteOutput(Failure):
    """The model answered NaN or infinity."""

    code = "non_finite_output"


class GradientRefused(Failure):
    """A black-box oracle was asked for a gradient."""

    code = "gradient_refused"


class BatchDependent(Failure):
    """The model's answer for an image depends on the images beside it."""

    code = "batch_dependent"


class ModelUnusable(Failure):
    """The model's files are missing, altered, or do not fit its architecture."""

    code = "model_unusable"


class InvalidModel(Failure):
    """The uploaded bytes are not a network that classifies images."""

    code = "invalid_model"


class UnsupportedOperator(Failure):
    """The uploaded network contains an operator that cannot be computed here."""

    code = "unsupported_operator"


class AddressRefused(Failure):
    """The URL cannot be used, or leads to an address that requests must not reach."""

    code = "address_refused"


class RemoteUnavailable(Failure):
    """The remote model could not be reached, or did not answer in time."""

    code = "remote_unavailable"


class RemoteAnswer(Failure):
    """The remote model's answer is not what its manifest declares."""

    code = "remote_answer"


class QueryBudgetSpent(Failure):
    """The query budget in the remote model's manifest is spent."""

    code = "query_budget_spent"


class DataUnavailable(Failure):
    """A data set is missing and cannot be downloaded, or its files were altered."""

    code = "data_unavailable"


class OutOfMemory(Failure):
    """Not even one row fits into the device's memory."""

    code = "out_of_memory"


class JobCanceled(Failure):
    """The job was canceled by its owner."""

    code = "canceled"


class DeadlineExceeded(Failure):
    """The job ran longer than its deadline allowed."""

    code = "deadline_exceeded"


class TimeExceeded(Failure):
    """The job's own work between two passes of the model took longer than a step may."""

    code = "time_exceeded"


class WorkerLost(Failure):
    """Every worker that tried the job died or hung."""

    code = "worker_lost"


class WorkerStopping(Failure):
    """The worker is shutting down; the job goes back to the queue."""

    code = "worker_stopping"


class UnknownJob(Failure):
    """No job has this id."""

    code = "unknown_job"

    @classmethod
    def for_id(cls, job: str) -> UnknownJob:
        """The error for this id."""
        return cls(f"there is no job {job[:64]!r}")


class UnreadableJob(UnknownJob):
    """The job was written by another version of the service, which alone can read it."""

    code = "unreadable_job"

    @classmethod
    def for_id(cls, job: str) -> UnreadableJob:
        """The error for this id."""
        return cls(
            f"the job {job[:64]!r} was written by another version of Touchstone, and this one cannot read "
            "it: ask again once the service has been upgraded; it can be deleted"
        )


class UnknownArtifact(Failure):
    """The job has no artifact of this name (yet)."""

    code = "unknown_artifact"


class JobConflict(Failure):
    """The job is in a state that does not permit this."""

    code = "job_conflict"


class IdempotencyMismatch(Failure):
    """The Idempotency-Key was used before with another request."""

    code = "idempotency_mismatch"


class InvalidCursor(Failure):
    """The cursor was not made by this service, or for another list."""

    code = "invalid_cursor"


class QueueFull(Failure):
    """As many jobs wait as the operator allows."""

    code = "queue_full"


class UnknownWebhook(Failure):
    """No endpoint for webhooks has this id."""

    code = "unknown_webhook"


class UnknownDelivery(Failure):
    """No delivery of a webhook has this id."""

    code = "unknown_delivery"


class WebhookConflict(Failure):
    """The endpoint's state does not permit this, or there are as many endpoints as allowed."""

    code = "webhook_conflict"


class StorageFull(Failure):
    """There is no space to store the request's files or the job's results."""

    code = "storage_full"


class TenantQueueFull(Failure):
    """As many jobs of one tenant wait as it may have."""

    code = "tenant_queue_full"


class BudgetSpent(Failure):
    """The passes that a tenant's jobs may ask for in a day are spent."""

    code = "budget_spent"


class RateLimited(Failure):
    """Requests come faster than this client may send them."""

    code = "rate_limited"


class TooManyStreams(Failure):
    """As many event streams of one tenant are open as it may have."""

    code = "too_many_streams"


class TooManyWaits(Failure):
    """As many requests of one tenant wait for jobs as may."""

    code = "too_many_waits"


class LedgerUnavailable(Failure):
    """The ledger did not answer in time."""

    code = "ledger_unavailable"


class NotReady(Failure):
    """The service cannot run jobs at the moment."""

    code = "not_ready"


class KeyMissing(Failure):
    """An API key is needed, and none was sent."""

    code = "key_missing"


class KeyInvalid(Failure):
    """The API key is unknown: mistyped, or revoked."""

    code = "key_invalid"


class KeyExpired(Failure):
    """The API key has expired."""

    code = "key_expired"


class UnknownKey(Failure):
    """No API key has this id."""

    code = "unknown_key"


class HostRefused(Failure):
    """Without API keys, only requests to this machine's own host names are accepted."""

    code = "host_refused"


class CrossSiteRefused(Failure):
    """Without API keys, pages of other origins may not send requests."""

    code = "cross_site_refused"


class InsufficientScope(Failure):
    """The API key does not permit this."""

    code = "insufficient_scope"


class StartError(Exception):
    """Something that `touchstone up` needs is missing; the sentence is for the operator."""


class NoFreeSlot(Exception):  # noqa: N818 - an answer to a worker, not an error
    """Jobs wait, but only for tenants that may not have another slot on this worker."""
