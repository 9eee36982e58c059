"""The page: one HTML file that needs nothing else, under a content security policy that lets only our scripts run.

Foreign text reaches the page in two ways: escaped by Jinja, or inside JSON blocks, which browsers do not execute and
from which the scripts take it by `textContent`. Styles are allowed by hash too: what plotly.js sets at run time goes
through the CSS object model, which the policy does not restrict, into a style element that is there for it. Images
may only be `data:`: plotly.js draws a heat map as a bitmap.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from pbsd.report.elements import ESCAPED, Section, visible
from pbsd.report.explorer import FLAGS, Explorer
from pbsd.strict_json import strict

SCRIPTS = ("theme.js", "tables.js", "charts.js", "explorer.js")
_BARRED = re.compile("[<\ud800-\udfff]")
_STYLE_GUARD = re.compile(r'if\(!document\.getElementById\("([0-9a-f]{64})"\)\)')
"""plotly.js adds the style sheet of its maps unless an element of this id is there."""
PLOTLY_STYLE = "/* plotly.js adds its rules here, by insertRule. */"


@dataclass(frozen=True, slots=True)
class Inline:
    """Text of a script or style element, and its hash for the policy."""

    text: str

    @property
    def source(self) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()}'"


def render(title: str, sections: Sequence[Section], explorers: Mapping[str, Explorer]) -> str:
    """The page as HTML.

    Raises ImportError without plotly, whose JavaScript the page carries.
    """
    plotly, scripts = Inline(_plotly()), [Inline(_asset(name)) for name in SCRIPTS]
    styles = [Inline(_asset("page.css")), Inline(PLOTLY_STYLE)]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(script.source for script in (plotly, *scripts))}",
            f"style-src {' '.join(style.source for style in styles)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    plots = {chart.id: [asdict(choice) for choice in chart.choices] for part in sections for chart in part.charts}
    return environment.from_string(_asset("page.html")).render(
        title=title,
        policy=policy,
        plotly=plotly,
        scripts=scripts,
        styles=styles,
        never_styled=_STYLE_GUARD.findall(plotly.text),
        sections=sections,
        plots=json_block({"charts": plots, "escaped": ESCAPED}),
        explorers=[
            {"name": name, "block": "\n".join(map(json_block, found.lines))} for name, found in explorers.items()
        ],
        flags=FLAGS,
        only_samples=all(found.noun == "samples" for found in explorers.values()),
    )


def json_block(value: Any) -> str:
    """JSON for a script element that is data: no `<`, so that nothing in it can end the element, no lone surrogate,
    which UTF-8 lacks, and no NaN."""
    text = json.dumps(strict(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _BARRED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _asset(name: str) -> str:
    return resources.files("pbsd.report").joinpath("assets", name).read_text("utf-8")


def _plotly() -> str:
    """plotly.js as the Python package carries it, read without importing the package."""
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        raise ImportError("the report needs plotly: pip install 'pbsd[report]'")
    script = Path(found.origin).with_name("package_data").joinpath("plotly.min.js").read_text("utf-8")
    assert "</script" not in script.lower() and "\r" not in script, "plotly.js would end its own script element"
    return script
