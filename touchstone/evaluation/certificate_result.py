"""The result of a certificate job: what the counts prove, with everything that is needed to check it."""

from __future__ import annotations

import hashlib
import json
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from touchstone.engine.noise_streams import SAMPLE_STREAM
from touchstone.ledger.records import Submission
from touchstone.methods import Certificate, find
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, ModelStore, find_pinned

if TYPE_CHECKING:
    from touchstone.engine import Counts, Oracle

DISTRIBUTIONS = {"touchstone": "touchstone-robustness", "torch": "torch", "numpy": "numpy", "scipy": "scipy"}


def build_certificate_result(
    certificate: Certificate, counts: Counts, submission: Submission, manifest: Manifest, oracle: Oracle
) -> dict[str, Any]:
    """The result as docs/certificates.md lists it: the method's own fields between identity and
    circumstances.
    """
    own = certificate.result(counts)
    predicted = None if own["abstained"] else {"label": counts.label, "name": manifest.classes[counts.label]}
    sampling = own["sampling"] | {
        "counts_top5": [{"label": label, "count": count} for label, count in counts.top()],
        "seed": counts.seed,
        "stream": counts.stream,
        "batch_size": manifest.remote.batch_rows if manifest.remote else oracle.fixed_rows,
        "pooled": counts.pooled,
    }
    return {
        "method": certificate.info.name,
        "statement": _statement(own, manifest, counts),
        **own,
        "predicted_class": predicted,
        "sampling": sampling,
        "accuracy_under_noise_hint": _noise_hint(counts, manifest),
        "digests": {
            "model": manifest.digest,
            "image": submission.source,
            "preprocessing": preprocessing_digest(manifest),
        },
        "versions": {name: version(distribution) for name, distribution in DISTRIBUTIONS.items()},
        "eval_mode_checked": oracle.eval_mode,
        "batch_invariance_max_abs_diff": counts.batch_difference,
    }


def pool_key(submission: Submission, store: ModelStore = ZOO) -> str | None:
    """The key of the count that equal certificates share whatever their seeds; None where nothing is shared.

    Samples of another stream are another count. A rerun draws its own samples, since it is there to compare.
    """
    if submission.kind != "certificate" or submission.rerun_of is not None:
        return None
    method = find(submission.method, "certificate").parse(submission.parameters)
    parameters = method.pooling_parameters() if isinstance(method, Certificate) else None
    if parameters is None:
        return None
    manifest = find_pinned(store.of(submission.tenant), submission.model.id, submission.model.digest)
    inputs = [submission.tenant, submission.source, manifest.digest, preprocessing_digest(manifest)]
    inputs.append(SAMPLE_STREAM)
    inputs += [] if manifest.output is None else [manifest.output]
    named = json.dumps([submission.method, *inputs, parameters], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()


def preprocessing_digest(manifest: Manifest) -> str:
    """Identifies the preprocessing of a model."""
    order = (
        {"channel_order"} if manifest.input.channel_order == "rgb" else set()
    )  # as before there were others
    left_out = {"input": {"layout", "straight_through"} | order}
    preprocessing = manifest.model_dump_json(include={"input", "mean", "std"}, exclude=left_out)
    return f"sha256:{hashlib.sha256(preprocessing.encode()).hexdigest()}"


def round_down(radius: float) -> float:
    """A radius with four decimals, never larger than what is proved."""
    return math.floor(radius * 1e4) / 1e4


def _statement(own: dict[str, Any], manifest: Manifest, counts: Counts) -> str:
    """The outcome in one plain sentence."""
    if own["abstained"]:
        return f"No radius is certified: {own['abstain_reason']}."
    norm = own["norm"].upper()
    radius = round_down(own["radius"])
    return (
        f"With an error probability of at most {own['sampling']['alpha']:g}, the smoothed model answers "
        f'"{manifest.classes[counts.label]}" for every image '
        f"within {norm} distance {radius:.4f} of this one, at the size the model takes."
    )


def _noise_hint(counts: Counts, manifest: Manifest) -> dict[str, Any]:
    """The share of noisy votes for the clean class; low for most models that were not trained with noise."""
    share = float(counts.votes[counts.clean] / counts.n) if counts.n else None
    note = None
    if share is not None and share < 0.5:
        note = (
            "Under this noise the model mostly changes its answer; a model trained with such noise would not."
        )
    return {
        "clean_class": {"label": counts.clean, "name": manifest.classes[counts.clean]},
        "share_of_votes": share,
        "note": note,
    }
