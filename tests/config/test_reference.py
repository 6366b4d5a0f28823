"""Help and reference page show every option, and the page in docs/ is the one that the tree gives now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import penstock
from penstock.server.options.parse import fields
from penstock.server.options.reference import headings, help_text, page

DOCS = Path(penstock.__file__).resolve().parent / "docs"


def test_the_reference_page_is_up_to_date() -> None:
    """If this fails: `python -m penstock.server.options.reference > docs/options.md`."""
    assert (DOCS / "options.md").read_text() == page()


def test_help_is_grouped_fits_its_width_and_names_every_option() -> None:
    text = help_text(100)
    for heading in headings().values():
        assert f"\n{heading}:\n" in text
    for field in fields():
        assert any(flag in text for flag in (field.flag, f"--no-{field.flag[2:]}"))
    assert all(len(line) <= 100 for line in text.splitlines())


def test_help_is_printed_to_stdout_with_status_0() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "serve", "--port", "1", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("usage: penstock serve [MODEL] [options]\n")
    assert done.stderr == ""
