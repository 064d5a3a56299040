from .certification.sampling import (
    CertificateCase as CertificateCase,
    Counts as Counts,
    StoppingCriterion as StoppingCriterion,
    count_votes as count_votes,
    sample_under_noise as sample_under_noise,
)
from .certification.stopping_rules import (
    STOPPING_RULES as STOPPING_RULES,
    certified_radius as certified_radius,
    clopper_pearson_lower as clopper_pearson_lower,
    clopper_pearson_upper as clopper_pearson_upper,
    log_e_value as log_e_value,
    majority_p_value as majority_p_value,
    required_probability as required_probability,
)
from .defences import (
    apply_defence as apply_defence,
    straight_through as straight_through,
)
from .goals import (
    CrossEntropy as CrossEntropy,
    CustomLoss as CustomLoss,
    Goal as Goal,
    Loss as Loss,
    Margin as Margin,
    class_leads as class_leads,
)
from .loops import (
    repeat as repeat,
)
from .noise import (
    Noise as Noise,
    SampleNoise as SampleNoise,
)
from .norms import (
    L0 as L0,
    L1 as L1,
    L2 as L2,
    NORMS as NORMS,
    Linf as Linf,
    Norm as Norm,
)
from .oracles.oracle import (
    Oracle as Oracle,
    TorchOracle as TorchOracle,
)
from .oracles.remote import (
    RemoteAccess as RemoteAccess,
    RemoteOracle as RemoteOracle,
)
from .pieces import (
    RowSum as RowSum,
    cut as cut,
    rows_of_piece as rows_of_piece,
)
from .plans import (
    ask_in_pieces as ask_in_pieces,
    average_gradients as average_gradients,
    restrict as restrict,
    rewrite_queries as rewrite_queries,
)
from .quantization import (
    snap as snap,
)
from .queries import (
    Answer as Answer,
    AnyQuery as AnyQuery,
    FileLogits as FileLogits,
    Found as Found,
    Gradient as Gradient,
    Jacobian as Jacobian,
    Logits as Logits,
    NoisyLogits as NoisyLogits,
    Plan as Plan,
    PlanOf as PlanOf,
    Query as Query,
)
from .rows import (
    Loop as Loop,
    Rows as Rows,
    column as column,
)
from .scheduler.batcher import (
    Batcher as Batcher,
)
from .scheduler.device_thread import (
    TaskHandle as TaskHandle,
)
from .scheduler.engine import (
    Engine as Engine,
)
from .scheduler.task import (
    QueryCount as QueryCount,
    Task as Task,
)
from .search.decision_boundary import (
    bisect_boundary as bisect_boundary,
    bisection_steps as bisection_steps,
    estimate_normal as estimate_normal,
    estimate_unit_normal as estimate_unit_normal,
    find_start as find_start,
    probe_distance as probe_distance,
    record_success as record_success,
)
from .search.gradient_ascent import (
    SUCCESS as SUCCESS,
    SUCCESS_AS_FILE as SUCCESS_AS_FILE,
    SUCCESS_WITH_CONFIDENCE as SUCCESS_WITH_CONFIDENCE,
    Best as Best,
    SteepestAscent as SteepestAscent,
    StepRule as StepRule,
    climb as climb,
    replace_saturated_gradient as replace_saturated_gradient,
    run_restarts as run_restarts,
    score as score,
    score_successes as score_successes,
    take_step as take_step,
    target_score as target_score,
)
from .search.hyperplanes import (
    Hyperplanes as Hyperplanes,
    query_hyperplanes as query_hyperplanes,
)
from .search.nearest import (
    Nearest as Nearest,
)
from .search.random_search import (
    done_progress as done_progress,
    goal_progress as goal_progress,
    objective as objective,
    query_progress as query_progress,
    random_search as random_search,
    round_eps_down as round_eps_down,
)
from .search.rounding import (
    round_to_success as round_to_success,
)
from .threat import (
    Case as Case,
    Threat as Threat,
)
