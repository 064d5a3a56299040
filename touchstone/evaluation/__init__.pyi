from .attempts import (
    Sought as Sought,
)
from .attempts import (
    pursued as pursued,
)
from .attempts import (
    search as search,
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
    run_here as run_here,
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
    look as look,
)
from .verdict import (
    look_at as look_at,
)
from .verdict import (
    metric as metric,
)
from .verdict import (
    top as top,
)
from .verdict import (
    vote_on as vote_on,
)
