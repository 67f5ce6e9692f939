"""How Sphinx makes the pages: `nox -s docs`. Nothing in them is fetched from another host."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.generate import Undescribed, filled  # noqa: E402
from servematrix import __version__  # noqa: E402

project = "Servematrix"
release = version = __version__
extensions = ["myst_parser"]
exclude_patterns = ["validation/*", "faults/*", "generate/*"]
myst_heading_anchors = 3
# the pages are read on GitHub too, where Markdown is as plain as this
myst_enable_extensions: list[str] = []
html_theme = "furo"
html_title = "Servematrix"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
# as the pages have it: '...' is not one character, and -- not another
smartquotes = False
_log = logging.getLogger(__name__)


def _fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the tables that are made from the code into a page, before it is read."""
    try:
        source[0] = filled(source[0])
    except Undescribed as problem:
        # an error, by -W, and told in one line
        _log.warning("%s", problem.args[0], location=page)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
