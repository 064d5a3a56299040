"""Metrics for Prometheus: the queue, the jobs, the workers' batches, and how long requests take."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.auth.permissions import reader
from service.state.backend import AllTenants

router = APIRouter(tags=["service"], dependencies=[reader])


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": "touchstone_queue_depth 0.0\n"}
            }
        }
    },
)
def get_metrics(backend: AllTenants) -> Response:
    """The queue, jobs and deliveries by status, the workers' batches and steps, how long requests take."""
    return Response(generate_latest(backend.request_metrics.registry), media_type=CONTENT_TYPE_LATEST)
