"""One job or one library call: predict, run the method, judge the file.

`__init__.pyi` lists the names of this package; each loads at its first use, as the engine's do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
