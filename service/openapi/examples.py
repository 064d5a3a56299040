"""The examples in the OpenAPI document: the same job everywhere."""

from __future__ import annotations

import json
from typing import Any

from touchstone.engine.noise_streams import SAMPLE_STREAM

_ID = "0b5f6d0c7a1e4a2f9d3c8b7e6f5a4d3c"
DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAMElEQVR4nC3GIRIAIBACQHQIBALhgsH"
    "/v9MgmxaoBRYoSRJB2bYJyknyMzPNObu5DzfpAkihZN1nAAAAAElFTkSuQmCC"
)

JOB: dict[str, Any] = {
    "id": _ID,
    "kind": "attack",
    "method": "pgd",
    "status": "succeeded",
    "created_at": "2026-11-22T09:30:00.120000Z",
    "started_at": "2026-11-22T09:30:00.130000Z",
    "finished_at": "2026-11-22T09:30:00.770000Z",
    "attempts": 1,
    "model": {"id": "imagenet-efficientnet-lite0", "digest": DIGEST},
    "image": {"digest": DIGEST, "width": 451, "height": 300, "conversions": []},
    "parameters": {"early_stop": True, "norm": "linf", "eps": 0.00784, "steps": 40},
    "seed": 0,
    "execution": "batched",
    "progress": {"done": 7, "total": 40},
    "result": {
        "outcome": "success",
        "success": True,
        "success_float": True,
        "original": {
            "label": 281,
            "name": "tabby",
            "confidence": 0.62,
            "top": [{"label": 281, "name": "tabby", "confidence": 0.62}],
        },
        "adversarial": {
            "label": 404,
            "name": "airliner",
            "confidence": 0.99,
            "top": [{"label": 404, "name": "airliner", "confidence": 0.99}],
        },
        "perturbation": {"linf": 0.00784, "l2": 1.1, "l1": 402.0, "l0": 98211, "tv": 0.01, "ssim": 0.99},
        "queries": {"forward": 8, "backward": 7},
    },
    "error": None,
    "timings": {"queued": 0.01, "prepare": 0.02, "compute": 0.61, "write": 0.01},
    "links": {
        "self": f"/v1/jobs/{_ID}",
        "events": f"/v1/jobs/{_ID}/events",
        "cancel": f"/v1/jobs/{_ID}/cancel",
        "artifacts": {
            "original.png": f"/v1/jobs/{_ID}/artifacts/original.png",
            "adversarial.png": f"/v1/jobs/{_ID}/artifacts/adversarial.png",
        },
    },
}

