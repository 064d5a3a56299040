from .attempts import (
    AttackResult as AttackResult,
    attack_rows as attack_rows,
    run_attempts as run_attempts,
)
from .inference import (
    infer as infer,
)
from .library import (
    Model as Model,
    attack as attack,
    certify as certify,
    load as load,
    run_plans as run_plans,
    samples as samples,
    wrap as wrap,
)
from .verdict import (
    Verdict as Verdict,
    attack_image as attack_image,
    certify_image as certify_image,
    logits_of as logits_of,
    predict_image as predict_image,
    step_metrics as step_metrics,
    top_classes as top_classes,
    vote_image as vote_image,
)
