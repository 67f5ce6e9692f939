"""What matplotlib writes as SVG, made small and fit for a page that is light or dark.

Colours are variables of the page's style. A run may have fifty cells with four plots each, and
matplotlib says for each dot what it could say once.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Final

_VARIABLES: Final = {
    "#010203": "var(--ink)",
    "#040506": "var(--line)",
    "#070809": "var(--pass)",
    "#0a0b0c": "var(--fail)",
    "#0d0e0f": "var(--band)",
}
COLOURS: Final = tuple(_VARIABLES)
"""What a plot draws with: ink, line, good, bad, band."""
_SHORTER: Final = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),
    (r'<g id="[^"]*"', "<g"),
    # a page needs no namespaces, and a background that is not filled shows nothing
    (r' xmlns(:xlink)?="[^"]*"| version="1.1"', ""),
    ("xlink:href", "href"),
    # the page's own font; matplotlib names eleven at each label
    (r"font-family: [^;\"]*;? ?", ""),
    (r' transform="rotate\(-?0 [^)]*\)"', ""),
    # nobody reads the line breaks
    (r"\s*\n\s*", " "),
    (r"\s*(?=/?>)|(?<=>)\s+|\s+(?=<)|\s(?=\")|(?<=\")\s(?=[^a-z])", ""),
    (r"(?<=[:;]) ", ""),
    (r'<path d="[^"]*" style="fill:none"/>', ""),
    # what stands at each tick of an axis: the page's style says it once
    (r'style="font-size:9px;text-anchor:(middle|end);fill:#010203"', r'class="\1"'),
    (r'style="fill:#010203;stroke:#010203;stroke-width:0.8"', 'class="tick"'),
    (r"<defs></defs>|<g></g>|<g/>", ""),
    (r"<g></g>", ""),
)
_TAG: Final = re.compile(r"<[^>]*>")
_FINER: Final = re.compile(r"(\.\d)\d+")
"""Than a tenth of a point, which is finer than a screen."""
_WHOLE: Final = re.compile(r"\.0(?!\d)")
_IDENTIFIED: Final = re.compile(r'(?<=id=")[^"]+')
_DOTS: Final = re.compile(r'(<use [^>]*?)( (?:style|class)="[^"]*")(/>(?:<use [^>]*?\2/>)*)')


@dataclass
class Sheet:
    """Where a figure is written to; `name` is as for a plot."""

    name: str
    file: io.StringIO = field(default_factory=io.StringIO)


def inline(sheet: Sheet) -> str:
    """The SVG element of a figure; a page says in words what it shows."""
    text = sheet.file.getvalue()
    text = text[text.index("<svg") :]
    for pattern, shorter in _SHORTER:
        text = re.sub(pattern, shorter, text, flags=re.DOTALL)
    # not the numbers at an axis, which are text
    text = _TAG.sub(lambda tag: _WHOLE.sub("", _FINER.sub(r"\1", tag[0])), text)
    for number, identifier in enumerate(_IDENTIFIED.findall(text)):
        text = re.sub(rf"\b{identifier}\b", f"{sheet.name}-{number}", text)
    text = _DOTS.sub(_once, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _once(found: re.Match[str]) -> str:
    """Say a style once for all the dots that have it."""
    first, style, others = found.groups()
    return f"<g{style}>{first}{others.replace(style, '')}</g>"
