"""The engine: questions about models, batched and answered. Names load lazily, so importing this does not
load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch

    from touchstone.engine.certification.sampling import Counts as Counts
    from touchstone.engine.certification.sampling import Stopping as Stopping
    from touchstone.engine.certification.sampling import Subject as Subject
    from touchstone.engine.certification.sampling import counted as counted
    from touchstone.engine.certification.sampling import voted as voted
    from touchstone.engine.certification.stopping_rules import RULES as RULES
    from touchstone.engine.certification.stopping_rules import clopper_pearson_lower as clopper_pearson_lower
    from touchstone.engine.certification.stopping_rules import clopper_pearson_upper as clopper_pearson_upper
    from touchstone.engine.certification.stopping_rules import log_e_value as log_e_value
    from touchstone.engine.certification.stopping_rules import majority_p_value as majority_p_value
    from touchstone.engine.certification.stopping_rules import probability_of as probability_of
    from touchstone.engine.certification.stopping_rules import radius_of as radius_of
    from touchstone.engine.defences import defended as defended
    from touchstone.engine.defences import straight_through as straight_through
    from touchstone.engine.goals import CrossEntropy as CrossEntropy
    from touchstone.engine.goals import Goal as Goal
    from touchstone.engine.goals import Loss as Loss
    from touchstone.engine.goals import Margin as Margin
    from touchstone.engine.goals import Scored as Scored
    from touchstone.engine.noise import Noise as Noise
    from touchstone.engine.noise import Stream as Stream
    from touchstone.engine.norms import L0 as L0
    from touchstone.engine.norms import L1 as L1
    from touchstone.engine.norms import L2 as L2
    from touchstone.engine.norms import NORMS as NORMS
    from touchstone.engine.norms import Linf as Linf
    from touchstone.engine.norms import Norm as Norm
    from touchstone.engine.oracles.oracle import AnyOracle as AnyOracle
    from touchstone.engine.oracles.oracle import Oracle as Oracle
    from touchstone.engine.oracles.remote import RemoteOracle as RemoteOracle
    from touchstone.engine.oracles.remote import Ways as Ways
    from touchstone.engine.plans import averaged as averaged
    from touchstone.engine.plans import restricted as restricted
    from touchstone.engine.plans import through as through
    from touchstone.engine.quantization import snap as snap
    from touchstone.engine.queries import (
        Answer as Answer,
    )
    from touchstone.engine.queries import (
        Asking as Asking,
    )
    from touchstone.engine.queries import (
        Found as Found,
    )
    from touchstone.engine.queries import (
        Gradient as Gradient,
    )
    from touchstone.engine.queries import (
        Jacobian as Jacobian,
    )
    from touchstone.engine.queries import (
        Logits as Logits,
    )
    from touchstone.engine.queries import (
        Noisy as Noisy,
    )
    from touchstone.engine.queries import (
        Plan as Plan,
    )
    from touchstone.engine.queries import (
        Query as Query,
    )
    from touchstone.engine.queries import (
        Saved as Saved,
    )
    from touchstone.engine.rows import Rows as Rows
    from touchstone.engine.rows import column as column
    from touchstone.engine.scheduler.batcher import Batcher as Batcher
    from touchstone.engine.scheduler.batcher import Counted as Counted
    from touchstone.engine.scheduler.batcher import Task as Task
    from touchstone.engine.scheduler.device_thread import Running as Running
    from touchstone.engine.scheduler.engine import Engine as Engine
    from touchstone.engine.search.decision_boundary import begun as begun
    from touchstone.engine.search.decision_boundary import crossed as crossed
    from touchstone.engine.search.decision_boundary import halvings as halvings
    from touchstone.engine.search.decision_boundary import leaning as leaning
    from touchstone.engine.search.decision_boundary import nearby as nearby
    from touchstone.engine.search.decision_boundary import normal_at as normal_at
    from touchstone.engine.search.decision_boundary import succeeded as succeeded
    from touchstone.engine.search.gradient_ascent import HELD as HELD
    from touchstone.engine.search.gradient_ascent import MET as MET
    from touchstone.engine.search.gradient_ascent import Best as Best
    from touchstone.engine.search.gradient_ascent import Rule as Rule
    from touchstone.engine.search.gradient_ascent import Steepest as Steepest
    from touchstone.engine.search.gradient_ascent import climb as climb
    from touchstone.engine.search.gradient_ascent import enough_for as enough_for
    from touchstone.engine.search.gradient_ascent import follow as follow
    from touchstone.engine.search.gradient_ascent import judge as judge
    from touchstone.engine.search.gradient_ascent import restarted as restarted
    from touchstone.engine.search.gradient_ascent import unsaturated as unsaturated
    from touchstone.engine.search.nearest import Nearest as Nearest
    from touchstone.engine.search.random_search import asked as asked
    from touchstone.engine.search.random_search import in_whole_levels as in_whole_levels
    from touchstone.engine.search.random_search import progress as progress
    from touchstone.engine.search.random_search import rising as rising
    from touchstone.engine.search.random_search import walk as walk
    from touchstone.engine.search.rounding import settled as settled
    from touchstone.engine.threat import Case as Case
    from touchstone.engine.threat import Threat as Threat
    from touchstone.evaluation.inference import infer as infer
    from touchstone.evaluation.library import Model as Model
    from touchstone.evaluation.library import attack as attack
    from touchstone.evaluation.library import certify as certify
    from touchstone.evaluation.library import load as load
    from touchstone.evaluation.library import run_here as run_here
    from touchstone.evaluation.library import samples as samples
    from touchstone.evaluation.library import wrap as wrap
    from touchstone.evaluation.verdict import Sought as Sought
    from touchstone.evaluation.verdict import Verdict as Verdict
    from touchstone.evaluation.verdict import attack_image as attack_image
    from touchstone.evaluation.verdict import certify_image as certify_image
    from touchstone.evaluation.verdict import look as look
    from touchstone.evaluation.verdict import look_at as look_at
    from touchstone.evaluation.verdict import metric as metric
    from touchstone.evaluation.verdict import pursued as pursued
    from touchstone.evaluation.verdict import search as search
    from touchstone.evaluation.verdict import top as top
    from touchstone.evaluation.verdict import vote_on as vote_on
    from touchstone.registration.remote_probe import reached as reached

_HOMES = {
    "touchstone.engine.plans": ("averaged", "restricted", "through"),
    "touchstone.engine.scheduler.batcher": ("Batcher", "Counted", "Task"),
    "touchstone.engine.search.gradient_ascent": (
        "Best",
        "HELD",
        "MET",
        "Rule",
        "Steepest",
        "climb",
        "enough_for",
        "follow",
        "judge",
        "restarted",
        "unsaturated",
    ),
    "touchstone.engine.certification.sampling": ("Counts", "Stopping", "Subject", "counted", "voted"),
    "touchstone.engine.search.decision_boundary": (
        "begun",
        "crossed",
        "halvings",
        "leaning",
        "nearby",
        "normal_at",
        "succeeded",
    ),
    "touchstone.engine.defences": ("defended", "straight_through"),
    "touchstone.evaluation.library": ("Model", "attack", "certify", "load", "run_here", "samples", "wrap"),
    "touchstone.engine.goals": ("CrossEntropy", "Goal", "Loss", "Margin", "Scored"),
    "touchstone.evaluation.inference": ("infer",),
    "touchstone.engine.quantization": ("snap",),
    "touchstone.engine.search.nearest": ("Nearest",),
    "touchstone.engine.noise": ("Noise", "Stream"),
    "touchstone.engine.norms": ("L0", "L1", "L2", "NORMS", "Linf", "Norm"),
    "touchstone.engine.oracles.oracle": ("AnyOracle", "Oracle"),
    "touchstone.engine.queries": (
        "Answer",
        "Asking",
        "Found",
        "Gradient",
        "Jacobian",
        "Logits",
        "Noisy",
        "Plan",
        "Query",
        "Saved",
    ),
    "touchstone.registration.remote_probe": ("reached",),
    "touchstone.engine.oracles.remote": ("RemoteOracle", "Ways"),
    "touchstone.engine.rows": ("Rows", "column"),
    "touchstone.engine.search.rounding": ("settled",),
    "touchstone.evaluation.verdict": (
        "Sought",
        "Verdict",
        "attack_image",
        "certify_image",
        "look",
        "look_at",
        "metric",
        "pursued",
        "search",
        "top",
        "vote_on",
    ),
    "touchstone.engine.certification.stopping_rules": (
        "RULES",
        "clopper_pearson_lower",
        "clopper_pearson_upper",
        "log_e_value",
        "majority_p_value",
        "probability_of",
        "radius_of",
    ),
    "touchstone.engine.scheduler.device_thread": ("Running",),
    "touchstone.engine.scheduler.engine": ("Engine",),
    "touchstone.engine.threat": ("Case", "Threat"),
    "touchstone.engine.search.random_search": ("asked", "in_whole_levels", "progress", "rising", "walk"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "torch":  # methods are declared without loading it, and need it once they run
        globals()[name] = import_module(name)
        return globals()[name]
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
