"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import to_thread
from fastapi import FastAPI

from service import problems
from service.http.body_limits import BodyLimitMiddleware, BodyLimits, BodyMemory
from service.http.origins import Origins
from service.http.request_context import RequestContext
from service.inference import router as inference_routes
from service.openapi import operations
from service.routers import (
    artifacts,
    cancellations,
    catalogue,
    costs,
    dashboard,
    deliveries,
    docs,
    events,
    health,
    jobs,
    keys,
    metrics,
    models,
    operations as operations_routes,
    registration,
    samples,
    webhooks,
)
from service.state.backend import MAX_DNS_LOOKUPS, MAX_SUBMISSIONS, Backend, Dispatch, check_concurrency
from service.state.dispatch import Dispatcher, open_dispatch
from service.state.failed_keys import FailedKeys
from service.state.job_waiters import JobWaiters
from service.state.metrics import RequestMetrics, ServiceCollector
from service.state.open_requests import OpenRequests
from service.state.pending_uploads import PendingUploads
from service.state.tenant_threads import TenantThreads
from service.submissions import bodies
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.reaper import Reaper
from touchstone.ledger.webhooks.dispatcher import WebhookDispatcher
from touchstone.net.outbound import OutboundClient
from touchstone.sandbox.decoder_pool import DecoderPool
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.garbage_collector import GarbageCollector
from touchstone.storage.model_store import RegisteredStore

THREADS = 200
"""Calls to the ledger and the blobs that may run at once: each spends its time waiting."""

_ABOUT = """Tests how robust an image classifier is.

Send an image and a model's id to an attack, and get back an adversarial image with the verdict on it; or to a
certificate, and get back a proof that no small change can alter the answer. Every submission is a job: it is
accepted with 202, and can be polled, waited for, followed as a stream of events, canceled, and run again.
"""


def create_app(settings: Settings, *, dispatch: Dispatch | None = None) -> FastAPI:
    """The application over the ledger and the blobs of the settings; by default the ledger sends the jobs."""
    backend = _backend(settings, dispatch)
    app = FastAPI(
        title="Touchstone",
        version=version("touchstone-robustness"),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # `docs` serves it
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,
    )
    app.state.backend = backend
    problems.install(app)
    app.add_middleware(
        BodyLimitMiddleware,
        limits=BodyLimits(bodies.max_body_bytes(settings.upload_limit)),
        memory=BodyMemory(settings.bodies_memory),
    )
    app.add_middleware(Origins, settings=settings)
    app.add_middleware(RequestContext, metrics=backend.request_metrics)
    _add_routes(app)
    _describe(app)
    return app


def _backend(settings: Settings, dispatch: Dispatch | None) -> Backend:
    blobs = open_blobs(settings)
    ledger = Ledger(ledger_url(settings), settings, blobs)
    dispatcher = Dispatcher(dispatch or open_dispatch(ledger))
    request_metrics = RequestMetrics()
    request_metrics.registry.register(ServiceCollector(ledger, blobs.free_bytes))
    return Backend(
        settings=settings,
        ledger=ledger,
        blobs=blobs,
        models=RegisteredStore(ledger, blobs),
        dispatcher=dispatcher,
        waiters=JobWaiters(ledger),
        reaper=Reaper(ledger, dispatcher.dispatch),
        deliverer=WebhookDispatcher(
            ledger.outbox, OutboundClient(settings.outgoing_allow), deliveries.delivery_payload
        ),
        sweeper=GarbageCollector(ledger, blobs),
        request_metrics=request_metrics,
        check_threads=TenantThreads(check_concurrency(settings.api_processes)),
        submit_threads=TenantThreads(MAX_SUBMISSIONS, reserve=MAX_SUBMISSIONS // 4),
        dns_threads=TenantThreads(MAX_DNS_LOOKUPS, reserve=MAX_DNS_LOOKUPS // 4),
        pending_uploads=PendingUploads(),
        failed_keys=FailedKeys(settings.refused_keys),
        open_requests=OpenRequests(settings),
        decoders=DecoderPool(check_concurrency(settings.api_processes)),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    backend: Backend = app.state.backend
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    backend.waiters.start(asyncio.get_running_loop())
    backend.dispatcher.start()
    backend.reaper.start()
    backend.deliverer.start()
    backend.sweeper.start()
    try:
        yield
    finally:
        backend.waiters.close()
        await to_thread.run_sync(_stop, backend)


def _stop(backend: Backend) -> None:
    backend.deliverer.stop()
    backend.sweeper.stop()
    backend.reaper.stop()
    backend.dispatcher.stop()
    backend.waiters.stop()
    backend.ledger.close()
    backend.decoders.stop()


def _add_routes(app: FastAPI) -> None:
    for router in (
        jobs.router,
        cancellations.router,
        artifacts.router,
        events.router,
        catalogue.predictions,
        catalogue.router_of("attack"),
        catalogue.router_of("certificate"),
        costs.prediction_router(),
        costs.router_of("attack"),
        costs.router_of("certificate"),
        models.router,
        deliveries.router,
        webhooks.router,
        inference_routes.router,
        registration.router,
        health.router,
        metrics.router,
        keys.router,
        operations_routes.router,
        samples.router,
        docs.router,
        dashboard.router,
    ):
        app.include_router(router)
    app.mount("/docs/assets", docs.assets())
    app.mount(dashboard.find_assets_path(), dashboard.assets())


def _describe(app: FastAPI) -> None:
    """Complete FastAPI's description of the application with what its routes do not tell."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = operations.hoist(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
