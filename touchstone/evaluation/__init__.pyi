from .attempts import (
    AttackResult as AttackResult,
)
from .attempts import (
    attack_rows as attack_rows,
)
from .attempts import (
    run_attempts as run_attempts,
)
from .inference import (
    infer as infer,
)
from .library import (
    Model as Model,
)
from .library import (
    attack as attack,
)
from .library import (
    certify as certify,
)
from .library import (
    load as load,
)
from .library import (
    run_plans as run_plans,
)
from .library import (
    samples as samples,
)
from .library import (
    wrap as wrap,
)
from .verdict import (
    Verdict as Verdict,
)
from .verdict import (
    attack_image as attack_image,
)
from .verdict import (
    certify_image as certify_image,
)
from .verdict import (
    logits_of as logits_of,
)
from .verdict import (
    predict_image as predict_image,
)
from .verdict import (
    step_metrics as step_metrics,
)
from .verdict import (
    top_classes as top_classes,
)
from .verdict import (
    vote_image as vote_image,
)
