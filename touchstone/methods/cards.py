"""A package of methods that lists them when it is called.

`touchstone.attacks` is a function until the package of that name is imported, which then replaces it. So the
package is callable, too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


class MethodPackage(ModuleType):
    """A package that can be called like the function that it replaces: lists the methods of its `kind`."""

    kind: str

    def __call__(self) -> list[dict[str, Any]]:
        """The cards of its methods."""
        from touchstone.methods import build_card, catalogue  # noqa: PLC0415 - imports the packages in turn

        return [build_card(method) for method in catalogue().values() if method.kind == self.kind]
