"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI

from service import problems
from service.http.body_limits import Bounds, Limits, Room
from service.http.origins import Origins
from service.http.request_context import Edge
from service.inference import router as inference
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
    registration,
    samples,
    webhooks,
)
from service.routers import operations as overview
from service.state.backend import NAMES, Ring, Whole, at_once
from service.state.dispatch import Ringer, open_bell
from service.state.failed_keys import Strangers
from service.state.job_waiters import Waiting
from service.state.metrics import Durations, Figures
from service.state.pending_uploads import Arrivals
from service.submissions import bodies
from touchstone.ledger.address import ledger_url
from touchstone.ledger.ledger import Ledger
from touchstone.ledger.reaper import Reaper
from touchstone.ledger.webhooks.dispatcher import Deliverer
from touchstone.net.outbound import Outgoing
from touchstone.sandbox.decoder_pool import Decoders
from touchstone.settings import Settings
from touchstone.storage.blobs import open_blobs
from touchstone.storage.garbage_collector import Sweeper
from touchstone.storage.model_store import Registry

THREADS = 200
"""Calls to the ledger and the blobs that may be under way at once: each spends its time waiting."""

_ABOUT = """Tests how robust an image classifier is.

Send an image and a model's id to an attack, and get back an adversarial image with the verdict on it; or to a
certificate, and get back a proof that no small change can alter the answer. Every submission is a job: it is
accepted with 202, and can be polled, waited for, followed as a stream of events, canceled, and run again.
"""


def create_app(settings: Settings, *, ring: Ring | None = None) -> FastAPI:
    """The application over the ledger and the blobs of the settings; without a `ring` it rings Celery."""
    backend = _backend(settings, ring)
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
        Limits, bounds=Bounds(bodies.most_bytes(settings.upload_limit)), room=Room(settings.bodies_memory)
    )
    app.add_middleware(Origins, settings=settings)
    app.add_middleware(Edge, durations=backend.durations)
    _add_routes(app)
    _describe(app)
    return app


def _backend(settings: Settings, ring: Ring | None) -> Whole:
    ledger = Ledger(ledger_url(settings), settings)
    blobs, ringer = open_blobs(settings), Ringer(ring or open_bell(ledger_url(settings), ledger.queue_of))
    durations = Durations()
    durations.registry.register(Figures(ledger, blobs.free))
    return Whole(
        settings=settings,
        ledger=ledger,
        blobs=blobs,
        models=Registry(ledger, blobs),
        ringer=ringer,
        waiting=Waiting(ledger),
        reaper=Reaper(ledger, ringer.ring),
        deliverer=Deliverer(ledger.outbox, Outgoing(settings.outgoing_allow), deliveries.told),
        sweeper=Sweeper(ledger, blobs),
        durations=durations,
        checks=CapacityLimiter(at_once()),
        names=CapacityLimiter(NAMES),
        arrivals=Arrivals(),
        strangers=Strangers(settings.refused_keys),
        decoders=Decoders(at_once()),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    backend: Whole = app.state.backend
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    backend.waiting.start(asyncio.get_running_loop())
    backend.ringer.start()
    backend.reaper.start()
    backend.deliverer.start()
    backend.sweeper.start()
    try:
        yield
    finally:
        backend.waiting.close()
        await to_thread.run_sync(_stop, backend)


def _stop(backend: Whole) -> None:
    backend.deliverer.stop()
    backend.sweeper.stop()
    backend.reaper.stop()
    backend.ringer.stop()
    backend.waiting.stop()
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
        inference.router,
        registration.router,
        health.router,
        metrics.router,
        keys.router,
        overview.router,
        samples.router,
        docs.router,
        dashboard.router,
    ):
        app.include_router(router)
    app.mount("/docs/assets", docs.assets())
    app.mount(dashboard.address(), dashboard.assets())


def _describe(app: FastAPI) -> None:
    """Complete what FastAPI says of the application with what only we know."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = operations.hoist(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
