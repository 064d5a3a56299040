from .certification.sampling import (
    Counts as Counts,
)
from .certification.sampling import (
    Stopping as Stopping,
)
from .certification.sampling import (
    Subject as Subject,
)
from .certification.sampling import (
    counted as counted,
)
from .certification.sampling import (
    voted as voted,
)
from .certification.stopping_rules import (
    RULES as RULES,
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
    probability_of as probability_of,
)
from .certification.stopping_rules import (
    radius_of as radius_of,
)
from .defences import (
    defended as defended,
)
from .defences import (
    straight_through as straight_through,
)
from .goals import (
    CrossEntropy as CrossEntropy,
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
from .goals import (
    Scored as Scored,
)
from .noise import (
    Noise as Noise,
)
from .noise import (
    Stream as Stream,
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
    AnyOracle as AnyOracle,
)
from .oracles.oracle import (
    Oracle as Oracle,
)
from .oracles.remote import (
    RemoteOracle as RemoteOracle,
)
from .oracles.remote import (
    Ways as Ways,
)
from .plans import (
    averaged as averaged,
)
from .plans import (
    restricted as restricted,
)
from .plans import (
    through as through,
)
from .quantization import (
    snap as snap,
)
from .queries import (
    Answer as Answer,
)
from .queries import (
    Asking as Asking,
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
    Noisy as Noisy,
)
from .queries import (
    Plan as Plan,
)
from .queries import (
    Query as Query,
)
from .queries import (
    Saved as Saved,
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
    Counted as Counted,
)
from .scheduler.batcher import (
    Task as Task,
)
from .scheduler.device_thread import (
    Running as Running,
)
from .scheduler.engine import (
    Engine as Engine,
)
from .search.decision_boundary import (
    begun as begun,
)
from .search.decision_boundary import (
    crossed as crossed,
)
from .search.decision_boundary import (
    halvings as halvings,
)
from .search.decision_boundary import (
    leaning as leaning,
)
from .search.decision_boundary import (
    nearby as nearby,
)
from .search.decision_boundary import (
    normal_at as normal_at,
)
from .search.decision_boundary import (
    succeeded as succeeded,
)
from .search.gradient_ascent import (
    HELD as HELD,
)
from .search.gradient_ascent import (
    MET as MET,
)
from .search.gradient_ascent import (
    Best as Best,
)
from .search.gradient_ascent import (
    Rule as Rule,
)
from .search.gradient_ascent import (
    Steepest as Steepest,
)
from .search.gradient_ascent import (
    climb as climb,
)
from .search.gradient_ascent import (
    enough_for as enough_for,
)
from .search.gradient_ascent import (
    follow as follow,
)
from .search.gradient_ascent import (
    judge as judge,
)
from .search.gradient_ascent import (
    restarted as restarted,
)
from .search.gradient_ascent import (
    unsaturated as unsaturated,
)
from .search.nearest import (
    Nearest as Nearest,
)
from .search.random_search import (
    asked as asked,
)
from .search.random_search import (
    in_whole_levels as in_whole_levels,
)
from .search.random_search import (
    progress as progress,
)
from .search.random_search import (
    rising as rising,
)
from .search.random_search import (
    walk as walk,
)
from .search.rounding import (
    settled as settled,
)
from .threat import (
    Case as Case,
)
from .threat import (
    Threat as Threat,
)
