"""The engine: questions about models, batched and answered. Names load lazily, so importing this does not
load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch

    from touchstone.engine.ascent import (
        HELD as HELD,
    )
    from touchstone.engine.ascent import (
        MET as MET,
    )
    from touchstone.engine.ascent import (
        Best as Best,
    )
    from touchstone.engine.ascent import (
        Rule as Rule,
    )
    from touchstone.engine.ascent import (
        Steepest as Steepest,
    )
    from touchstone.engine.ascent import (
        climb as climb,
    )
    from touchstone.engine.ascent import (
        enough_for as enough_for,
    )
    from touchstone.engine.ascent import (
        follow as follow,
    )
    from touchstone.engine.ascent import (
        judge as judge,
    )
    from touchstone.engine.ascent import (
        restarted as restarted,
    )
    from touchstone.engine.ascent import (
        unsaturated as unsaturated,
    )
    from touchstone.engine.asking import averaged as averaged
    from touchstone.engine.asking import restricted as restricted
    from touchstone.engine.asking import through as through
    from touchstone.engine.batching import Batcher as Batcher
    from touchstone.engine.batching import Counted as Counted
    from touchstone.engine.batching import Task as Task
    from touchstone.engine.counting import Counts as Counts
    from touchstone.engine.counting import Stopping as Stopping
    from touchstone.engine.counting import Subject as Subject
    from touchstone.engine.counting import counted as counted
    from touchstone.engine.counting import voted as voted
    from touchstone.engine.crossing import begun as begun
    from touchstone.engine.crossing import crossed as crossed
    from touchstone.engine.crossing import halvings as halvings
    from touchstone.engine.crossing import leaning as leaning
    from touchstone.engine.crossing import nearby as nearby
    from touchstone.engine.crossing import normal_at as normal_at
    from touchstone.engine.crossing import succeeded as succeeded
    from touchstone.engine.defences import defended as defended
    from touchstone.engine.defences import straight_through as straight_through
    from touchstone.engine.direct import Model as Model
    from touchstone.engine.direct import attack as attack
    from touchstone.engine.direct import certify as certify
    from touchstone.engine.direct import load as load
    from touchstone.engine.direct import run_here as run_here
    from touchstone.engine.direct import samples as samples
    from touchstone.engine.direct import wrap as wrap
    from touchstone.engine.goals import CrossEntropy as CrossEntropy
    from touchstone.engine.goals import Goal as Goal
    from touchstone.engine.goals import Loss as Loss
    from touchstone.engine.goals import Margin as Margin
    from touchstone.engine.goals import Scored as Scored
    from touchstone.engine.inferring import infer as infer
    from touchstone.engine.lane import Running as Running
    from touchstone.engine.lattice import snap as snap
    from touchstone.engine.nearest import Nearest as Nearest
    from touchstone.engine.noise import Noise as Noise
    from touchstone.engine.noise import Stream as Stream
    from touchstone.engine.norms import L0 as L0
    from touchstone.engine.norms import L1 as L1
    from touchstone.engine.norms import L2 as L2
    from touchstone.engine.norms import NORMS as NORMS
    from touchstone.engine.norms import Linf as Linf
    from touchstone.engine.norms import Norm as Norm
    from touchstone.engine.oracle import AnyOracle as AnyOracle
    from touchstone.engine.oracle import Oracle as Oracle
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
    from touchstone.engine.reaching import reached as reached
    from touchstone.engine.remote import RemoteOracle as RemoteOracle
    from touchstone.engine.remote import Ways as Ways
    from touchstone.engine.rows import Rows as Rows
    from touchstone.engine.rows import column as column
    from touchstone.engine.rules import RULES as RULES
    from touchstone.engine.rules import clopper_pearson_lower as clopper_pearson_lower
    from touchstone.engine.rules import clopper_pearson_upper as clopper_pearson_upper
    from touchstone.engine.rules import log_e_value as log_e_value
    from touchstone.engine.rules import majority_p_value as majority_p_value
    from touchstone.engine.rules import probability_of as probability_of
    from touchstone.engine.rules import radius_of as radius_of
    from touchstone.engine.settling import settled as settled
    from touchstone.engine.thread import Engine as Engine
    from touchstone.engine.threat import Case as Case
    from touchstone.engine.threat import Threat as Threat
    from touchstone.engine.verdict import (
        Sought as Sought,
    )
    from touchstone.engine.verdict import (
        Verdict as Verdict,
    )
    from touchstone.engine.verdict import (
        attack_image as attack_image,
    )
    from touchstone.engine.verdict import (
        certify_image as certify_image,
    )
    from touchstone.engine.verdict import (
        look as look,
    )
    from touchstone.engine.verdict import (
        look_at as look_at,
    )
    from touchstone.engine.verdict import (
        metric as metric,
    )
    from touchstone.engine.verdict import (
        pursued as pursued,
    )
    from touchstone.engine.verdict import (
        search as search,
    )
    from touchstone.engine.verdict import (
        top as top,
    )
    from touchstone.engine.verdict import (
        vote_on as vote_on,
    )
    from touchstone.engine.walking import asked as asked
    from touchstone.engine.walking import in_whole_levels as in_whole_levels
    from touchstone.engine.walking import progress as progress
    from touchstone.engine.walking import rising as rising
    from touchstone.engine.walking import walk as walk

_HOMES = {
    "asking": ("averaged", "restricted", "through"),
    "batching": ("Batcher", "Counted", "Task"),
    "ascent": (
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
    "counting": ("Counts", "Stopping", "Subject", "counted", "voted"),
    "crossing": ("begun", "crossed", "halvings", "leaning", "nearby", "normal_at", "succeeded"),
    "defences": ("defended", "straight_through"),
    "direct": ("Model", "attack", "certify", "load", "run_here", "samples", "wrap"),
    "goals": ("CrossEntropy", "Goal", "Loss", "Margin", "Scored"),
    "inferring": ("infer",),
    "lattice": ("snap",),
    "nearest": ("Nearest",),
    "noise": ("Noise", "Stream"),
    "norms": ("L0", "L1", "L2", "NORMS", "Linf", "Norm"),
    "oracle": ("AnyOracle", "Oracle"),
    "queries": (
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
    "reaching": ("reached",),
    "remote": ("RemoteOracle", "Ways"),
    "rows": ("Rows", "column"),
    "settling": ("settled",),
    "verdict": (
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
    "rules": (
        "RULES",
        "clopper_pearson_lower",
        "clopper_pearson_upper",
        "log_e_value",
        "majority_p_value",
        "probability_of",
        "radius_of",
    ),
    "lane": ("Running",),
    "thread": ("Engine",),
    "threat": ("Case", "Threat"),
    "walking": ("asked", "in_whole_levels", "progress", "rising", "walk"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "torch":  # methods are declared without loading it, and need it once they run
        globals()[name] = import_module(name)
        return globals()[name]
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
