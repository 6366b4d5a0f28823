"""The dependencies of pyproject.toml, one a line, for a layer of the image that no change of source touches.

`python3 requirements.py pyproject.toml [EXTRA ...]`; nothing but Python is needed. Exit status 2 if there is no such
extra.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Those of the project, then those of the extras. Raises ValueError for an extra that it does not have."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    found: list[str] = list(project["dependencies"])
    for extra in extras:
        if extra not in optional:
            raise ValueError(f"extra {extra}: unknown; choose from {', '.join(optional)}")
        found += optional[extra]
    return found


def main() -> int:
    try:
        lines = requirements(Path(sys.argv[1]), sys.argv[2:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
