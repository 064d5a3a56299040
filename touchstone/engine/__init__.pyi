from .certification.sampling import (
    CertificateCase as CertificateCase,
)
from .certification.sampling import (
    Counts as Counts,
)
from .certification.sampling import (
    StoppingCriterion as StoppingCriterion,
)
from .certification.sampling import (
    count_votes as count_votes,
)
from .certification.sampling import (
    sample_under_noise as sample_under_noise,
)
from .certification.stopping_rules import (
    STOPPING_RULES as STOPPING_RULES,
)
from .certification.stopping_rules import (
    certified_radius as certified_radius,
)
from .certification.stopping_rules import (
    clopper_pearson_lower as clopper_pearson_lower,
)
from .certification.stopping_rules import (
    clopper_pearson_upper as clopper_pearson_upper,
)
from .certification.stopping_rules import (
    log_e_value as log_e_value,
)
from .certification.stopping_rules import (
    majority_p_value as majority_p_value,
)
from .certification.stopping_rules import (
    required_probability as required_probability,
)
from .defences import (
    apply_defence as apply_defence,
)
from .defences import (
    straight_through as straight_through,
)
from .goals import (
    CrossEntropy as CrossEntropy,
)
from .goals import (
    CustomLoss as CustomLoss,
)
from .goals import (
    Goal as Goal,
)
from .goals import (
    Loss as Loss,
)
from .goals import (
    Margin as Margin,
)
from .noise import (
    Noise as Noise,
)
from .noise import (
    SampleNoise as SampleNoise,
)
from .norms import (
    L0 as L0,
)
from .norms import (
    L1 as L1,
)
from .norms import (
    L2 as L2,
)
from .norms import (
    NORMS as NORMS,
)
from .norms import (
    Linf as Linf,
)
from .norms import (
    Norm as Norm,
)
from .oracles.oracle import (
    Oracle as Oracle,
)
from .oracles.oracle import (
    TorchOracle as TorchOracle,
)
from .oracles.remote import (
    RemoteAccess as RemoteAccess,
)
from .oracles.remote import (
    RemoteOracle as RemoteOracle,
)
from .plans import (
    average_gradients as average_gradients,
)
from .plans import (
    restrict as restrict,
)
from .plans import (
    rewrite_queries as rewrite_queries,
)
from .quantization import (
    snap as snap,
)
from .queries import (
    Answer as Answer,
)
from .queries import (
    FileLogits as FileLogits,
)
from .queries import (
    Found as Found,
)
from .queries import (
    Gradient as Gradient,
)
from .queries import (
    Jacobian as Jacobian,
)
from .queries import (
    Logits as Logits,
)
from .queries import (
    NoisyLogits as NoisyLogits,
)
from .queries import (
    Plan as Plan,
)
from .queries import (
    PlanOf as PlanOf,
)
from .queries import (
    Query as Query,
)
from .rows import (
    Rows as Rows,
)
from .rows import (
    column as column,
)
from .scheduler.batcher import (
    Batcher as Batcher,
)
from .scheduler.batcher import (
    QueryCount as QueryCount,
)
from .scheduler.batcher import (
    Task as Task,
)
from .scheduler.device_thread import (
    TaskHandle as TaskHandle,
)
from .scheduler.engine import (
    Engine as Engine,
)
from .search.decision_boundary import (
    bisect_boundary as bisect_boundary,
)
from .search.decision_boundary import (
    bisection_steps as bisection_steps,
)
from .search.decision_boundary import (
    estimate_normal as estimate_normal,
)
from .search.decision_boundary import (
    estimate_unit_normal as estimate_unit_normal,
)
from .search.decision_boundary import (
    find_start as find_start,
)
from .search.decision_boundary import (
    probe_distance as probe_distance,
)
from .search.decision_boundary import (
    record_success as record_success,
)
from .search.gradient_ascent import (
    SUCCESS as SUCCESS,
)
from .search.gradient_ascent import (
    SUCCESS_AS_FILE as SUCCESS_AS_FILE,
)
from .search.gradient_ascent import (
    Best as Best,
)
from .search.gradient_ascent import (
    SteepestAscent as SteepestAscent,
)
from .search.gradient_ascent import (
    StepRule as StepRule,
)
from .search.gradient_ascent import (
    climb as climb,
)
from .search.gradient_ascent import (
    replace_saturated_gradient as replace_saturated_gradient,
)
from .search.gradient_ascent import (
    run_restarts as run_restarts,
)
from .search.gradient_ascent import (
    score as score,
)
from .search.gradient_ascent import (
    take_step as take_step,
)
from .search.gradient_ascent import (
    target_score as target_score,
)
from .search.nearest import (
    Nearest as Nearest,
)
from .search.random_search import (
    goal_progress as goal_progress,
)
from .search.random_search import (
    objective as objective,
)
from .search.random_search import (
    query_progress as query_progress,
)
from .search.random_search import (
    random_search as random_search,
)
from .search.random_search import (
    round_eps_down as round_eps_down,
)
from .search.rounding import (
    round_to_success as round_to_success,
)
from .threat import (
    Case as Case,
)
from .threat import (
    Threat as Threat,
)
