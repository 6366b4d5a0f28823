"""The README names every format that there is: whoever adds one adds it there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from penstock.server.parsing.reasoning.registry import FORMATS as REASONING
from penstock.server.parsing.tools.registry import FORMATS as TOOLS

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize("row", ["tools", "reasoning"])
def test_the_readme_names_every_format(row: str) -> None:
    (line,) = re.findall(rf"^\| {row} \|.*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    formats = TOOLS if row == "tools" else REASONING
    assert [format.names[0] for format in formats if format.names[0] not in line] == []
