"""The rating page: what people are shown, in one self-contained HTML file that sends nothing anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from prismcap.evaluate.report.page import template
from prismcap.evaluate.report.prism_items import embeddable


def render_rating_page(title: str, data: Mapping[str, Any]) -> str:
    """data: {format, page, name, grades: {letter: meaning}, questions: [{id, question, earlier, picture (its
    place in pictures), answers: [[token, text], …]}], pictures: [data URI, …]}."""
    script = Markup(template("rating_script.html.j2").render())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("rating.html.j2").render(
        title=title,
        grades=data["grades"],
        json=embeddable(dict(data)),
        script=script,
        script_hash=digest,
    )
