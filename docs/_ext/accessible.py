"""Mends what Sphinx and furo write that screen readers cannot read."""

import re
from typing import Any


#: A signature over several lines: its parameters are definitions of no term.
_PARAMETERS = re.compile(
    r'<dl>\n((?:<dd><em class="sig-param">.*?</dd>\n)+)</dl>', re.S
)


def _lines(parameters: re.Match[str]) -> str:
    lines = parameters[1].replace("<dd>", '<div class="sig-line">')
    return lines.replace("</dd>", "</div>").rstrip("\n")


def _mend(
    _app: Any, _page: str, _template: str, context: dict[str, Any], _: Any
) -> None:
    if "body" in context:
        context["body"] = _PARAMETERS.sub(_lines, context["body"])
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )


def setup(app: Any) -> dict[str, bool]:
    """Mends pages after furo has added its navigation."""
    app.connect("html-page-context", _mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
