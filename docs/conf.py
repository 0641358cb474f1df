"""How Sphinx builds the pages: `python -m sphinx -W --keep-going docs out/docs`."""

import re
import sys
import typing
from collections.abc import Callable
from functools import reduce
from importlib import metadata
from inspect import getmembers, isclass, isfunction, unwrap
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin


vars(typing)["GENERATING_DOCUMENTATION"] = (
    "jaxsparse"  # jaxtyping then names no modules
)

import jax  # noqa: E402
import optax  # noqa: E402
from docutils import nodes  # noqa: E402

import jaxsparse  # noqa: E402
import jaxsparse.plots  # noqa: E402
from jaxsparse._patterns.pattern import Pattern, PatternLike  # noqa: E402
from jaxsparse._plans.plan import PlanLike, RulesLike  # noqa: E402
from jaxsparse._plans.plan_error import Remedy  # noqa: E402
from jaxsparse._training.regrowth import DropFraction  # noqa: E402
from jaxsparse._training.schedule import Schedule  # noqa: E402


sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "jaxsparse"
copyright = "2026, the jaxsparse developers"
release = metadata.version("jaxsparse")
html_title = "jaxsparse"
html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = [("pages.js", {"defer": "defer"})]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/version.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_theme_options = {"top_of_page_buttons": []}
extensions = [
    "accessible",
    "command_help",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
]

# Docstrings have names between single backticks: linked where they are documented.
default_role = "py:obj"
autosummary_generate = False
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "both"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_attr_annotations = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 72
viewcode_line_numbers = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks keep their output; a test runs them


# Python 3.11 forgets the name of a union: types are shown by the names that the
# source gives them. `reference/types.md` says what each stands for. Widest first.
def _stand_in(name: str) -> type:
    return type(name, (), {"__module__": "builtins"})


ALIASES = {
    Remedy: _stand_in("Remedy"),
    PlanLike: _stand_in("PlanLike"),
    RulesLike: _stand_in("RulesLike"),
    PatternLike: _stand_in("PatternLike"),
    Pattern: _stand_in("Pattern"),
    optax.OptState: _stand_in("OptState"),
    jax.typing.ArrayLike: _stand_in("ArrayLike"),
    Schedule: _stand_in("Schedule"),
    DropFraction: _stand_in("DropFraction"),
}


def _with_aliases(hint: Any) -> Any:
    """Returns the type hint with unions and callables replaced by their aliases."""
    if isinstance(hint, type) and "[" in hint.__name__:  # an array with its axes
        return _stand_in(hint.__name__)
    origin, args = get_origin(hint), get_args(hint)
    if args and hint in ALIASES:
        return ALIASES[hint]
    if not args or origin in (ClassVar, Literal):
        return hint
    if origin in (Union, UnionType):
        for alias, stand_in in ALIASES.items():
            members = get_args(alias)
            if get_origin(alias) in (Union, UnionType) and set(members) <= set(args):
                rest = (arg for arg in args if arg not in members)
                args = (stand_in, *rest)
        return reduce(or_, map(_with_aliases, args))
    if args[0] is ...:  # Sphinx would write `Callable[[...], Any]`
        return _stand_in(f"Callable[..., {args[1].__name__}]")
    if isinstance(args[0], list):
        return Callable[[_with_aliases(a) for a in args[0]], _with_aliases(args[1])]
    return origin[tuple(_with_aliases(arg) for arg in args)]


def _name_aliases(owner: Any) -> None:
    for name, value in getmembers(owner):
        value = value.fget if isinstance(value, property) else unwrap(value)
        public = not name.startswith("_") or name in ("__init__", "__new__")
        described = public and (isfunction(value) or isclass(value))
        if described and "jaxsparse" in value.__module__:
            hints = value.__annotations__
            hints.update({k: _with_aliases(hint) for k, hint in hints.items()})
            if isclass(value):
                _name_aliases(value)


_name_aliases(jaxsparse)
_name_aliases(jaxsparse.plots)


#: Where a type is defined is no part of its name.
PRIVATE = re.compile(r"~?\b(?:jaxsparse(?:\._\w+)[\w.]*|collections\.abc)\.(?=[A-Z])")


def _tidy_fields(_app: Any, page: nodes.document) -> None:
    """Names fields as docstrings do; signatures have the types of results."""
    for name in list(page.findall(nodes.field_name)):
        if name.astext() == "Variables":
            name.children = [nodes.Text("Attributes")]
        elif name.astext() == "Return type":
            fields = name.parent.parent
            fields.remove(name.parent)
            if not fields.children:
                fields.parent.remove(fields)


def _tidy_docstring(*event: Any) -> None:
    """Doubles the backticks of `.safetensors`: a role drops the dot. Shortens types."""
    *_, lines = event
    double = lambda code: re.sub(r"^`([.~!].*)`$", r"``\1``", code[0], flags=re.DOTALL)
    text = re.sub(r"``.*?``|`[^`]*`", double, "\n".join(lines), flags=re.DOTALL)
    lines[:] = PRIVATE.sub("", text).split("\n")


def _tidy_signature(*event: Any) -> tuple[str, str] | None:
    *_, signature, result = event
    if not signature:
        return None
    return PRIVATE.sub("", signature), PRIVATE.sub("", result or "")


def setup(app: Any) -> None:
    """Connects what tidies docstrings and the pages that they become."""
    app.connect("autodoc-process-docstring", _tidy_docstring)
    app.connect("autodoc-process-signature", _tidy_signature)
    app.connect("doctree-read", _tidy_fields)
