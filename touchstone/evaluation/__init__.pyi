from .attempts import (
    AttackResult as AttackResult,
    attack_rows as attack_rows,
    round_rows as round_rows,
    run_attempts as run_attempts,
)
from .inference import (
    infer as infer,
)
from .judgment import (
    Judgment as Judgment,
    judge_images as judge_images,
    measure_distance as measure_distance,
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
from .row_verdicts import (
    RowVerdicts as RowVerdicts,
    attack_files as attack_files,
    evaluate_rows as evaluate_rows,
)
from .verdict import (
    ImageAttack as ImageAttack,
    attack_image as attack_image,
    build_case as build_case,
    certify_image as certify_image,
    judge_image as judge_image,
    logits_of as logits_of,
    predict_image as predict_image,
    round_image as round_image,
    row_as_image as row_as_image,
    step_metrics as step_metrics,
    top_classes as top_classes,
    vote_image as vote_image,
)
