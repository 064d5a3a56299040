"""What Prometheus is told: the queue, the jobs, the workers' batches, and how long requests take."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.auth.permissions import reader
from service.dependencies import get_backend

router = APIRouter(tags=["service"], dependencies=[reader])


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": "touchstone_queue_depth 0.0\n"}
            }
        }
    },
)
def get_metrics(request: Request) -> Response:
    """The queue, jobs and deliveries by status, the workers' batches and steps, how long requests take."""
    registry = get_backend(request).request_metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