CERTIFICATE: dict[str, Any] = {
    **JOB,
    "kind": "certificate",
    "method": "smoothing",
    "model": {"id": "fashion-mnist-cnn-noise-0.25", "digest": DIGEST},
    "image": {"digest": DIGEST, "width": 28, "height": 28, "conversions": []},
    "parameters": {
        "sigma": 0.25,
        "n0": 100,
        "n": 20_000,
        "alpha": 0.001,
        "rule": "e_process",
        "target_radius": 0.5,
        "tolerance": 0.0,
    },
    "progress": {"done": 533, "total": 20_140},
    "result": {
        "method": "smoothing",
        "statement": (
            'With an error probability of at most 0.001, the smoothed model answers "Trouser" for every '
            "image within L2 distance 0.5011 of this one, at the size the model takes."
        ),
        "guarantee": "statistical",
        "norm": "l2",
        "radius": 0.5011022561685603,
        "abstained": False,
        "abstain_reason": None,
        "target_radius": 0.5,
        "decision": "certified",
        "stopped_by": "certified",
        "sampling": {
            "noise": "gaussian",
            "sigma": 0.25,
            "n0": 100,
            "n_used": 400,
            "n_max": 20_000,
            "looks": "any",
            "alpha": 0.001,
            "rule": "e_process",
            "alpha_rule": "e-process, uniform mixture over (p0, 1), anytime valid, alpha",
            "nA": 400,
            "pA_lower": 0.9774868683101049,
            "pA_upper": 1.0,
            "log_e_value": 6.994288400949865,
            "counts_top5": [{"label": 1, "count": 400}],
            "seed": 0,
            "stream": SAMPLE_STREAM,
            "batch_size": 64,
            "pooled": 0,
        },
        "predicted_class": {"label": 1, "name": "Trouser"},
        "accuracy_under_noise_hint": {
            "clean_class": {"label": 1, "name": "Trouser"},
            "share_of_votes": 1.0,
            "note": None,
        },
        "digests": {"model": DIGEST, "image": DIGEST, "preprocessing": DIGEST},
        "versions": {"touchstone": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1"},
        "eval_mode_checked": True,
        "batch_invariance_max_abs_diff": 0.0,
        "queries": {"forward": 533, "backward": 0},
    },
    "links": {**JOB["links"], "artifacts": {"original.png": f"/v1/jobs/{_ID}/artifacts/original.png"}},
}

CONTINUATION: dict[str, Any] = {
    **CERTIFICATE,
    "status": "queued",
    "started_at": None,
    "finished_at": None,
    "attempts": 0,
    "continues": "7c9e6679f1f4445fa7e0d2b1c3a45e66",
    "progress": {"done": 0, "total": 0},
    "result": None,
    "timings": None,
}

MANIFEST: dict[str, Any] = {
    "id": "my-net",
    "classes": ["cat", "dog"],
    "input": {"height": 224, "width": 224, "resize": 256, "interpolation": "bicubic"},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}

REMOTE: dict[str, Any] = {
    "id": "my-server",
    "classes": ["cat", "dog"],
    "input": {"height": 224, "width": 224},
    "remote": {
        "url": "https://models.example.org",
        "protocol": "oip",
        "oip": {"model": "my-net"},
        "answers": "logits",
    },
}

REGISTRATION: dict[str, Any] = {
    **CONTINUATION,
    "kind": "registration",
    "method": "probe",
    "model": {"id": MANIFEST["id"], "digest": DIGEST},
    "image": None,
    "parameters": {
        **MANIFEST,
        "kind": "local",
        "digest": DIGEST,
        "architecture": "onnx",
        "config": None,
        "weights": {"file": "model.onnx", "package": None},
        "input": {
            **MANIFEST["input"],
            "channels": 3,
            "layout": "nchw",
            "channel_order": "rgb",
            "straight_through": False,
            "crop_rounding": "even",
        },
        "softmax": "none",
        "output": None,
        "randomized": False,
        "output_activation": [],
        "gradients": "exact",
        "single_output": False,
        "parameters": 0,
        "licence": "not stated",
        "provenance": "not stated",
        "accuracy": [],
        "sources": {},
    },
    "links": {**JOB["links"], "artifacts": {}},
}
del REGISTRATION["continues"]

PROBLEM: dict[str, Any] = {
    "type": "urn:touchstone:problem:invalid_parameter",
    "title": "A parameter has a value that the method cannot use",
    "status": 422,
    "detail": "eps: 8 is larger than the whole box [0,1]: did you mean 8/255?",
    "instance": "/v1/attacks/pgd",
    "code": "invalid_parameter",
    "field": "eps",
}

TENSORS: dict[str, Any] = {
    "name": "fashion-mnist-cnn",
    "versions": [DIGEST],
    "platform": "touchstone_small-cnn",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28], "parameters": None}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10], "parameters": None}],
}

INFERENCE: dict[str, Any] = {
    "id": "42",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}],
    "outputs": [{"name": "probabilities", "parameters": {"classification": 2}}],
}

INFERENCE_ANSWER: dict[str, Any] = {
    "model_name": "fashion-mnist-cnn",
    "model_version": DIGEST,
    "id": "42",
    "outputs": [
        {
            "name": "probabilities",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["0.971512:8:Bag", "0.013240:0:T-shirt/top"],
        }
    ],
}


_ENCODED = "x-written-example"


def content(example: Any, media_type: str = "application/json") -> dict[str, Any]:
    """The part of an OpenAPI response that shows an example; `unfold` completes it."""
    return {"content": {media_type: {_ENCODED: json.dumps(example)}}}


def unfold(media: dict[str, Any]) -> None:
    """Put the example in its place; FastAPI itself would drop its nulls."""
    if _ENCODED in media:
        media["example"] = json.loads(media.pop(_ENCODED))


def page(item: Any) -> dict[str, Any]:
    """The same for a page of one item."""
    return content({"items": [item], "cursor": None})
