"""The engine: plans that query models, and a scheduler that batches the queries of all plans.

`__init__.pyi` lists the names of this package and where they live. Each loads at its first use, so importing
the package does not load torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
